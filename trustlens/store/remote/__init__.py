"""Recording to an object store: the run is written on this machine and uploaded meanwhile."""
