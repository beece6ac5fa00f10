"""The workbench of language models and prompts of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.own.given import GivenSamples
from benchmarks.own.models import OwnSources
from benchmarks.own.samples import Samples
from benchmarks.suites.forms import Suite
from benchmarks.suites.prompt import Generation, TaskFile
from benchmarks.text.workbench import TextWorkbench
from benchmarks.workbench.base import Setting
from epmq.errors import UserError


class OwnTexts(GivenSamples, TextWorkbench):
    """Prompts as they are, without targets; experts' answers have ``answer_tokens`` at most."""

    def __init__(
        self,
        suite: Suite,
        setting: Setting,
        sources: OwnSources,
        samples: Mapping[str, Samples],
        answer_tokens: int,
    ) -> None:
        self._answer = Generation(do_sample=False, until=[], max_gen_toks=answer_tokens)
        super().__init__(suite, setting, sources, samples)
        if self.suite.architecture == "causal" and answer_tokens >= self.suite.max_length:
            raise UserError(
                f"--answer-tokens {answer_tokens} leaves a prompt no room in --max-length "
                f"{self.suite.max_length}; give fewer"
            )

    def _task_file(self, prompt: str) -> TaskFile:
        """The prompt alone; there is no answer that would be right."""
        return TaskFile.model_construct(task=prompt, doc_to_text="{{text}}", generation_kwargs=self._answer)

    @property
    def preprocess(self) -> dict[str, Any]:
        """With the length of answers, which the calibration inputs depend on."""
        return {**super().preprocess, "answer_tokens": self._answer.max_gen_toks}
