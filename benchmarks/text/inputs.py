"""Calibration inputs of language models: prompts and targets as padded batches of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.suites.prompt import TaskFile

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

    def targets(self, task: TaskFile, rows: Dataset, device: torch.device) -> list[dict[str, Tensor]]:
        """Batches of a task's rows with their own targets, which reads their labels.

        An encoder-decoder's decoder reads the target, shifted; a causal model reads it after the prompt.
        """
        prompts, targets = [task.prompt(row) for row in rows], [task.target(row) for row in rows]
        if self.config.is_encoder_decoder:
            return self._batches(self._seq2seq(prompts, self._ids(targets)), device)
        between = task.config.get("target_delimiter", " ")
        texts = [prompt + between + target for prompt, target in zip(prompts, targets, strict=True)]
        read = list(zip(self._ids(texts), self._ids(prompts), strict=True))
        answers = [max(1, len(ids) - len(prompt)) for ids, prompt in read]
        return self._batches([(ids, []) for ids, _ in read], device, answers)

    def generated(
        self, task: TaskFile, rows: Dataset, device: torch.device, answers: Sequence[list[int]]
    ) -> list[dict[str, Tensor]]:
        """Batches of a task's rows with answers, all but whose last token a model reads to generate them.

        No label is read. A causal model's prompt is cut as in generation: its end stays.

        Args:
            answers: token ids row by row, with the end token; empty ones for the prompt (and the start token
                of an encoder-decoder) alone.
        """
        prompts = [task.prompt(row) for row in rows]
        if self.config.is_encoder_decoder:
            return self._batches(self._seq2seq(prompts, answers), device)
        room = self.max_length - task.config["generation_kwargs"]["max_gen_toks"]
        read = zip(self.tokenizer(prompts).input_ids, answers, strict=True)
        pairs: list[tuple[list[int], list[int]]] = [(p[-room:] + answer[:-1], []) for p, answer in read]
        return self._batches(pairs, device, [max(1, len(answer)) for answer in answers])

    def _batches(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        device: torch.device,
        answers: Sequence[int] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Batches of like length; padding is on the right and masked.

        ``answers``: how many of each first sequence's last positions have a token of the answer next.
        """
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        found = []
        for chosen in (order[k : k + BATCH] for k in range(0, len(order), BATCH)):
            batch = self._padded([pairs[i] for i in chosen])
            if answers is not None:
                batch["answer_mask"] = _last(batch["attention_mask"], [answers[i] for i in chosen])
            found.append({name: x.to(device) for name, x in batch.items()})
        return found

    def _seq2seq(self, prompts: list[str], targets: Sequence[list[int]]) -> list[tuple[list[int], list[int]]]:
        start = self.config.decoder_start_token_id
        pairs = zip(self._ids(prompts), targets, strict=True)
        return [(source, [start, *target[:-1]]) for source, target in pairs]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=self.max_length).input_ids
        return found

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


def _last(mask: Tensor, counts: Sequence[int]) -> Tensor:
    """Of every row's positions that count in ``mask``, the last so many; integers like ``mask``."""
    left = mask.flip(1).cumsum(1).flip(1)  # of those that count, how many from here on
    return mask * (left <= torch.tensor(counts)[:, None]).long()
