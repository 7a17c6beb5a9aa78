"""Benchmarks: ``python -m benchmarks.overhead`` and ``python -m benchmarks.files``."""
