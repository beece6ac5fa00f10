"""Which bench a suite takes, by its kind."""

from __future__ import annotations

from benchmarks.suites.load import Suite
from benchmarks.workbench.base import Bench, Setting


def open_bench(suite: Suite, setting: Setting | None = None) -> Bench:
    """The suite's models and data, opened and checked.

    Raises:
        UserError: a model or a data set is missing, damaged or not what the suite says.
    """
    if suite.kind == "text":
        from benchmarks.text.bench import TextBench  # only these suites need what it imports

        return TextBench(suite, setting)
    from benchmarks.images.bench import ImageBench

    return ImageBench(suite, setting)
