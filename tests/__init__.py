"""The tests; their helpers are in ``tests/support``."""
