"""Recording to an object store: lease, staging folder and uploader."""
