"""Row schemas, image loading, tokenisation, rejects."""
