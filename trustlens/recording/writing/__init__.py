"""From measured steps to files and listeners, on the writer thread."""
