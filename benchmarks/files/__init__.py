"""Benchmark of a run's files: size, writing and queries."""
