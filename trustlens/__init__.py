"""See what your optimizer does to each layer."""

__version__ = "0.1.0"
