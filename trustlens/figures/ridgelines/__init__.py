"""Ridgelines: histograms over the layers, one ridge a step."""
