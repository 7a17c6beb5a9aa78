"""Measure what recording costs: ``python -m benchmarks.overhead``, ``… benchmarks.files``."""
