"""The read side: runs as DataFrames, and what can be said about them. Never imports torch."""
