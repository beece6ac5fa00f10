"""Methods by name: those of the registry, and what happens without one."""

from __future__ import annotations

import pytest

import baselines
import epmq
from baselines.recipes import familiar
from epmq import methods


def test_every_listed_method_has_its_rounding() -> None:
    assert methods.known().keys() == {
        *baselines.names(),
        *(name for name, recipe in familiar().items() if recipe.after is None and recipe.search is None),
    }
    assert methods.known()["epmq-awq"].rounding is baselines.get("awq")


def test_without_a_provider_names_are_refused_and_functions_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "ENTRY_POINT_GROUP", "epmq.nothing")
    methods.known.cache_clear()
    try:
        with pytest.raises(epmq.UserError, match="no installed package provides methods by name"):
            methods.chosen("gptq", None)
        assert methods.chosen(baselines.get("rtn"), None) == (baselines.get("rtn"), epmq.Calibration())
    finally:
        methods.known.cache_clear()
