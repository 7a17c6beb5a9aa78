"""What the benchmarks share: timing, models, and the contenders."""
