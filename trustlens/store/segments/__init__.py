"""Sealed segments: the sorted Parquet files of a table."""
