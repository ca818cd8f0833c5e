"""Benchmarks (each makes scored items of answers, and names its metrics over them), judges, the answer runner."""
