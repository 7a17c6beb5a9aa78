"""Write measured steps to files and pass them to listeners, on the writer thread."""
