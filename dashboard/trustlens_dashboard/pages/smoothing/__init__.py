"""The page ``smoothing``."""
