"""What the pages are made of: building blocks, and plain functions from runs to their contents."""
