"""The overview of a run: files with the table ``layers``, downsampled to buckets of steps."""
