"""Which bench a suite takes, by its kind."""

from __future__ import annotations

from benchmarks.suites import Suite
from benchmarks.workbench import Bench, Setting


def open_bench(suite: Suite, setting: Setting | None = None) -> Bench:
    """The suite's models and data, opened and checked.

    Raises:
        UserError: a model or a data set is missing, damaged or not what the suite says.
    """
    if suite.kind == "text":
        from benchmarks.text_bench import TextBench  # only these suites need what it imports

        return TextBench(suite, setting)
    from benchmarks.image_bench import ImageBench

    return ImageBench(suite, setting)
