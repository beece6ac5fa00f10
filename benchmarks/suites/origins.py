"""``python -m benchmarks.suites.origins``: writes what the bundled suites read, by hash, for ``results``.

The entry of a suite's present version is written anew; those of earlier versions stay.
"""

from __future__ import annotations

import json

from benchmarks.suites import load as suites
from epmq.files import replacing
from results.store import origin


def updated() -> dict[str, dict[str, str]]:
    """The content of ``results/store/suites.json`` with every bundled suite as it is now."""
    found = {name: dict(versions) for name, versions in origin.known().items()}
    for suite in map(suites.load, suites.names()):
        found.setdefault(suite.name, {})[str(suite.version)] = suites.identity(suite)
    return found


def main() -> None:
    """Write the file."""
    with replacing(origin.FILE) as temporary:
        temporary.write_text(json.dumps(updated(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
