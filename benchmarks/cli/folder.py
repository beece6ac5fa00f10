"""``epmq verify | schema``: whether a results folder is what it says, and the form of its files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import results.store
from benchmarks.cli.paths import given_path
from benchmarks.cli.screen import show
from benchmarks.suites import schema as forms
from results.analysis.analysis import Analysis
from results.judge.verify import verify
from results.store.records import SCHEMA

STORED = ("record", "manifest")
SCHEMAS = Path(results.store.__file__).parent / "schema"


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
    checked = commands.add_parser(
        "verify", help="recompute a results folder from its per-sample files; exit status 1 on a failure"
    )
    checked.add_argument("folder", type=given_path, metavar="DIR")
    checked.add_argument("--json", action="store_true", help="machine-readable")
    checked.set_defaults(command=_verify)
    schema = commands.add_parser("schema", help="print the JSON Schema of a kind of file")
    schema.add_argument(
        "kind",
        choices=(*STORED, *forms.KINDS),
        help="of a results folder record and manifest, of what a run reads suite and task",
    )
    schema.set_defaults(command=_schema)


def _verify(options: argparse.Namespace) -> int:
    report = verify(Analysis.open(options.folder))
    show(json.dumps(report.as_json(), indent=2) if options.json else report.render())
    return int(report.failed)


def _schema(options: argparse.Namespace) -> int:
    if options.kind in STORED:
        show((SCHEMAS / f"{options.kind}-{SCHEMA}.schema.json").read_text(encoding="utf-8"))
    else:
        show(forms.schema(options.kind))
    return 0
