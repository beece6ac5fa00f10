"""lm-eval's task and model classes with the data, the prompts and the model in place.

Imported where lm-eval is needed and only there: it is an optional extra and takes seconds to load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.suites.prompt import FUNCTIONS, TaskFile
from benchmarks.text import metrics

SPLIT = "rows"
MULTIPLE_CHOICE = ("acc", "acc_norm")  # lm-eval's metrics of ranked answers

Encoded = tuple[dict[tuple[int, ...], int], Tensor, Tensor]  # rows by prompt, states, mask
Pair = tuple[tuple[str, str], list[int], list[int]]  # texts, tokens of the context and of its continuation


class InPlaceTask(ConfigurableTask):  # type: ignore[misc]
    """A task file whose rows are a data set that is already here.

    lm-eval renders a template anew for every row and several times; ``TaskFile`` renders the
    same templates in lm-eval's own environment, compiled once.
    """

    def __init__(self, task: TaskFile, data: Dataset) -> None:
        self._rows = data
        left_out = ("doc_to_choice", "generation_kwargs")
        config = {name: value for name, value in task.config.items() if name not in left_out}
        given = {"doc_to_text": lambda row: task.prompt(row), "test_split": SPLIT, "num_fewshot": 0}
        super().__init__(config={**config, **given, **self.answered(task)})

    def answered(self, task: TaskFile) -> dict[str, Any]:
        """What of lm-eval's configuration says how the task is answered and evaluated."""
        return {
            "generation_kwargs": task.config["generation_kwargs"],
            "doc_to_target": lambda row: task.target(row),
            "metric_list": [_functions(entry) for entry in task.config["metric_list"]],
        }

    def download(self, *_: Any, **__: Any) -> None:
        self.dataset = {SPLIT: self._rows}

    def build_all_requests(self, **_: Any) -> None:
        """lm-eval's requests of all rows, without its progress bar and its file cache."""
        found = (
            self.construct_requests(row, self.doc_to_text(row), metadata=(self.config.task, i, 1))
            for i, row in self.doc_iterator()
        )
        self._instances = [one for each in found for one in (each if isinstance(each, list) else [each])]


class RankedTask(InPlaceTask):
    """The same rows and prompts as lm-eval's multiple choice: every answer of the task is scored.

    Args:
        delimiter: between prompt and answer; nothing for an encoder-decoder, which reads them apart.
    """

    def __init__(self, task: TaskFile, data: Dataset, delimiter: str) -> None:
        self._delimiter = delimiter
        super().__init__(task, data)

    def answered(self, task: TaskFile) -> dict[str, Any]:
        """Metrics are lm-eval's: ``acc``, and ``acc_norm``, which divides by the answer's characters."""
        return {
            "output_type": "multiple_choice",
            "target_delimiter": self._delimiter,
            "doc_to_choice": list(task.choices or ()),
            "doc_to_target": lambda row: row[task.label],
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in MULTIPLE_CHOICE
            ],
        }


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

    Four things are done as FusionBench and ``transformers`` do them, where ``HFLM`` does otherwise for an
    encoder-decoder: inputs are padded on the right, too long ones keep their beginning and their EOS, the
    limit of new tokens is that of the task (``HFLM`` adds the length of the encoder's input to it), and the
    likelihood of an answer is that of the target as it is trained and generated, with its EOS.
    Every text is tokenised once, and an encoder reads a prompt once for all answers.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int) -> None:
        kind = "seq2seq" if model.config.is_encoder_decoder else "causal"
        limits = {"batch_size": batch_size, "max_length": max_length, "softmax_dtype": "float32"}
        with _weights_left_alone(model):
            super().__init__(pretrained=model, backend=kind, tokenizer=tokenizer, **limits)
        self._ids: dict[str, list[int]] = {}
        self._encoded: Encoded | None = None

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The answers, in the order of the requests."""
        self._tokenise(request.args[0] for request in requests)
        said: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return said

    def generated(self, texts: Sequence[str], limits: Mapping[str, Any]) -> list[list[int]]:
        """Token ids of the greedy answers that ``generate_until`` gives as texts, in order.

        Args:
            limits: a task file's ``generation_kwargs``.
        """
        self._tokenise(texts)
        room = None if self.backend == "seq2seq" else self.max_length - limits["max_gen_toks"]
        stop = [*limits["until"], self.tok_decode(self.eot_token_id, skip_special_tokens=False)]
        order = sorted(range(len(texts)), key=lambda i: -len(self._ids[texts[i]]))
        found: dict[int, list[int]] = {}
        for k in range(0, len(order), self.batch_size):
            part = order[k : k + self.batch_size]
            ids, mask = self.tok_batch_encode([texts[i] for i in part], left_truncate_len=room)
            longest = ids.shape[1] + limits["max_gen_toks"]
            given = {"attention_mask": mask.to(self.device), "do_sample": False}
            said = self._model_generate(ids.to(self.device), longest, stop, **given)
            read = 1 if self.backend == "seq2seq" else ids.shape[1]
            found.update(zip(part, map(self._until_its_end, said[:, read:].tolist()), strict=True))
        return [found[i] for i in range(len(texts))]

    def _until_its_end(self, ids: list[int]) -> list[int]:
        """With the first end token and without what pads a batch after it."""
        if self.eot_token_id in ids:
            return ids[: ids.index(self.eot_token_id) + 1]
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Sum of the log-probabilities of each answer's tokens, and whether each is the likeliest there."""
        pairs = [request.args for request in requests]
        if self.backend == "seq2seq":
            self._tokenise(text for pair in pairs for text in pair)
        else:  # the tokens after the prompt's, without its last spaces, are the answer's
            self._tokenise(text for a, b in pairs for text in (a.rstrip(), a + b))
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _tokenise(self, texts: Iterable[str]) -> None:
        known = list(dict.fromkeys(texts))
        cut = {"truncation": True, "max_length": self.max_length} if self.backend == "seq2seq" else {}
        self._ids = dict(zip(known, self.tokenizer(known, **cut).input_ids, strict=True))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.backend == "seq2seq":
            return self._ids[context], self._ids[continuation]
        found: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **options: Any) -> list[tuple[float, bool]]:
        """In blocks of an encoder-decoder's prompts of like length, which the encoder reads once."""
        if self.backend == "causal":
            plain: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
            return plain
        prompts: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, _) in enumerate(requests):
            prompts.setdefault(tuple(context), []).append(i)
        found: dict[int, tuple[float, bool]] = {}
        ordered = sorted(prompts, key=len, reverse=True)
        for k in range(0, len(ordered), self.batch_size):
            block = ordered[k : k + self.batch_size]
            self._encoded = self._encode(block)
            order = [i for prompt in block for i in prompts[prompt]]
            scores = super()._loglikelihood_tokens([requests[i] for i in order], **options)
            found.update(zip(order, scores, strict=True))
        self._encoded = None
        return [found[i] for i in range(len(requests))]

    @torch.no_grad()
    def _encode(self, prompts: Sequence[tuple[int, ...]]) -> Encoded:
        """Rows by prompt, the encoder's states ``(n, s, width)`` and their mask ``(n, s)``."""
        ids, mask = (x.to(self.device) for x in self._padded([torch.tensor(each) for each in prompts]))
        states: Tensor = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return {prompt: i for i, prompt in enumerate(prompts)}, states, mask

    @torch.no_grad()
    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        if self._encoded is None or attn_mask is None:
            found: Tensor = super()._model_call(inps, attn_mask, labels)
            return found
        rows, states, mask = self._encoded
        at = [rows[tuple(ids[there].tolist())] for ids, there in zip(inps, attn_mask.bool(), strict=True)]
        logits: Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[at]),
            attention_mask=mask[at],
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels),
            use_cache=False,
        ).logits
        return logits

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
        return self._padded(rows)

    def _padded(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
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
