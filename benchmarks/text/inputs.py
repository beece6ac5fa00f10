"""Calibration inputs of language models: prompts and targets as padded batches of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.suites.prompt import LmTask

BATCH = 32  # samples of like length that pass through the model together


@dataclass(frozen=True)
class Encoder:
    """A model's way from text to inputs.

    Attributes:
        tokenizer: of transformers; ends a T5's texts with ``</s>`` itself.
        config: the model's; an encoder-decoder's start token comes from it.
        max_length: tokens of a prompt; what is longer is cut.
    """

    tokenizer: Any
    config: Any
    max_length: int

    def batches(
        self, task: LmTask, rows: Dataset, decoder: str | None, device: torch.device
    ) -> list[dict[str, Tensor]]:
        """Batches of a task's rows; padding is on the right and masked.

        A causal model reads the prompt and, with ``targets``, the target after it.

        Args:
            decoder: one of ``cells.DECODERS``; ``None`` is ``targets``.
        """
        decoder = decoder or "targets"
        prompts = [task.prompt(row) for row in rows]
        targets = [task.target(row) for row in rows] if decoder == "targets" else [""] * len(prompts)
        if self.config.is_encoder_decoder:
            pairs = self._seq2seq(prompts, targets, decoder)
        else:
            pairs = self._causal(prompts, targets, task)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        parts = [[pairs[i] for i in order[k : k + BATCH]] for k in range(0, len(order), BATCH)]
        return [{name: x.to(device) for name, x in self._padded(part).items()} for part in parts]

    def _seq2seq(
        self, prompts: list[str], targets: list[str], decoder: str
    ) -> list[tuple[list[int], list[int]]]:
        sources = self.tokenizer(prompts, truncation=True, max_length=self.max_length).input_ids
        start = self.config.decoder_start_token_id
        if decoder == "start":
            return [(source, [start]) for source in sources]
        wanted = self.tokenizer(targets, truncation=True, max_length=self.max_length).input_ids
        return [(source, [start, *target[:-1]]) for source, target in zip(sources, wanted, strict=True)]

    def _causal(
        self, prompts: list[str], targets: list[str], task: LmTask
    ) -> list[tuple[list[int], list[int]]]:
        between = task.config.get("target_delimiter", " ")
        texts = [p + between + t if t else p for p, t in zip(prompts, targets, strict=True)]
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length).input_ids
        return [(each, []) for each in ids]

    def _padded(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for prefix, column in (("", 0), ("decoder_", 1)):
            ids = [torch.tensor(pair[column]) for pair in pairs]
            if len(ids[0]):
                masks = [torch.ones_like(each) for each in ids]
                pad = self.tokenizer.pad_token_id or 0
                found[f"{prefix}input_ids"] = pad_sequence(ids, batch_first=True, padding_value=pad)
                found[f"{prefix}attention_mask"] = pad_sequence(masks, batch_first=True)
        return found
