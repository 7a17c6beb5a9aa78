"""The read side: recorded runs as DataFrames, and their diagnosis. Never imports torch."""
