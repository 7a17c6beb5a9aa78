"""The dashboard: pages over recorded runs."""
