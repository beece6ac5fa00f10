"""lm-eval's task and model classes with the data, the prompts and the model in place.

Imported where lm-eval is needed and only there: it is an optional extra and takes seconds to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from benchmarks.suites.prompt import FUNCTIONS, LmTask
from benchmarks.text import metrics

SPLIT = "rows"


class InPlaceTask(ConfigurableTask):  # type: ignore[misc]
    """A task file whose rows are a data set that is already here.

    lm-eval renders a template anew for every row and several times; ``LmTask`` renders the same templates in
    lm-eval's own environment, compiled once.
    """

    def __init__(self, task: LmTask, data: Dataset) -> None:
        self._rows = data
        left_out = ("doc_to_choice", "metric_list", "doc_to_text", "doc_to_target")
        config = {name: value for name, value in task.config.items() if name not in left_out}
        super().__init__(
            config={
                **config,
                "doc_to_text": lambda row: task.prompt(row),
                "doc_to_target": lambda row: task.target(row),
                "metric_list": [_functions(entry) for entry in task.config["metric_list"]],
                "test_split": SPLIT,
                "num_fewshot": 0,
            }
        )

    def download(self, *_: Any, **__: Any) -> None:
        self.dataset = {SPLIT: self._rows}

    def build_all_requests(self, **_: Any) -> None:
        """lm-eval's requests of all rows, without its progress bar and its file cache."""
        self._instances = [
            self.construct_requests(row, self.doc_to_text(row), metadata=(self.config.task, i, 1))
            for i, row in self.doc_iterator()
        ]


def _functions(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of a task file with the functions that it names."""
    return {
        key: getattr(metrics, value.removeprefix(FUNCTIONS)) if isinstance(value, str) else value
        for key, value in entry.items()
    }


@contextmanager
def _weights_left_alone(model: Any) -> Iterator[None]:
    """Without ``tie_weights``, which ``HFLM`` calls.

    ``transformers`` 5 takes every T5 for tied; in memory it would replace FLAN-T5's own ``lm_head`` by
    its embedding.
    """
    model.tie_weights = lambda: None  # hides the method
    try:
        yield
    finally:
        del model.tie_weights


class InPlaceModel(HFLM):  # type: ignore[misc]
    """A model and a tokenizer that are already here, behind lm-eval's interface.

    Three things are done as FusionBench and ``transformers`` do them, where ``HFLM`` does otherwise for an
    encoder-decoder: inputs are padded on the right, too long ones keep their beginning and their EOS, and
    the limit of new tokens is that of the task (``HFLM`` adds the length of the encoder's input to it).
    Every prompt is tokenised once.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int) -> None:
        kind = "seq2seq" if model.config.is_encoder_decoder else "causal"
        limits = {"batch_size": batch_size, "max_length": max_length}
        with _weights_left_alone(model):
            super().__init__(pretrained=model, backend=kind, tokenizer=tokenizer, **limits)
        self._ids: dict[str, list[int]] = {}

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The answers, in the order of the requests."""
        texts = list(dict.fromkeys(request.args[0] for request in requests))
        cut = {"truncation": True, "max_length": self.max_length} if self.backend == "seq2seq" else {}
        self._ids = dict(zip(texts, self.tokenizer(texts, **cut).input_ids, strict=True))
        said: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return said

    def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
        return self._ids[string]

    def tok_batch_encode(
        self, strings: Sequence[str], *_: Any, left_truncate_len: int | None = None, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 ``(n, longest)``; padded on the left for a causal model."""
        rows = [
            torch.tensor(self._ids[text][-left_truncate_len:] if left_truncate_len else self._ids[text])
            for text in strings
        ]
        side = "right" if self.backend == "seq2seq" else "left"
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side=side)
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        return ids, mask

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        if self.backend == "seq2seq":
            max_length += 1 - context.shape[1]  # the decoder's start token and the new ones
        found: Tensor = super()._model_generate(context, max_length, self._texts_to_watch(stop), **options)
        return found

    def _texts_to_watch(self, stop: list[str]) -> list[str]:
        """Without EOS where ``generate`` stops there anyway: the watch decodes every row at every step."""
        ends = self.model.generation_config.eos_token_id
        known = self.eot_token_id in (ends if isinstance(ends, list) else [ends])
        return [text for text in stop if not (known and text == self.tokenizer.eos_token)]
