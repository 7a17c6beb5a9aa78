"""Read recorded runs as DataFrames, and diagnose them. This package never imports torch."""
