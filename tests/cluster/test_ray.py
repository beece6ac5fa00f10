"""A Ray cluster's workers compute what one process computes: ``nox -s cluster``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run.cells import Request
from benchmarks.run.executors import executor
from benchmarks.run.runner import run
from results.store.records import Record
from tests.fixtures.tiny_suite import TinySuite

ASKED = Request(
    merge=["task-arithmetic"],
    method=["rtn", "gptq", "epmq"],
    target=["merged"],
    bits=[4],
    controls=["zero-shot", "experts", "merged"],
    samples=[8],
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers' worth of CPUs on this machine; where it is busy, Ray's own deadlines may fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_gcs_server_request_timeout_seconds", "900")
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()


def untimed(record: Record) -> Record:
    return record.model_copy(update={"seconds": {}, "peak_memory_bytes": 0, "record_sha256": None})


@pytest.mark.filterwarnings("default")  # what Ray leaves open is not ours to fail on
def test_workers_give_the_records_of_one_process(tiny: TinySuite, tmp_path: Path, cluster: Any) -> None:
    alone = run(tiny.suite, ASKED, tmp_path / "alone", {})
    shared = run(tiny.suite, ASKED, tmp_path / "shared", {}, execute=executor("ray"))
    assert shared.records()[0].method == "experts", "the others' normalised accuracy needs it"
    one, other = ({r.key: untimed(r) for r in folder.records()} for folder in (alone, shared))
    assert one == other
    for key in one:
        files = [folder.path / "samples" / f"{key}.npz" for folder in (alone, shared)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert cluster.is_initialized(), "a cluster that was there before stays"
