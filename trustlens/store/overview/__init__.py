"""The overview: the layers of a run, downsampled."""
