"""Writing and reading the files of a run, on this machine or on an object store."""
