"""Shared by the benchmarks: timing, models, contenders, results and tables."""
