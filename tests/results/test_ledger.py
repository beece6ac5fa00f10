"""The ledger holds what the paper and the public sources state, and nothing that they do not."""

from __future__ import annotations

import pytest

from results.paper import ledger
from results.paper.ledger import Quantity


def test_the_headline_numbers_are_the_abstracts() -> None:
    assert {(h.id, h.suite, h.merge, h.bits, h.baseline_value, h.epmq_value) for h in ledger.headlines()} == {
        ("b32-8-ta-w4", "clip-vit-b32-8", "task-arithmetic", 4, 65.0, 73.6),
        ("b32-8-ties-w4", "clip-vit-b32-8", "ties", 4, 69.1, 74.8),
        ("l14-20-w4", "clip-vit-l14-20", None, 4, 34.8, 76.7),
        ("glue-w4", "flan-t5-base-glue8", None, 4, 78.26, 83.34),
    }
    assert all(headline.source.startswith("arXiv:2605.16882") for headline in ledger.headlines())


def test_what_the_abstract_does_not_state_is_said() -> None:
    notes = {headline.id: headline.note for headline in ledger.headlines()}
    assert notes["b32-8-ta-w4"] == ""
    assert notes["glue-w4"] == "merge not stated in the abstract; bits 4 (not restated)"
    assert "likely reading" in notes["l14-20-w4"]


def test_there_are_the_papers_four_claims_and_our_own_each_with_a_check_and_a_source() -> None:
    assert [claim.id for claim in ledger.claims()] == ["C1", "C2", "C3", "C4", "C5"]
    assert [claim.id for claim in ledger.claims() if not claim.source.startswith("arXiv")] == ["C5"]
    assert all(claim.text and claim.check and claim.source for claim in ledger.claims())


def test_every_published_bound_has_a_source_and_a_plausible_value() -> None:
    bounds = ledger.bounds()
    assert len(bounds) == 133
    assert all(bound.source and 0 < bound.value < 100 for bound in bounds)
    assert all(0 <= value <= 100 for bound in bounds for value in bound.per_task.values())


def test_an_average_that_disagrees_with_its_row_is_suspect() -> None:
    for bound in ledger.bounds():
        if bound.per_task:
            mean = sum(bound.per_task.values()) / len(bound.per_task)
            assert bound.average_recomputed == pytest.approx(mean, abs=1e-4), bound
            assert bound.suspect == (abs(bound.average - mean) > 0.1), bound
    assert sum(bound.suspect for bound in ledger.bounds()) == 3


def test_a_quantity_that_is_published_twice_has_its_newest_entry_first() -> None:
    entries = ledger.repeats("clip-vit-b32-8")
    task_arithmetic = entries[Quantity("merged", "task-arithmetic", 0.3)]
    assert [entry.value for entry in task_arithmetic] == [67.5481, 68.0125, 68.007]
    assert [entry.value for entry in entries[Quantity("zero-shot", None, None)]] == [48.0806, 48.2375, 48.25]


def test_suspect_entries_count_for_nothing() -> None:
    used = [entry for suite in ledger.suites() for some in ledger.repeats(suite).values() for entry in some]
    assert not any(entry.suspect for entry in used)
    averages = ledger.repeats("flan-t5-base-glue8-lora16")
    assert Quantity("merged", "simple-average", None) not in averages


@pytest.mark.parametrize(
    ("suite", "points"),
    [
        ("clip-vit-b32-8", 68.0125 - 67.5481),
        ("clip-vit-l14-8", 64.925 - 64.6125),
        ("clip-vit-l14-20", 65.6069 - 65.6065),
        ("flan-t5-base-glue8", 75.7352 - 75.725),
        ("clip-vit-l14-14", 0.0),
        ("micro-clip-8", 0.0),
    ],
)
def test_the_known_disagreement_is_the_largest_spread_of_one_quantity(suite: str, points: float) -> None:
    assert ledger.disagreement(suite) == pytest.approx(points, abs=1e-9)


def test_eurosat_is_the_task_that_public_reproductions_disagree_on() -> None:
    tasks = ledger.repeats("clip-vit-b32-8")[Quantity("zero-shot", None, None)][0].per_task
    disagreements = {task: ledger.task_disagreement("clip-vit-b32-8", task) for task in tasks}
    assert max(disagreements, key=disagreements.__getitem__) == "eurosat"
    assert disagreements["eurosat"] == pytest.approx(76.74 - 73.2963, abs=0.01)
    assert disagreements["svhn"] < 0.1
