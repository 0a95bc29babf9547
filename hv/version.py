"""Versions as libvirt tells them: one number each."""

from __future__ import annotations


def version(number: int) -> tuple[int, int, int]:
    """Major, minor and release."""
    return number // 1_000_000, number // 1000 % 1000, number % 1000
