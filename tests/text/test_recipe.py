"""What the recipe of ``micro-glue-8`` promises: whole words, swaps that are where it says, rows that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.embedded.micro_glue_8.answers import answer_loss, encoded
from benchmarks.embedded.micro_glue_8.order import Swaps
from benchmarks.embedded.micro_glue_8.vocabulary import build_tokenizer
from benchmarks.embedded.micro_glue_8.weights import fixed_output
from benchmarks.suites import prompt
from tests.fixtures.tiny_t5 import tiny_t5

SENTENCES = ["A man rides a horse.", "Two dogs, one ball", "the the the", "Children sing in a bus"]
TASK = prompt.read("micro_glue_8/acceptability.yaml")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    corpus = [TASK.prompt({"sentence": s, "label": 1}) for s in SENTENCES] + list(TASK.choices or [])
    return build_tokenizer(corpus, pieces=160, scores=["-4.0", "0.5"])


def test_words_answers_and_scores_are_one_piece_each(tokenizer: Any) -> None:
    for text in ("horse", "unacceptable", "-4.0", "0.5"):
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == 1
    assert tokenizer.decode(tokenizer("Two dogs, one ball").input_ids, skip_special_tokens=True) == (
        "two dogs, one ball"
    )


def test_swaps_move_two_neighbours_and_say_where(tokenizer: Any) -> None:
    swaps = Swaps(tokenizer, TASK, SENTENCES, steps=3, batch=4)
    for step in range(3):
        before = swaps.asked.subset(swaps.drawn[step])
        part, taught = swaps.at(step)
        for i, (source, old) in enumerate(zip(part.sources, before.sources, strict=True)):
            moved = [k for k, label in enumerate(taught[i].tolist()) if label == 0]
            differ = [k for k, (a, b) in enumerate(zip(source, old, strict=True)) if a != b]
            assert sorted(source) == sorted(old)
            assert set(differ) <= set(moved)
            assert bool(moved) == bool(differ) == (i % 2 == 0 and "the the" not in tokenizer.decode(old))
            assert part.taught[i].tolist() == ([1.0, 0.0] if moved else [0.0, 1.0])


def test_sentences_alone_are_taught_at_each_piece(tokenizer: Any) -> None:
    swaps = Swaps(tokenizer, TASK, SENTENCES, steps=1, batch=4)
    part, taught = swaps.at(0)
    for source, row in zip(part.sources, taught, strict=True):
        labels = row.tolist()[: len(source)]
        said = tokenizer.decode([p for p, label in zip(source, labels, strict=True) if label >= 0])
        assert sorted(said.split()) in [sorted(s.lower().split()) for s in SENTENCES]


def test_only_read_words_move_and_kept_rows_do_not(tokenizer: Any) -> None:
    model = tiny_t5(vocab_size=len(tokenizer), num_layers=3).requires_grad_(True)
    kept = torch.tensor([0, 1, 2])
    before = model.shared.weight.detach().clone()
    fixed_output(model, kept, kept[:0])
    pairs = encoded(tokenizer, TASK, [{"sentence": SENTENCES[0], "label": 1}])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    answer_loss(model, pairs).backward()
    optimiser.step()
    moved = (model.shared.weight != before).any(1).nonzero()[:, 0].tolist()
    assert set(moved) == set(pairs.sources[0]) - set(kept.tolist())
