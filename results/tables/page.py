"""The templates of the HTML pages: everything that goes into one is escaped."""

from __future__ import annotations

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


@cache
def environment() -> Environment:
    """Return the templates of a wing of ``results``, with escaping on and unknown names refused."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("results.tables"), PackageLoader("results.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
