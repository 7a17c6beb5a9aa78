"""Counts in words, as all figures write them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in the right number: ``1 layer``, ``5 layers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
