"""C code: what its sources share, and how it is built."""
