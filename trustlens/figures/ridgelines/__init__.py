"""Ridgelines: histograms of a quantity over the layers, one ridge per step."""
