"""The overview: the same rows at coarser steps."""
