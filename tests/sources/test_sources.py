"""Locks and local sources, without a hub: what is refused, and what the complaint says."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pytest
from huggingface_hub import errors

from benchmarks.sources import data, hub, pin, resolve
from benchmarks.sources import lock as locks
from benchmarks.sources.fetch import Sources, label_counts
from benchmarks.sources.lock import DatasetLock, FileLock, Lock, SplitLock
from benchmarks.suites import forms
from benchmarks.suites import load as suites
from benchmarks.suites.forms import Suite, TaskSpec
from epmq.errors import UserError

SUITE = suites.load("clip-vit-b32-8")
HASH = "0" * 64


def example(suite: Suite = SUITE) -> Lock:
    """A lock that fits the suite; its hashes are made up."""
    file = {"config.json": FileLock(sha256=HASH, size=2)}
    return Lock(
        suite=suite.name,
        suite_version=suite.version,
        fingerprint=suites.fingerprint(suite),
        created="2026-01-01T00:00:00+00:00",
        models={
            name: locks.RepoLock(id=name, revision="a" * 40, files=file) for name in locks.models_of(suite)
        },
        datasets={
            t.task: DatasetLock(
                id=t.dataset.path,
                revision="b" * 40,
                files=file,
                config=t.dataset.config,
                format="parquet",
                features=None,
                splits={
                    name: SplitLock(files=[], samples=3, labels={0: 2, 1: 1})
                    for name in (t.dataset.train_split, t.dataset.eval_split)
                },
            )
            for t in suite.tasks
        },
    )


def written(path: Path, lock: Lock) -> Path:
    path.write_text(lock.model_dump_json(), "utf-8")
    return path


def test_a_lock_survives_writing_and_reading(tmp_path: Path) -> None:
    path = written(tmp_path / "lock.json", example())
    assert pin.lock_for_run(SUITE, path, unpinned=False) == example()


def test_a_suite_that_is_bundled_needs_no_lock(tmp_path: Path) -> None:
    assert pin.lock_for_run(suites.load("micro-clip-8"), tmp_path / "no.json", unpinned=False) is None


def test_an_unpinned_run_has_no_lock(tmp_path: Path) -> None:
    path = written(tmp_path / "lock.json", example())
    assert pin.lock_for_run(SUITE, path, unpinned=True) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"suite": "clip-vit-l14-8"}, "suite is 'clip-vit-l14'"),
        ({"suite_version": 2}, "suite_version is '2', the suite's is '1'"),
        ({"fingerprint": HASH}, "fingerprint is '000000000000'"),
        ({"models": {}}, "the lock and the suite name other repositories (openai/clip-vit-base-patch32, "),
        ({"datasets": {}}, "the lock and the suite name other repositories (sun397, "),
    ],
)
def test_the_lock_of_another_suite_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = written(tmp_path / "lock.json", example().model_copy(update=change))
    with pytest.raises(UserError) as raised:
        pin.lock_for_run(SUITE, path, unpinned=False)
    assert str(raised.value).startswith(f"{path}: ")
    assert complaint in str(raised.value)
    assert "epmq pin clip-vit-b32-8" in str(raised.value)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: text[:100], "Invalid JSON"),
        (lambda text: text.replace(HASH, "short", 1), "String should match pattern"),
        (lambda text: json.dumps({**json.loads(text), "extra": 1}), "field 'extra' is unknown; known: "),
    ],
    ids=["cut", "hash", "field"],
)
def test_a_damaged_lock_is_refused(tmp_path: Path, spoil: Callable[[str], str], complaint: str) -> None:
    path = tmp_path / "lock.json"
    path.write_text(spoil(example().model_dump_json()))
    with pytest.raises(UserError, match="restore the lock or run 'epmq pin' again") as raised:
        pin.lock_for_run(SUITE, path, unpinned=False)
    assert complaint in str(raised.value)


def test_a_place_that_cannot_hold_the_lock_is_refused_before_the_hub_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give --lock FILE"):
        pin.lock_for_run(SUITE, tmp_path / "file" / "lock.json", unpinned=False)


def test_the_lock_of_a_rehearsal_stays_out_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPMQ_CACHE", str(tmp_path))
    assert locks.default_path(SUITE) == forms.PACKAGE / "sources" / "locks" / "clip-vit-b32-8.json"
    rehearsal = SUITE.model_copy(update={"rehearsal": True})
    assert locks.default_path(rehearsal) == tmp_path / "locks" / "clip-vit-b32-8.json"


def rows(labels: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": labels, "other": labels})


@pytest.mark.parametrize(
    ("labels", "counts"),
    [([2, 0, 2], {0: 1, 2: 2}), ([True, False, True], {0: 1, 1: 2})],
    ids=["integers", "booleans"],
)
def test_labels_are_counted(labels: list[Any], counts: dict[int, int]) -> None:
    assert label_counts(rows(labels), "label") == counts


def test_class_labels_are_counted() -> None:
    named = rows([1, 0, 1]).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    assert label_counts(named, "label") == {0: 1, 1: 2}


@pytest.mark.parametrize("labels", [["cat"], [0.5], [None]])
def test_labels_that_are_no_integers_are_refused(labels: list[Any]) -> None:
    with pytest.raises(UserError, match="column 'label' holds labels that are no integers"):
        label_counts(rows(labels), "label")


def test_scores_count_under_the_nearest_integer() -> None:
    assert label_counts(rows([0.4, 4.6, 5.0, -0.6]), "label", scores=True) == {-1: 1, 0: 1, 5: 2}
    with pytest.raises(UserError, match="column 'label' holds scores that are no numbers"):
        label_counts(rows([0.5, float("nan")]), "label", scores=True)


def task() -> TaskSpec:
    return SUITE.tasks[0]


def test_a_split_that_is_as_locked_passes() -> None:
    Sources(SUITE, example()).verify(task(), "train", rows([0, 1, 0]))


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0, 1], "has 2 samples, the lock says 3"),
        ([0, 1, 1], "samples per label differ from the lock (0: 1, not 2; 1: 2, not 1)"),
        ([0, 0, 5], "samples per label differ from the lock (1: 0, not 1; 5: 1, not 0)"),
    ],
)
def test_a_split_that_is_not_as_locked_is_refused(labels: list[int], complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        Sources(SUITE, example()).verify(task(), "train", rows(labels))
    assert str(raised.value).startswith("data set sun397 (tanganke/sun397, train)")
    assert complaint in str(raised.value)


def local(checkpoints: dict[str, str] | None = None) -> Sources:
    return Sources(SUITE.model_copy(update={"checkpoints": checkpoints or {}}), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "notes.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


PATTERNS = ("config.json", "*.safetensors", "*.bin")


def test_a_local_model_is_hashed_and_pickled_weights_are_left_where_there_are_others(folder: Path) -> None:
    got = local().model(str(folder), PATTERNS)
    assert (got.folder, sorted(got.files)) == (folder, ["config.json", "model.safetensors"])
    assert got.revision.startswith("local:")
    (folder / "model.safetensors").unlink()
    assert sorted(local().model(str(folder), PATTERNS).files) == ["config.json", "pytorch_model.bin"]


def test_the_revision_of_a_local_model_follows_its_bytes(folder: Path) -> None:
    before = local().model(str(folder), PATTERNS).revision
    (folder / "notes.txt").write_text("not asked for")
    assert local().model(str(folder), PATTERNS).revision == before
    (folder / "model.safetensors").write_text("changed")
    assert local().model(str(folder), PATTERNS).revision != before


def test_a_local_file_that_is_not_the_one_of_the_suite_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    with pytest.raises(UserError, match=f"{file}: SHA-256 is .*, the suite pins 000000000000"):
        local({str(file): HASH}).model(str(folder), PATTERNS)


def test_a_model_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder of a model"):
        local().model(str(tmp_path / "none"), PATTERNS)
    with pytest.raises(UserError, match="model a/b is not in the lock; run 'epmq pin clip-vit-b32-8' again"):
        Sources(SUITE, example()).model("a/b", PATTERNS)


def test_weights_in_folders_of_other_formats_are_not_chosen() -> None:
    names = ["onnx/model.safetensors", "model-00001-of-00002.safetensors", "tf_model.h5", "pytorch_model.bin"]
    assert resolve.chosen(names, resolve.EXPERT_FILES) == ["model-00001-of-00002.safetensors"]


def status(code: int, kind: type[errors.HfHubHTTPError] = errors.HfHubHTTPError) -> Exception:
    request = httpx2.Request("GET", "https://example.org")
    return kind(f"{code} said the hub", response=httpx2.Response(code, request=request))


CUT = OSError("Consistency check failed: file should be of size 10 but has size 5")


@pytest.mark.parametrize(
    "error",
    [status(500), status(503), status(429), CUT, httpx2.ReadTimeout("late"), httpx2.ConnectError("no")],
)
def test_what_passes_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    answers = iter([error, error, None])

    def action() -> str:
        if (answer := next(answers)) is not None:
            raise answer
        return "done"

    assert hub.patiently(action, "it") == "done"
    assert waits == [2, 10]


@pytest.mark.parametrize(
    ("error", "tries", "complaint"),
    [
        (status(500), 3, "it cannot be downloaded (500 said the hub); run the same command again to go on"),
        (status(403), 1, "(403 said the hub); run the same command again"),
        (status(404, errors.RepositoryNotFoundError), 1, "it was moved, deleted or made private"),
        (status(403, errors.GatedRepoError), 1, "accept its terms on its page, then 'hf auth login'"),
        (status(404, errors.RevisionNotFoundError), 1, "the pinned commit is gone: run 'epmq pin' again"),
        (status(404, errors.RemoteEntryNotFoundError), 1, "the file was deleted: run 'epmq pin' again"),
        (errors.OfflineModeIsEnabled("offline"), 1, "(offline); run the same command again"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "No space left on device); run the same command",
        ),
    ],
)
def test_what_lasts_is_said_in_one_line(
    error: Exception, tries: int, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    tried = []

    def action() -> None:
        tried.append(1)
        raise error

    with pytest.raises(UserError) as raised:
        hub.patiently(action, "it")
    assert len(tried) == tries
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        hub.patiently(lambda: 1 // 0, "it")


def test_a_folder_of_images_has_a_revision_of_its_pixels(tmp_path: Path) -> None:
    """What was decoded from it is kept by that."""
    folder = tmp_path / "images" / "train" / "red"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(b"one")
    spec = SUITE.tasks[0].dataset.model_copy(update={"path": str(tmp_path / "images")})
    before = data.revision(spec)
    (folder / "0.png").write_bytes(b"two")
    assert data.revision(spec) != before
