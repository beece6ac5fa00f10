"""What pinning refuses: repositories that are not what the suite says. What an unpinned run takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.pinned_replica import BASE, Replica, described, write_repositories
from tests.hub.server import Hub

SCRIPT = """
from benchmarks.sources import pin
from benchmarks.suites.load import ClipSuite

def complaint(edit):
    content = suite.model_dump()
    edit(content, content["tasks"][0], content["tasks"][0]["dataset"])
    try:
        pin.pin(ClipSuite.model_validate(content), Path(path.parent, "refused.json"))
    except UserError as error:
        return str(error)

said = {
    "split": complaint(lambda s, t, d: d.update(eval_split="holdout")),
    "config": complaint(lambda s, t, d: d.update(config="other")),
    "column": complaint(lambda s, t, d: d.update(label_column="cls")),
    "samples": complaint(lambda s, t, d: d.update(eval_size=99)),
    "classes": complaint(lambda s, t, d: t.update(class_names=["one"])),
    "data": complaint(lambda s, t, d: d.update(path="nobody/nothing")),
    "model": complaint(lambda s, t, d: s.update(base="nobody/nothing")),
    "weights": complaint(lambda s, t, d: t.update(expert="nobody/empty")),
}
free = Sources(suite, None)
task = suite.tasks[0]
files = free.arguments(task, "test")["data_files"]
said["unpinned"] = [
    pin.lock_for_run(suite, path, unpinned=True),
    free.model(suite.base, WEIGHTS).revision,
    free.dataset_revision(task),
    {name: [Path(file).name for file in there] for name, there in files.items()},
]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("refusals")
    write_repositories(folder / "content")
    (folder / "content" / "models" / "nobody" / "empty").mkdir(parents=True)
    (folder / "content" / "models" / "nobody" / "empty" / "README.md").write_text("no weights")
    with Hub(folder / "content") as hub:
        replica = Replica(hub, folder)
        replica.suite_file.write_text(json.dumps(described()), "utf-8")
        yield hub, replica.script(SCRIPT)


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        (
            "split",
            "data set 1aurent/PatchCamelyon has no split 'holdout' at commit {pcam}, only train, valid, test",
        ),
        ("config", "data set 1aurent/PatchCamelyon: BuilderConfig 'other' not found"),
        (
            "column",
            "data set pcam (1aurent/PatchCamelyon, train) has no column 'cls', only ['image', 'label']",
        ),
        ("samples", "data set pcam (1aurent/PatchCamelyon, test) has 40 samples, the suite says 99"),
        (
            "classes",
            "data set pcam (1aurent/PatchCamelyon, train) has labels 0 to 1, the suite has 1 classes",
        ),
        ("data", "dataset nobody/nothing cannot be downloaded ("),
        ("model", "model nobody/nothing cannot be downloaded ("),
        ("weights", "model nobody/empty holds no weights at commit {empty}"),
    ],
)
def test_pinning_refuses(said: tuple[Hub, dict[str, Any]], case: str, complaint: str) -> None:
    hub, found = said
    heads = {"pcam": hub.head("datasets/1aurent/PatchCamelyon"), "empty": hub.head("models/nobody/empty")}
    assert found[case].startswith(complaint.format(**{name: head[:12] for name, head in heads.items()}))


@pytest.mark.parametrize("case", ["data", "model"])
def test_a_repository_that_is_gone_is_said_to_be(said: tuple[Hub, dict[str, Any]], case: str) -> None:
    assert "it was moved, deleted or made private: correct the id in the suite" in said[1][case]


def test_an_unpinned_run_takes_the_newest_commits(said: tuple[Hub, dict[str, Any]]) -> None:
    hub, found = said
    lock, base, data, files = found["unpinned"]
    assert lock is None
    assert (base, data) == (hub.head(f"models/{BASE}"), hub.head("datasets/1aurent/PatchCamelyon"))
    assert files == {split: [f"{split}-00000-of-00001.parquet"] for split in ("train", "test")}
