"""The cache is not believed: a merge that was changed, cut or linked elsewhere is computed again."""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.cli.main import main
from benchmarks.run.runner import run
from benchmarks.sources import cache as caches
from epmq.errors import UserError
from results.store.folder import RunFolder
from tests.fixtures.tiny_runs import few
from tests.fixtures.tiny_suite import TinySuite

REQUEST = few(method=[], controls=["merged"], merge=["task-arithmetic", "simple-average"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPMQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "merged"


def values(folder: RunFolder) -> dict[str, float]:
    return {record.key: record.average for record in folder.records()}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def changed(file: Path) -> None:
    """Other weights below the hash of the old ones."""
    told = metadata(file)
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file, told)


def without_hash(file: Path) -> None:
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)


def of_another_merge(file: Path) -> None:
    (other,) = (each for each in file.parent.glob("*.safetensors") if each != file)
    shutil.copy(other, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def no_weights(file: Path) -> None:
    file.write_bytes(b"nonsense")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 64
    file.write_bytes(content)


DAMAGES: list[Callable[[Path], None]] = [changed, without_hash, of_another_merge, cut, no_weights, flipped]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_merge_is_computed_again(
    tiny: TinySuite, tmp_path: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    good = values(run(tiny.suite, REQUEST, tmp_path / "first", {}))
    file = min(cache.glob("*.safetensors"))
    whole, told = {name: x.clone() for name, x in load_file(file).items()}, metadata(file)
    damage(file)
    assert values(run(tiny.suite, REQUEST, tmp_path / "second", {})) == good
    assert metadata(file) == told
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(file).items())


def test_a_link_in_the_cache_is_replaced_and_never_written_through(
    tiny: TinySuite, tmp_path: Path, cache: Path
) -> None:
    good = values(run(tiny.suite, REQUEST, tmp_path / "first", {}))
    file = min(cache.glob("*.safetensors"))
    file.rename(tmp_path / "elsewhere")
    changed(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    file.symlink_to(tmp_path / "elsewhere")
    assert values(run(tiny.suite, REQUEST, tmp_path / "second", {})) == good
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert not file.is_symlink()


def test_a_folder_where_a_merge_belongs_is_one_line(
    tiny: TinySuite, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny.suite, REQUEST, tmp_path / "first", {})
    file = min(cache.glob("*.safetensors"))
    file.unlink()
    file.mkdir()
    asked = ["--merge", "task-arithmetic", "simple-average", "--method", "--controls", "merged"]
    assert main(["run", str(tiny.file), *asked, "--out", str(tmp_path / "second")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"epmq: error: {file}: the cache cannot be used there (")


@pytest.mark.parametrize("kind", ["merged", "images"])
def test_a_file_where_a_folder_of_the_cache_belongs_is_one_line(
    tiny: TinySuite, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    cache.parent.mkdir()
    (cache.parent / kind).touch()
    assert main(["run", str(tiny.file), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        f"{cache.parent / kind}: cannot be made (File exists); set EPMQ_CACHE to another folder"
    )


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("EPMQ_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="there is no home folder for a cache; set EPMQ_CACHE to a folder"):
        caches.folder("merged")
