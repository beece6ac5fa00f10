"""C3 is judged on the rounding's own part, under every draw, and not without any rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.store.records import LayerResult
from tests.fixtures.claims import (
    FEATURES,
    both,
    epmq,
    gptq,
    judged,
    layers,
    only,
)


def test_c3_is_supported_where_the_deviations_trade_off(tmp_path: Path) -> None:
    plain = gptq("g", both(0.6, 0.6), layers=layers(E=11, R=1, M=10, C=10))
    guided = epmq("e", both(0.6, 0.6), layers=layers(E=6, R=2, M=10))
    finding = only(judged(tmp_path, "C3", plain, guided))
    assert (finding.outcome, finding.value, len(finding.details)) == ("passes", 10, 10)
    assert finding.details[0]["cos"] == pytest.approx((6 - 5 - 2) / (2 * (5 * 2) ** 0.5))
    assert finding.details[0]["gptq cos"] == 0.0
    assert finding.note == "E/M 0.60, gptq 1.10; R/M 0.20, gptq 0.10; cos -0.16, gptq 0.00; one draw"


@pytest.mark.parametrize(
    "guided", [layers(E=12, R=4, M=10), layers(E=6, R=0.5, M=10)], ids=["experts farther", "both lower"]
)
def test_c3_is_not_supported_elsewhere(tmp_path: Path, guided: list[LayerResult]) -> None:
    plain = gptq("g", both(0.6, 0.6), layers=layers(E=11, R=1, M=10))
    assert judged(tmp_path, "C3", plain, epmq("e", both(0.6, 0.6), layers=guided)).overall == "not supported"


@pytest.mark.parametrize("rounding", [0.0, 1e-9, None], ids=["unrounded", "round-off", "not recorded"])
def test_c3_does_not_pass_without_any_quantisation(tmp_path: Path, rounding: float | None) -> None:
    plain = gptq("g", both(0.6, 0.6), layers=layers(E=11, R=1, M=10))
    centre = epmq("e", both(0.7, 0.7), layers=layers(E=5, R=rounding, M=10))
    assert judged(tmp_path, "C3", plain, centre).overall == "not measured"


def test_c3_of_reading_b_alone_does_not_hide_that_a_is_not_measured(tmp_path: Path) -> None:
    plain = gptq("g", both(0.6, 0.6), layers=layers(E=11, R=1, M=10))
    features = epmq("b", both(0.6, 0.6), layers=layers(E=6, R=2, M=10), axes=FEATURES)
    old = epmq("a", both(0.6, 0.6), layers=layers(E=6, R=None, M=10))
    verdict = judged(tmp_path, "C3", plain, old, features)
    assert verdict.readings == {"epmq": "not measured", "epmq-features": "supported"}
    assert verdict.overall == "supported"


def test_c3_cannot_tell_where_draws_differ(tmp_path: Path) -> None:
    cells = []
    for seed, R in enumerate((2.0, 0.5)):
        cells += [
            gptq(f"g{seed}", both(0.6, 0.6), seed=seed, layers=layers(E=11, R=1, M=10)),
            epmq(f"e{seed}", both(0.6, 0.6), seed=seed, layers=layers(E=6, R=R, M=10)),
        ]
    finding = only(judged(tmp_path, "C3", *cells))
    assert finding.outcome == "cannot tell"
    assert "depends on the draw" in finding.note


def test_c3_leaves_out_layers_without_deviations(tmp_path: Path) -> None:
    bare = [LayerResult(name="bare", rows=8, columns=4, objective=0.25)]
    untouched = layers(E=3, R=3, M=1e-11, count=1)  # a layer that no LoRA adapter changes, and its noise
    none = [*untouched, *bare]
    cells = [gptq("g", both(0.6, 0.6), layers=none), epmq("e", both(0.6, 0.6), layers=none)]
    assert judged(tmp_path, "C3", *cells).overall == "not measured"
