"""Answers ranked by likelihood: those of a plain loop over transformers, and those of lm-eval by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from benchmarks.suites.prompt import TaskFile, read
from benchmarks.text.evaluation import Ranked, answers
from tests.fixtures import text_models as made

ROWS = 20
CHOICES = ["good", "bad and dull", "warm river", "fine film and the garden", "cold"]
FILE = """\
task: alone
output_type: {kind}
dataset_path: json
dataset_kwargs: {{data_files: "{data}"}}
test_split: train
doc_to_text: "What is {{{{sentence}}}} ?"
doc_to_choice: {choices}
doc_to_target: label
target_delimiter: "{delimiter}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
OURS = """\
task: choice
output_type: generate_until
doc_to_text: "What is {{sentence}} ?"
doc_to_choice: %s
doc_to_target: label
generation_kwargs: {do_sample: false, until: [], max_gen_toks: 9}
metric_list:
  - metric: !function benchmarks.lm_metrics.exact_label
    aggregation: !function benchmarks.lm_metrics.exact_label_value
    higher_is_better: true
metadata: {version: 1}
"""
Task = tuple[TaskFile, Dataset]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Five answers of one to five tokens."""
    file = tmp_path_factory.mktemp("task") / "choice.yaml"
    file.write_text(OURS % json.dumps(CHOICES))
    rows = made.sentences(ROWS, torch.Generator().manual_seed(5))
    return read(str(file)), Dataset.from_dict({"sentence": rows, "label": [i % 5 for i in range(ROWS)]})


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    found = made.tokenizer()
    assert [len(found(text).input_ids) for text in CHOICES] == [2, 4, 3, 6, 2]
    return found


@pytest.fixture(scope="module")
def t5(words: PreTrainedTokenizerFast) -> Any:
    return made.t5(words, steps=0)


def ranked(model: Any, tokenizer: Any, task: Task, **options: Any) -> Ranked:
    found = answers(model, tokenizer, {"choice": task}, **{"batch_size": 7, **options})["choice"].ranked
    assert found is not None
    return found


@torch.no_grad()
def seq2seq(model: Any, tokenizer: Any, task: Task, **options: Any) -> NDArray[np.float64]:
    """One prompt and one answer at a time; the answer as the target that a model is trained on."""
    found = []
    for row in task[1]:
        inputs = tokenizer(task[0].prompt(row), return_tensors="pt", **options)
        scores = []
        for choice in CHOICES:
            wanted = tokenizer(choice, return_tensors="pt").input_ids
            assert wanted[0, -1] == tokenizer.eos_token_id
            logits = model(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=wanted
            ).logits
            scores.append(float(logits.log_softmax(-1).gather(2, wanted[..., None]).sum()))
        found.append(scores)
    return np.array(found)


@torch.no_grad()
def causal(model: Any, tokenizer: Any, task: Task) -> NDArray[np.float64]:
    found = []
    for row in task[1]:
        prompt = tokenizer(task[0].prompt(row), return_tensors="pt").input_ids
        scores = []
        for choice in CHOICES:
            wanted = tokenizer(choice, return_tensors="pt").input_ids
            logits = model(torch.cat([prompt, wanted], 1)).logits[:, prompt.shape[1] - 1 : -1]
            scores.append(float(logits.log_softmax(-1).gather(2, wanted[..., None]).sum()))
        found.append(scores)
    return np.array(found)


def test_an_encoder_decoder_ranks_as_a_plain_loop_over_transformers(
    t5: Any, words: PreTrainedTokenizerFast, task: Task
) -> None:
    expected, found = seq2seq(t5, words, task), ranked(t5, words, task)
    np.testing.assert_allclose(found.likelihoods, expected, rtol=0, atol=1e-4)
    lengths = np.array([len(choice) for choice in CHOICES])
    assert found.best == expected.argmax(1).tolist()
    assert found.best_norm == (expected / lengths).argmax(1).tolist()
    labels = np.array(task[1]["label"])
    assert found.value == np.mean(expected.argmax(1) == labels)
    assert found.value_norm == np.mean((expected / lengths).argmax(1) == labels)
    assert len(set(found.best)) > 1
    assert found.best != found.best_norm


def test_too_long_a_prompt_is_ranked_by_its_beginning_and_its_end_token(
    t5: Any, words: PreTrainedTokenizerFast, task: Task
) -> None:
    expected = seq2seq(t5, words, task, truncation=True, max_length=9)
    np.testing.assert_allclose(ranked(t5, words, task, max_length=9).likelihoods, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - seq2seq(t5, words, task)).max() > 0.01


def test_a_causal_model_ranks_as_a_plain_loop_over_transformers(task: Task) -> None:
    plain = made.tokenizer(eos=False)
    model = made.llama(plain)
    found = ranked(model, plain, task)
    np.testing.assert_allclose(found.likelihoods, causal(model, plain, task), rtol=0, atol=1e-4)
    assert len(set(found.best_norm)) > 1


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_batch_size_changes_no_rank(
    batch_size: int, t5: Any, words: PreTrainedTokenizerFast, task: Task
) -> None:
    found = ranked(t5, words, task, batch_size=batch_size)
    assert found == ranked(t5, words, task)


def stock(folder: Path, model: Any, tokenizer: Any, task: Task, choices: list[str], delimiter: str) -> Any:
    """lm-eval by itself: its own model class, task class and data loading."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task[1].to_json(folder / "rows.jsonl")
    given = {"kind": "multiple_choice", "choices": json.dumps(choices), "delimiter": delimiter}
    (folder / "alone.yaml").write_text(FILE.format(data=folder / "rows.jsonl", **given))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    kind = "seq2seq" if model.config.is_encoder_decoder else "causal"
    with own_head(model):
        lm = HFLM(pretrained=model, backend=kind, tokenizer=tokenizer, batch_size=16, max_length=512)
    return evaluator.evaluate(lm, manager.load(["alone"]), bootstrap_iters=0)


@contextmanager
def own_head(model: Any) -> Iterator[None]:
    """HFLM would replace the model's output layer by its embedding."""
    model.tie_weights = lambda: None
    yield
    del model.tie_weights


@pytest.mark.parametrize("kind", ["encoder-decoder", "causal"])
def test_lm_eval_alone_ranks_the_same(kind: str, task: Task, tmp_path: Path) -> None:
    """For an encoder-decoder its answers get the end token by hand, which it leaves out."""
    causal = kind == "causal"
    tokenizer = made.tokenizer(eos=not causal)
    model = made.llama(tokenizer) if causal else made.t5(tokenizer, steps=0)
    choices = CHOICES if causal else [f"{choice}</s>" for choice in CHOICES]
    alone = stock(tmp_path, model, tokenizer, task, choices, " " if causal else "")
    ours = ranked(model, tokenizer, task)
    theirs = [[score for score, _ in each["filtered_resps"]] for each in alone["samples"]["alone"]]
    np.testing.assert_allclose(ours.likelihoods, theirs, rtol=0, atol=1e-4)
    assert ours.value == alone["results"]["alone"]["acc,none"]
    if causal:  # otherwise the end token counts among the characters
        assert ours.value_norm == alone["results"]["alone"]["acc_norm,none"]


def test_the_encoder_reads_a_prompt_once_for_all_answers(
    t5: Any, words: PreTrainedTokenizerFast, task: Task
) -> None:
    seen: list[int] = []
    handle = t5.encoder.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    ranked(t5, words, task)
    handle.remove()
    assert sum(seen) == 2 * ROWS  # once more to generate


def test_numbers_have_no_ranked_score(t5: Any, words: PreTrainedTokenizerFast) -> None:
    stsb = made.glue(5, seed=3)["stsb"]
    assert answers(t5, words, {"stsb": stsb}, batch_size=5)["stsb"].ranked is None
