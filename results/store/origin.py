"""Which suite results are of: by the hash of what it reads (tasks, data, models, prompts), never by its name.

``suites.json`` has that hash of every version of the bundled suites;
``python -m benchmarks.suites.origins`` writes it. Suites of anybody else have a name with a namespace,
``OWNER/NAME``, or ``local/NAME`` where their file gives none.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from results.store.records import Manifest

FILE = Path(__file__).parent / "suites.json"


@cache
def known() -> dict[str, dict[str, str]]:
    """Hashes of what the bundled suites read, by name and version."""
    found: dict[str, dict[str, str]] = json.loads(FILE.read_text("utf-8"))
    return found


def suite_of(suite_sha256: str | None) -> str | None:
    """The bundled suite that reads this, by name; None where none does, or where nothing is told."""
    names = (name for name, versions in known().items() if suite_sha256 in versions.values())
    return next(names, None) if suite_sha256 else None


def complaint(manifest: Manifest) -> str | None:
    """What is wrong with a folder that has a bundled suite's name and is not of it; None where nothing is.

    A rehearsal has the name of what it rehearses; results that do not tell what was read are not accused.
    """
    versions, found = known().get(manifest.suite), manifest.suite_sha256
    if versions is None or found is None or manifest.rehearsal or found in versions.values():
        return None
    return (
        f"is called {manifest.suite} and is of another suite: its tasks, data, models or prompts "
        f"(SHA-256 {found[:12]}...) are not those of the {manifest.suite} of epmq"
    )
