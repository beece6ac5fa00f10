"""The guides run as they stand: every block of a page, in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.cli.main import main
from benchmarks.run import plan
from tests.fixtures.pages import ROOT, Block, blocks
from tests.fixtures.plugin_package import write_package

DOCS = ROOT / "docs"


def in_order(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [b for b in blocks((DOCS / page).read_text("utf-8")) if b.language]


def commands(code: str) -> list[list[str]]:
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


def run(page: str) -> None:
    """Every block in this process; Python shares its names, as in a notebook."""
    names: dict[str, object] = {"__name__": "guide"}
    for block in in_order(page):
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
            continue
        assert block.language == "bash", block
        for words in commands(block.code):
            assert words[0] == "epmq", words
            assert main(words[1:]) == 0, words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the guide that others go on from has run."""
    folder = tmp_path_factory.mktemp("guides")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plan, "PROBE_SECONDS", 0.001)
        run("own-clip.md")
    return folder


def test_clip_experts_become_checkpoints_and_a_table(place: Path) -> None:
    assert {"small", "mine", "mine.json", "runs"} <= {path.name for path in place.iterdir()}
    assert (place / "small" / "README.md").is_file()


@pytest.mark.parametrize("page", ["deploying.md", "reading-a-result.md"])
def test_guides_that_go_on_from_its_results(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    run(page)
    assert "epmq-features" in capsys.readouterr().out


def test_language_models_become_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.001)
    run("own-language-models.md")
    assert (tmp_path / "small" / "README.md").is_file()


@pytest.mark.parametrize(("page", "name"), [("own-merge.md", "median"), ("own-method.md", "shrunk")])
def test_packages_add_a_name(page: str, name: str, tmp_path: Path) -> None:
    """As installed: its modules and entry points lie on the path of new processes."""
    files = {b.marked.removeprefix("file "): b.code for b in in_order(page) if b.marked.startswith("file ")}
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    points = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    info = f"{re.sub(r'[-.]', '_', project['name'])}-{project['version']}.dist-info"
    files[f"{info}/entry_points.txt"] = "\n".join(points)
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    site = write_package(tmp_path / "site", files)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    said = ""
    for block in in_order(page):
        parts: list[list[str]] = []
        if block.language == "bash":
            parts = [["-m", "benchmarks.cli.main", *w[1:]] for w in commands(block.code) if w[0] == "epmq"]
        elif block.language == "python" and not block.marked:
            parts = [["-c", block.code]]
        for words in parts:
            command = [sys.executable, *words]
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            said += done.stdout
    assert name in said
