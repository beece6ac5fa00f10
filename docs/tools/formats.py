"""The table of which packed checkpoints load where, from the files that ``nox -s formats`` writes."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from tabulate import tabulate

from docs.tools.records import ROOT
from epmq.errors import UserError

FOLDER = ROOT / "docs" / "formats"
WRONG = 1e-4  # a greater difference of outputs is no rounding


def table() -> str:
    """A line for each model and grid, a column for each pair of versions, then why some do not load.

    Raises:
        UserError: no file was written.
    """
    found = sorted((json.loads(file.read_bytes()) for file in FOLDER.glob("*.json")), key=_newest)
    if not found:
        raise UserError(f"{FOLDER}: holds no file; run 'nox -s formats'")
    reasons: list[str] = []
    columns = [_column(each["cases"], reasons) for each in found]
    heads = [_versions(each) for each in found]
    rows = [[*key, *(column[key] for column in columns)] for key in columns[0]]
    text = tabulate(rows, ("model", "zero points", "scales", *heads), "github", disable_numparse=True)
    notes = [f"{number}. `{reason}`" for number, reason in enumerate(reasons, 1)]
    return "\n\n".join([text, *(["Does not load:", "\n".join(notes)] if notes else [])])


def _newest(found: dict[str, Any]) -> list[int]:
    return [-int(part) for part in found["versions"]["transformers"].split(".") if part.isdecimal()]


def _versions(found: dict[str, Any]) -> str:
    names = ("transformers", "compressed-tensors")
    return ", ".join(f"{name} {found['versions'][name]}" for name in names)


def _column(cases: list[dict[str, Any]], reasons: list[str]) -> dict[tuple[str, ...], str]:
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: (case["model"], not case["symmetric"], case["groups"])):
        zeros = "none (symmetric)" if case["symmetric"] else "asymmetric"
        grouped[case["model"], zeros, "groups" if case["groups"] else "channel"].append(case)
    return {key: _cell(sorted(each, key=lambda case: case["bits"]), reasons) for key, each in grouped.items()}


def _cell(cases: list[dict[str, Any]], reasons: list[str]) -> str:
    """Bits with the greatest difference of outputs, or with the number of the reason that they fail."""
    outcomes: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        outcomes[_outcome(case, reasons)].append(str(case["bits"]))
    return "; ".join(f"{', '.join(bits)} bits: {outcome}" for outcome, bits in outcomes.items())


def _outcome(case: dict[str, Any], reasons: list[str]) -> str:
    if "error" not in case:
        found = case["difference"]
        return "0.0" if not found else f"{found:.1g}" if found < WRONG else f"**wrong** ({found:.1g})"
    reason = _general(case["error"])
    if reason not in reasons:
        reasons.append(reason)
    return f"no ({reasons.index(reason) + 1})"


def _general(error: str) -> str:
    """An error without the numbers of one case."""
    error = "".join("N" if letter.isdecimal() else letter for letter in error.partition(" for weight_")[0])
    while "NN" in error:
        error = error.replace("NN", "N")
    return error.replace("`", "'")[:160]
