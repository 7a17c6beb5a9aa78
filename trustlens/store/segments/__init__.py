"""Segments of a table: journals, and the sorted Parquet files that are made from journals."""
