"""The page ``runs``."""
