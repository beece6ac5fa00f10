"""Text tasks through lm-eval: the answers of transformers, in row order, with our metric modules' values."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from transformers import PreTrainedTokenizerFast

from benchmarks.suites.prompt import PROMPTS, read
from benchmarks.text import metrics
from benchmarks.text.evaluation import TextAnswers, answers, generated
from epmq.errors import UserError
from tests.fixtures import text_models as made

ROWS = 20
LIMIT = 10  # of the decoder's tokens, with its start token


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return made.tokenizer()


@pytest.fixture(scope="module")
def trained(words: PreTrainedTokenizerFast) -> Any:
    return made.t5(words, steps=100)


@pytest.fixture(scope="module")
def untrained(words: PreTrainedTokenizerFast) -> Any:
    """Says all kinds of things, at all lengths."""
    return made.t5(words, steps=0)


@pytest.fixture(scope="module")
def tasks() -> made.Tasks:
    return made.glue(ROWS, seed=3)


@torch.no_grad()
def directly(model: Any, words: Any, prompts: Sequence[str], **padding: Any) -> list[str]:
    """FusionBench's loop: tokenise, generate with ``max_length=10``, decode."""
    found: list[str] = []
    for i in range(0, len(prompts), 8):
        inputs = words(list(prompts[i : i + 8]), truncation=True, return_tensors="pt", **padding)
        ids = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_length=LIMIT)
        found += words.batch_decode(ids, skip_special_tokens=True)
    return found


def accuracy(found: TextAnswers) -> float:
    return sum(a == b for a, b in zip(found.said, found.wanted, strict=True)) / len(found.said)


@pytest.mark.parametrize("padding", [{"padding": "max_length", "max_length": 160}, {"padding": True}])
@pytest.mark.parametrize("which", ["trained", "untrained"])
def test_answers_are_those_of_transformers_sample_by_sample(
    which: str,
    padding: dict[str, Any],
    words: PreTrainedTokenizerFast,
    tasks: made.Tasks,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(which)
    found = answers(model, words, tasks, batch_size=16)
    for name, (task, data) in tasks.items():
        assert found[name].said == directly(model, words, [task.prompt(row) for row in data], **padding)


@pytest.mark.parametrize("which", ["trained", "untrained"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_no_answer(
    which: str,
    batch_size: int,
    words: PreTrainedTokenizerFast,
    tasks: made.Tasks,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(which)
    assert answers(model, words, tasks, batch_size=batch_size) == answers(model, words, tasks, batch_size=64)


def test_the_models_of_these_tests_say_enough_to_tell_them_apart(
    trained: Any, untrained: Any, words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    said = [text for found in answers(untrained, words, tasks, batch_size=64).values() for text in found.said]
    lengths = {len(text.split()) for text in said}
    assert len(set(said)) > 20
    assert max(lengths) == LIMIT - 1  # cut
    assert min(lengths) < LIMIT - 1  # ended by themselves
    learnt = answers(trained, words, tasks, batch_size=64)
    assert sum(len(set(found.said)) > 1 for found in learnt.values()) >= 3
    assert any(0 < accuracy(found) < 1 for found in learnt.values())


def test_values_are_those_of_plain_python_and_scipy(
    trained: Any, words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    found = answers(trained, words, tasks, batch_size=16)
    for name in ("cola", "mrpc", "sst2"):
        assert found[name].value == accuracy(found[name])
    numbers = [[float(text) for text in texts] for texts in (found["stsb"].said, found["stsb"].wanted)]
    assert found["stsb"].value == pytest.approx(spearmanr(*numbers).statistic, abs=1e-15)
    assert found["stsb"].value > 0


def test_wanted_is_the_labels_text_in_row_order(
    trained: Any, words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    found = answers(trained, words, tasks, batch_size=16)
    texts = {"cola": ["unacceptable", "acceptable"], "mrpc": ["no", "yes"], "sst2": ["negative", "positive"]}
    for name, by_label in texts.items():
        assert found[name].wanted == [by_label[label] for label in tasks[name][1]["label"]]
    assert found["stsb"].wanted == [f"{label:.1f}" for label in tasks["stsb"][1]["label"]]


def test_one_task_alone_is_answered_as_beside_the_others(
    trained: Any, words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    together = answers(trained, words, tasks, batch_size=16)
    assert answers(trained, words, {"cola": tasks["cola"]}, batch_size=16) == {"cola": together["cola"]}


def test_too_long_a_prompt_keeps_its_beginning_and_its_end_token(
    untrained: Any, words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    task, data = tasks["mrpc"]
    prompts = [task.prompt(row) for row in data]
    cut = answers(untrained, words, {"mrpc": tasks["mrpc"]}, batch_size=8, max_length=24)["mrpc"].said
    assert cut == directly(untrained, words, prompts, padding=True, max_length=24)
    assert cut != directly(untrained, words, prompts, padding=True)


def test_the_models_weights_stay_its_own(
    untrained: Any, words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    before = dict(untrained.named_parameters())
    values = {name: weight.clone() for name, weight in before.items()}
    assert not torch.equal(untrained.lm_head.weight, untrained.shared.weight)
    answers(untrained, words, tasks, batch_size=16)
    after = dict(untrained.named_parameters())
    assert all(after[name] is weight for name, weight in before.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert "tie_weights" not in vars(untrained)


@pytest.mark.keeps_rng
def test_nothing_random_no_network_and_nothing_printed(
    trained: Any,
    words: PreTrainedTokenizerFast,
    tasks: made.Tasks,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    metrics._module.cache_clear()
    first = answers(trained, words, tasks, batch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert answers(trained, words, tasks, batch_size=16) == first
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_causal_model_answers_what_it_generates_after_the_prompt(
    words: PreTrainedTokenizerFast, tasks: made.Tasks
) -> None:
    plain = made.tokenizer(eos=False)
    model = made.llama(plain)
    found = answers(model, plain, tasks, batch_size=7)
    assert answers(model, plain, tasks, batch_size=1) == found
    for name, (task, data) in tasks.items():
        for row, said in zip(data, found[name].said, strict=True):
            ids = plain(task.prompt(row), return_tensors="pt").input_ids
            end = model.generate(ids, max_new_tokens=LIMIT - 1, do_sample=False)[0, ids.shape[1] :]
            assert said == plain.decode(end, skip_special_tokens=True)
    lengths = {len(text.split()) for each in found.values() for text in each.said}
    assert min(lengths) < max(lengths) == LIMIT - 1


@pytest.mark.parametrize("kind", ["trained", "untrained", "causal", "stopped"])
def test_generated_tokens_are_those_of_the_answers(
    kind: str,
    words: PreTrainedTokenizerFast,
    tasks: made.Tasks,
    request: pytest.FixtureRequest,
) -> None:
    seq2seq = kind in ("trained", "untrained")
    tokenizer = words if seq2seq else made.tokenizer(eos=False)
    model = request.getfixturevalue(kind) if seq2seq else made.llama(tokenizer)
    ended = set()
    for name in ("cola", "stsb"):
        task, data = tasks[name]
        plain = answers(model, tokenizer, {name: (task, data)}, batch_size=64)[name].said
        if kind == "stopped":  # at a word that the model says
            stop = next(word for text in plain for word in text.split()[1:2])
            ends = task.generation_kwargs.model_copy(update={"until": [stop]})
            task = task.model_copy(update={"generation_kwargs": ends})
            plain = answers(model, tokenizer, {name: (task, data)}, batch_size=64)[name].said
        found = generated(model, tokenizer, task, data, batch_size=7, max_length=512)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in found]
        if kind == "stopped":
            assert any(text.endswith(stop) for text in texts)
            texts = [text.split(stop)[0] for text in texts]
        assert texts == plain
        assert all(len(ids) < LIMIT and 1 not in ids[:-1] for ids in found)
        ended |= {ids[-1:] == [1] for ids in found}
    assert (True in ended) == (kind != "untrained")  # which says all its tokens, padding among them


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_lm_eval_alone_reads_a_task_file_and_says_the_same(
    name: str, tasks: made.Tasks, tmp_path: Path
) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    plain = made.tokenizer(eos=False)
    model = made.llama(plain)
    task, data = tasks[name]
    data.to_json(tmp_path / "rows.jsonl")
    (tmp_path / "alone.yaml").write_text(
        f"include: {PROMPTS / 'glue8' / name}.yaml\ntask: alone\ndataset_path: json\ntest_split: train\n"
        f"dataset_kwargs:\n  data_files: {tmp_path / 'rows.jsonl'}\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    lm = HFLM(pretrained=model, backend="causal", tokenizer=plain, batch_size=16, max_length=512)
    stock = evaluator.evaluate(lm, manager.load(["alone"]), bootstrap_iters=0)
    ours = answers(model, plain, {name: (task, data)}, batch_size=16)[name]
    metric = {"accuracy": "exact_label", "spearman": "spearman_text"}[task.metric]
    assert stock["results"]["alone"][f"{metric},none"] == ours.value
    assert [sample["filtered_resps"][0] for sample in stock["samples"]["alone"]] == ours.said


def test_a_label_that_the_task_does_not_have_is_refused_before_anything_is_generated(
    words: PreTrainedTokenizerFast,
) -> None:
    data = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, -1]})
    with pytest.raises(UserError, match=r"^sst2: label -1 is none of the task glue8_sst2, 0\.\.1; "):
        answers(None, words, {"sst2": (read("glue8/sst2.yaml"), data)}, batch_size=1)


def test_data_without_a_field_of_the_prompt_or_without_rows_are_refused(
    words: PreTrainedTokenizerFast,
) -> None:
    task = read("glue8/rte.yaml")
    data = Dataset.from_dict({"sentence1": ["a"], "label": [0]})
    with pytest.raises(UserError, match="rte has no column 'sentence2'"):
        answers(None, words, {"rte": (task, data)}, batch_size=1)
    with pytest.raises(UserError, match="rte has no rows"):
        answers(None, words, {"rte": (task, data.select([]))}, batch_size=1)


PAIRS = [("yes", "yes"), ("yes", "Yes"), ("no", " no"), ("no", "no"), ("no", "")]


def test_exact_label_is_character_by_character() -> None:
    assert metrics.exact_label_value(PAIRS) == 2 / 5
    assert metrics.exact_label(["yes"], [" yes"]) == ("yes", " yes")


def test_spearman_text_is_scipys_with_unparsable_texts_as_zero() -> None:
    wanted = ["0.5", "2.0", "2.0", "4.8", "3.1", "1.2"]
    said = ["1.0", "five", "2.5", "4e0", "", "nan"]
    expected = spearmanr([1.0, 0.0, 2.5, 4.0, 0.0, 0.0], [float(text) for text in wanted]).statistic
    found = metrics.spearman_text_value(list(zip(wanted, said, strict=True)))
    assert found == pytest.approx(expected, abs=1e-15)
    assert 0.2 < found < 0.9


@pytest.mark.parametrize("said", [["3.0"] * 4, ["what"] * 4, ["inf"] * 4])
def test_spearman_text_of_a_constant_is_zero(said: list[str]) -> None:
    assert metrics.spearman_text_value(list(zip(["0.0", "1.0", "2.0", "3.0"], said, strict=True))) == 0.0


def test_spearman_text_reaches_both_ends() -> None:
    texts = [f"{number:.1f}" for number in np.linspace(-4, 4, 9)]
    assert metrics.spearman_text_value(list(zip(texts, texts, strict=True))) == pytest.approx(1.0)
    assert metrics.spearman_text_value(list(zip(texts, texts[::-1], strict=True))) == pytest.approx(-1.0)
