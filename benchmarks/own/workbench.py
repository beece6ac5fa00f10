"""The workbench over models and samples that no suite file names."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.own.models import OwnSources
from benchmarks.own.samples import Samples
from benchmarks.suites.forms import Suite
from benchmarks.workbench.base import Setting, Workbench


def open_workbench(
    suite: Suite, setting: Setting, sources: OwnSources, samples: Mapping[str, Samples], answer_tokens: int
) -> Workbench:
    """The models opened and checked, with the samples; every image is decoded.

    Raises:
        UserError: a model is missing, damaged or does not fit the base.
    """
    if suite.kind == "text":
        from benchmarks.own.texts import OwnTexts

        return OwnTexts(suite, setting, sources, samples, answer_tokens)
    from benchmarks.own.images import OwnImages

    return OwnImages(suite, setting, sources, samples)
