"""Benchmarks (a parser and a metric each), the answer runner."""
