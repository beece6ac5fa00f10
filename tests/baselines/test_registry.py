"""Finding methods: by name, by pattern, and those of installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import baselines
from baselines.contract import realistic_problem
from epmq import plugins
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from tests.fixtures.plugin_package import METHOD, NAME, run_with, write_package


def test_the_shipped_methods_are_found() -> None:
    assert {"awq", "gptq", "rtn"} <= set(baselines.names())
    assert baselines.names() == sorted(baselines.names())


def test_patterns_are_shell_style() -> None:
    assert "gptq" in baselines.names("gptq*")
    assert "rtn" not in baselines.names("gptq*")
    assert baselines.names("nothing*") == []


def test_a_method_knows_its_reference_and_summary() -> None:
    for name in baselines.names():
        method = baselines.get(name)
        assert method.name == name
        assert method.reference
        assert "\n" not in method.summary


def test_a_method_works_on_bare_tensors() -> None:
    found = baselines.get("gptq")(realistic_problem(), QuantSpec(bits=3))
    assert isinstance(found, QuantizedWeight)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="method 'gptqq' is unknown; did you mean 'gptq'"):
        baselines.get("gptqq")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(
        UserError, match=r"'rtn' of .* is already registered by baselines.roundings.rtn.rtn; rename it"
    ):

        @baselines.baseline("rtn", reference="none", summary="another")
        def another(problem: object, spec: object) -> QuantizedWeight:
            raise NotImplementedError


def test_an_installed_package_adds_a_method_under_the_contract(tmp_path: Path) -> None:
    """At most 20 lines and no edit here: it is listed, and the contract runs over it."""
    assert len(METHOD.strip().splitlines()) <= 20
    code = f"""
import baselines
from baselines.contract import check
assert {NAME!r} in baselines.names(), baselines.names()
check(baselines.get({NAME!r}))
print(baselines.get({NAME!r}).origin)
"""
    done = run_with(write_package(tmp_path), "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["row_best_rounding.row_best"]
    assert NAME not in baselines.names()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("import missing_module", "No module named 'missing_module'; repair or uninstall it"),
        ("1 / 0", "division by zero; repair or uninstall it"),
        (METHOD.replace("row-best", "rtn"), "'rtn' of broken_rounding.row_best is already registered by"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named(
    method: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[epmq.test]\nbroken = broken_rounding\n"
    files = {"broken_rounding.py": method, "broken-0.1.dist-info/entry_points.txt": points}
    monkeypatch.syspath_prepend(write_package(tmp_path, files))
    monkeypatch.delitem(sys.modules, "broken_rounding", raising=False)
    with pytest.raises(UserError, match="broken_rounding") as caught:
        plugins.load("epmq.test")
    assert message in str(caught.value)
