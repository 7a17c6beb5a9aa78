"""Measure one step of one optimizer on the device."""
