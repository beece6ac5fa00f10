"""The plan of a run: what is known of it beforehand, and what is said to be unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.run import plan as plans
from benchmarks.run.cells import Request, expand
from benchmarks.run.plan import Download, Plan
from benchmarks.sources import lock as locks
from benchmarks.suites import load as suites
from benchmarks.suites.forms import Suite
from benchmarks.suites.towers import TowerSpec
from benchmarks.workbench.machine import Machine
from tests.fixtures.pinned_replica import BASE, SAFE, Replica, described, lock_of, write_repositories
from tests.hub.server import Hub


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "PROBE_SECONDS", 0.01)


def planned(suite: Suite, **options: object) -> Plan:
    request = {**suites.options(suite, "default"), **options}
    return plans.plan(suite, expand(Request(**request)), None, Machine())


def line(plan: Plan, start: str) -> str:
    return " ".join(next(row for row in str(plan).splitlines() if row.startswith(start)).split())


@pytest.mark.parametrize(
    ("name", "parameters", "flops"),
    [("clip-vit-b32-8", 87_456_000, 8.7e9), ("clip-vit-l14-20", 303_179_776, 162e9)],
)
def test_the_towers_have_the_published_sizes(name: str, parameters: int, flops: float) -> None:
    """Parameters: those of the merged checkpoints. Operations: 4.4 and 81 G multiply-adds per image."""
    tower = suites.load(name).tower
    assert tower is not None
    assert tower.parameters == parameters
    assert tower.flops == pytest.approx(flops, rel=0.02)


def test_flan_t5_base_has_the_published_size() -> None:
    """247,577,856 parameters, of which 48,384 are norms and relative position biases."""
    tower = suites.load("flan-t5-base-glue8").tower
    assert tower is not None
    assert tower.parameters == 247_577_856 - 48_384


def test_a_text_suite_keeps_merges_and_decodes_nothing() -> None:
    plan = planned(suites.load("flan-t5-base-glue8"))
    assert line(plan, "disk") == "disk 3.0 GB 3 merges in float32"
    assert len(plan.downloads) == 9 + 1, "eight configurations of one repository"


def test_a_bundled_suite_downloads_nothing() -> None:
    text = str(planned(suites.load("micro-clip-8")))
    assert "micro-clip-8, version 1: 93 cells" in text
    assert "Downloads: none" in text


def test_without_a_hub_or_a_lock_sizes_are_unknown() -> None:
    plan = planned(suites.load("clip-vit-b32-8"))
    assert len(plan.downloads) == 9 + 8
    assert line(plan, "tanganke/sun397 ").startswith("tanganke/sun397 unknown unknown unknown")
    assert line(plan, "together") == "together unknown unknown"


def test_disk_is_that_of_the_decoded_images() -> None:
    suite = suites.load("clip-vit-b32-8")
    images = 19850 + 8041 + 6300 + 2700 + 26032 + 12630 + 10000 + 1880
    expected = (images + 8 * 256) * 3 * 224 * 224
    assert line(planned(suite), "disk").startswith(f"disk {expected / 1e9:.1f} GB {images} test and 2048 cal")
    uncalibrated = planned(suite, method=["rtn"], controls=["merged"], samples=[16])
    assert f"and {8 * 16} calibration" in line(uncalibrated, "disk")


def test_time_grows_with_cells_and_shrinks_with_the_rate() -> None:
    suite = suites.load("clip-vit-b32-8")
    cells = expand(
        Request(**{**suites.options(suite, "default"), "method": [], "controls": ["zero-shot", "merged"]})
    )
    assert suite.tower
    flops = 3 * 87433 * suite.tower.flops
    plan = Plan(suite, cells, [], rate=1e12, machine=Machine())
    assert line(plan, "time, evaluation").startswith(f"time, evaluation {flops / 1e12 / 60:.1f} min")
    assert line(plan, "time, calibration").startswith("time, calibration 0.0 s")
    assert line(plan, "time, the rest").startswith("time, the rest unknown")
    assert "1e+12 operations per second, that of a float32 matrix product measured now on cpu" in str(plan)


def test_following_the_experts_doubles_calibration() -> None:
    suite = suites.load("clip-vit-b32-8")
    tower = TowerSpec(image_size=8, patch_size=4, width=8, layers=2, mlp_width=16)
    request = {**suites.options(suite, "default"), "bits": [4], "merge": ["ties"], "controls": []}
    cost = {
        method: plans._calibration_flops(expand(Request(**{**request, "method": [method]}))[0], tower, 8)
        for method in ("epmq", "epmq-features")
    }
    assert cost["epmq-features"] == 2 * cost["epmq"] > 0


def test_a_suite_without_a_tower_leaves_the_estimates_out() -> None:
    suite = suites.load("micro-clip-8").model_copy(update={"tower": None})
    assert "Disk, memory and time: unknown" in str(planned(suite))


def test_one_unknown_size_makes_the_sum_unknown() -> None:
    parts = [Download("a/b", "c" * 40, 10, 10), Download("c/d", "unknown", None, None, "offline")]
    plan = Plan(suites.load("micro-clip-8"), [], parts, 1e9, Machine())
    assert line(plan, "a/b") == "a/b cccccccccccc 10 B 10 B"
    assert line(plan, "together") == "together unknown unknown"


PLAN = """
from benchmarks.run import plan
from benchmarks.workbench.machine import Machine
plan.PROBE_SECONDS = 0.01
def rows(found):
    return {d.name: [d.revision, d.size, d.cached, d.remark] for d in found.downloads}
pinned = lock.read(path)
first = rows(plan.plan(suite, [], pinned, Machine()))
free = rows(plan.plan(suite, [], None, Machine()))
Sources(suite, pinned).model(suite.base, WEIGHTS)
print(json.dumps([first, free, rows(plan.plan(suite, [], pinned, Machine()))]))
"""


def test_sizes_come_from_the_lock_or_the_hub_and_no_file_is_downloaded(tmp_path: Path) -> None:
    write_repositories(tmp_path / "content")
    with Hub(tmp_path / "content") as hub:
        replica = Replica(hub, tmp_path)
        replica.suite_file.write_text(json.dumps(described()), "utf-8")
        replica.lock.write_text(lock_of(hub, replica.suite).model_dump_json())
        pinned, newest, fetched = replica.script(PLAN)
        lock = locks.read(replica.lock)
        sizes = {name: sum(f.size for f in repo.files.values()) for name, repo in lock.models.items()}
        heads = {name: hub.head(f"models/{name}") for name in sizes}
        assert {name: pinned[name] for name in sizes} == {n: [heads[n], sizes[n], 0, ""] for n in sizes}
        assert {name: newest[name] for name in sizes} == {
            n: [heads[n], sizes[n], 0, "newest, not pinned"] for n in sizes
        }
        pcam = [pinned["1aurent/PatchCamelyon"][1], newest["1aurent/PatchCamelyon"][1]]
        assert 0 < pcam[0] < pcam[1], "the lock leaves out the split that is not used"
        assert {file.rpartition("/")[0] for file in hub.downloaded()} == {BASE}
        assert (fetched[BASE][2], fetched[SAFE][2]) == (sizes[BASE], 0)
