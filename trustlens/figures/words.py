"""Text of counts, shared by all figures."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural unless the count is 1: "5 layers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
