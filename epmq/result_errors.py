"""The one error of this package."""

from __future__ import annotations


class ResultError(ValueError):
    """Results that can't be used as asked: one line that names the file and field, and what to do."""
