"""The page ``layers``."""
