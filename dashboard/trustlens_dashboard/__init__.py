"""The dashboard: web pages that show recorded runs."""
