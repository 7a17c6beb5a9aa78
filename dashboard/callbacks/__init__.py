"""Callbacks: one-line adapters from a selection to what the page functions return."""
