"""Benchmark of recording: the time that it adds to each step of a training."""
