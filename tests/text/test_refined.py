"""Refinement of language models: the answer's positions, and what the descent reaches on a tiny T5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines import refinements
from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from benchmarks.text.inputs import Encoder
from benchmarks.text.workbench import TextWorkbench
from epmq.refinement.budget import Budget
from epmq.refinement.objective import AnswerDivergence, answer_positions, outputs
from tests.fixtures.tiny_text import TinyText

BUDGET = Budget(steps=30, batch=4, learning_rate=3e-3, warmup=3, intermediate=0.0)


def test_lessons_are_the_experts_distributions_over_their_answers(tiny_text: TinyText) -> None:
    bench = TextWorkbench(tiny_text.suite)
    lessons = bench.lessons(6, 0, None, BUDGET)
    assert bench.lessons(6, 0, None, replace(BUDGET, steps=1)) is lessons
    for task, rows in lessons.rows.items():
        batch = rows.take(torch.arange(6))
        bench.tower.load_all(bench.models.experts[task])
        with torch.no_grad():
            likely = outputs(bench.tower, batch)[0].softmax(-1)
        counts = answer_positions(batch)
        for i, taught in enumerate(lessons.taught[task]):
            own = likely[i, : len(taught["share"])]
            torch.testing.assert_close(taught["share"], own.gather(-1, taught["token"]))
            assert taught["counts"][: int(counts[i].sum())].all()


@pytest.mark.parametrize("name", refinements.names())
def test_the_divergence_on_held_out_samples_falls(tiny_text: TinyText, name: str) -> None:
    bench = TextWorkbench(tiny_text.suite)
    tower = bench.merged("task-arithmetic", {"scale": 0.3})
    lessons = bench.lessons(16, 0, None, BUDGET)
    tower = bench.merged("task-arithmetic", {"scale": 0.3})
    points = refinements.get(name)(tower, {}, lessons, BUDGET).curve.points
    assert min(point.held_out for point in points) < 0.9 * points[0].held_out


def test_refined_rows_of_a_text_suite(tiny_text: TinyText, tmp_path: Path) -> None:
    request = Request(
        merge=["task-arithmetic"],
        method=["gptq", "gptq-tuned", "epmq-qat"],
        target=["merged"],
        bits=[3],
        controls=["experts", "distilled", "distilled-gptq"],
        samples=[8],
        refinement={"steps": 4, "batch": 2},
    )
    folder = run(tiny_text.suite, request, tmp_path, {})
    found = {record.method: record for record in folder.records()}
    assert {"gptq-tuned", "epmq-qat", "distilled", "distilled-gptq"} <= found.keys()
    assert found["gptq-tuned"].packed_bytes == found["gptq"].packed_bytes
    assert found["gptq-tuned"].axes["after.intermediate"] == 0.0
    assert found["distilled"].bits is None
    assert found["distilled"].refinements["before"].points


def words(texts: list[str], **_: object) -> SimpleNamespace:
    """A tokenizer of words, by their length."""
    return SimpleNamespace(input_ids=[[len(word) for word in text.split()] for text in texts])


TASK: Any = SimpleNamespace(
    config={"generation_kwargs": {"max_gen_toks": 2}},
    prompt=lambda row: row.partition("|")[0],
    target=lambda row: row.partition("|")[2],
)


def test_the_answers_positions_of_a_causal_model_are_those_that_predict_it() -> None:
    """Of the last prompt token the next is the answer's first; the answer's last token is not read."""
    words.pad_token_id = 0  # type: ignore[attr-defined]
    encoder = Encoder(words, SimpleNamespace(is_encoder_decoder=False), 16)
    rows = ["a bb ccc", "dd"]
    (batch,) = encoder.generated(TASK, rows, torch.device("cpu"), [[7, 8, 1], [9, 1]])
    order = [row.index(9) if 9 in row else -1 for row in batch["input_ids"].tolist()]
    short, long = (0, 1) if order[0] >= 0 else (1, 0)
    assert batch["input_ids"][long].tolist() == [1, 2, 3, 7, 8]
    assert batch["answer_mask"][long].tolist() == [0, 0, 1, 1, 1]
    assert batch["input_ids"][short].tolist() == [2, 9, 0, 0, 0]
    assert batch["answer_mask"][short].tolist() == [1, 1, 0, 0, 0]
    (read,) = encoder.targets(TASK, ["a bb|ccc", "dd|e"], torch.device("cpu"))
    assert read["answer_mask"].sum(1).tolist() == [1, 1]


def test_a_causal_models_objective_counts_the_answer_alone() -> None:
    mask = torch.tensor([[0, 1, 1, 0]])
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 0]]), "answer_mask": mask}
    one, other = torch.randn(2, 1, 4, 9, generator=torch.Generator().manual_seed(0)).unbind(0)
    objective = AnswerDivergence(9)
    whole = objective.distance(other, objective.teach(one, [], batch), batch)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    torch.testing.assert_close(whole, (p.exp() * (p - q)).sum(-1)[:, 1:3].mean(1))
