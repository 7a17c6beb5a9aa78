"""Hooks into torch: optimizer steps, gradient scaling, and the failsafe around the recorder."""
