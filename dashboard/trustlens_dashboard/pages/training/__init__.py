"""The page ``training``."""
