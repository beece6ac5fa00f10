"""What a text suite's calibration reads besides the prompts: the experts' answers, targets, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.suites.forms import TextSuite
from benchmarks.text import evaluation
from benchmarks.text.workbench import TextWorkbench
from tests.fixtures.tiny_text import TASKS, TinyText


def unlabelled_bench(suite: TextSuite) -> TextWorkbench:
    """A bench whose training labels are all 0."""
    bench = TextWorkbench(suite)
    for task in suite.tasks:
        key = task.task, task.dataset.train_split
        rows: Dataset = bench._splits[key]
        bench._splits[key] = rows.map(lambda row: {"label": type(row["label"])(0)})
    return bench


@pytest.mark.parametrize(("decoder", "reads"), [("start", False), ("experts", False), ("targets", True)])
def test_only_targets_read_labels(decoder: str, reads: bool, tiny_text: TinyText) -> None:
    found = TextWorkbench(tiny_text.suite).calibration_inputs(6, 0, decoder)
    other = unlabelled_bench(tiny_text.suite).calibration_inputs(6, 0, decoder)
    alike = [all(same(a, b) for a, b in zip(found[name], other[name], strict=True)) for name in TASKS]
    assert alike == [not reads] * len(TASKS)
    longest = [max(x["decoder_input_ids"].shape[1] for x in found[name]) for name in TASKS]
    assert all((length > 1) == (decoder != "start") for length in longest)


def test_by_default_the_decoder_reads_what_each_tasks_expert_generates(tiny_text: TinyText) -> None:
    bench = TextWorkbench(tiny_text.suite)
    assert bench.calibration_inputs(6, 0) is not None
    for task in bench.suite.tasks:
        expert = bench.tower.load_all(bench.models.experts[task.task]).model
        wanted = set()
        for i in bench.sample_ids(task, 6, 0):
            text = bench._tasks[task.task].prompt(bench.rows(task, "train")[i])
            prompt = bench.models.tokenizer(text, return_tensors="pt").input_ids
            said = expert.generate(prompt, max_new_tokens=4, do_sample=False)[0].tolist()
            wanted.add((tuple(prompt[0].tolist()), tuple(said[:-1])))
        assert read_pairs(bench.calibration_inputs(6, 0)[task.task]) == wanted


def test_the_experts_answer_once_and_leave_the_merge_in_its_place(
    tiny_text: TinyText, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    own = evaluation.generated

    def seen(*given: Any, **options: Any) -> list[list[int]]:
        asked.append(given[2].name)
        return own(*given, **options)

    monkeypatch.setattr(evaluation, "generated", seen)
    bench = TextWorkbench(tiny_text.suite)
    tower = bench.merged("task-arithmetic", {"scale": 0.3})
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    for draw in (0, 1, 0, 1):
        bench.calibration_inputs(6, draw)
    assert asked == ["tiny_warm", "tiny_kind", "tiny_score"] * 2
    assert all(torch.equal(before[name], p) for name, p in tower.named_parameters())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_teacher_forcing_gives_the_decoder_its_own_target_shifted(tiny_text: TinyText) -> None:
    bench = TextWorkbench(tiny_text.suite)
    task = bench.suite.tasks[0]
    ids = bench.sample_ids(task, 6, 0)
    rows = [bench.rows(task, "train")[i] for i in ids]
    model, tokenizer = bench.models.tower.model, bench.models.tokenizer
    wanted = set()
    for row in rows:
        labels = tokenizer(["no", "yes"][row["label"]], return_tensors="pt").input_ids
        shifted = model._shift_right(labels)[0].tolist()
        prompt = tokenizer(f"Is {row['sentence']} warm? Answer yes or no.").input_ids
        wanted.add((tuple(prompt), tuple(shifted)))
    assert read_pairs(bench.calibration_inputs(6, 0, "targets")["warm"]) == wanted


def read_pairs(batches: Any) -> set[Any]:
    """What encoder and decoder read, sample by sample, without padding."""
    found = set()
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            pairs = [(f"{p}input_ids", f"{p}attention_mask") for p in ("", "decoder_")]
            found.add(tuple(tuple(batch[x][i][batch[m][i].bool()].tolist()) for x, m in pairs))
    return found
