"""The page ``ridgelines``."""
