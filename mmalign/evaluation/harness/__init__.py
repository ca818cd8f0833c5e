"""The bridge to lmms-eval: our models as one of its models, our benchmarks as its tasks."""
