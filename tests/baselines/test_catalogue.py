"""The catalogue: every registered name once, with what it needs and where it is from."""

from __future__ import annotations

import re
from collections import Counter

import baselines
from baselines import catalogue, refinements
from baselines.controls import CONTROLS
from baselines.recipes import FAMILIAR, familiar
from epmq.merging import known

NEEDS = {"none", "Hessian", "outputs", "gradients"}


def test_every_registered_name_is_there_once() -> None:
    kinds = {
        catalogue.merges: known(),
        catalogue.roundings: baselines.names(),
        catalogue.methods: familiar(),
        catalogue.controls: CONTROLS,
        catalogue.trained: refinements.names(),
    }
    for entries, names in kinds.items():
        assert Counter(entry.name for entry in entries()) == Counter(list(names))


def test_every_entry_says_what_it_is() -> None:
    entries = [*catalogue.merges(), *catalogue.roundings(), *catalogue.methods(), *catalogue.controls()]
    for entry in [*entries, *catalogue.trained()]:
        assert entry.family, entry.name
        assert entry.needs in NEEDS, entry.name
        assert entry.summary, entry.name
        assert "\n" not in "".join(entry.row.values()), entry.name
        assert re.fullmatch(r"(arXiv:\d{4}\.\d{4,5}|https://\S+|folklore|)", entry.reference), entry.name
    assert all(entry.reference for entry in (*catalogue.merges(), *catalogue.roundings()))


def test_needs_are_those_of_the_dearest_part() -> None:
    found = {e.name: e.needs for e in (*catalogue.roundings(), *catalogue.methods(), *catalogue.controls())}
    assert found["rtn"] == found["merged"] == "none"
    assert found["epmq-rtn"] == found["gptq"] == found["gptaq"] == found["merged-auto-gptq"] == "Hessian"
    assert found["merged-auto"] == "outputs"
    assert found["distilled"] == found["epmq-qat"] == "gradients"


def test_families_follow_from_parts() -> None:
    found = {e.name: e.family for e in (*catalogue.methods(), *catalogue.controls())}
    assert {found[name] for name in ("qep", "gptaq", "gptq-compensated")} == {"error compensation"}
    assert {found[name] for name in ("epmq", "featcal-gptq", "regmean", "two-step")} == {"expert target"}
    assert {found[name] for name in ("experts", "zero-shot", "merged")} == {"bound"}
    assert found["epmq-auto"] == "chosen on samples"
    assert found["gptq-tuned"] == "refined end to end"


def test_settings_are_the_axes_and_the_options() -> None:
    (features,) = [entry for entry in catalogue.methods() if entry.name == "epmq-features"]
    assert features.settings == FAMILIAR["epmq-features"].passes[0].defaults
    (ties,) = [entry for entry in catalogue.merges() if entry.name == "ties"]
    assert ties.settings == {"scale": 0.3, "keep": 0.2}
    assert "Args:" not in ties.about
    assert "Elect" in ties.about
