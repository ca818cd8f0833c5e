"""Row schemas, image loading, tokenisation, rejects, resumable shards, columns of cached references and teachers."""
