"""The report is one page that fetches nothing, runs nothing from a record, and says what the tables say."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli.main import main
from results.analysis.analysis import Analysis
from results.figures.files import drawings
from results.report.page import page, save
from results.store.folder import RunFolder
from results.tables.columns import Column, columns
from tests.fixtures.records import make_cell, make_folder, make_key
from tests.results.test_figures import control, study

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """The elements of a page in order, with their attributes and text, after checking that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: RunFolder) -> str:
    analysis = Analysis(folder)
    return page(analysis, drawings(analysis))


def parsed(folder: RunFolder) -> Page:
    return Page(page_of(folder))


def policy(found: Page) -> str:
    (content,) = [meta["content"] for meta in found.all("meta") if "http-equiv" in meta]
    assert content is not None
    return content


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    found = parsed(study(tmp_path))
    for tag, attributes in found.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            url = attributes.get(name)
            assert url is None or url.startswith(("data:", "#")), (tag, url)
    assert not found.all("link")
    assert "@import" not in page_of(study(tmp_path / "again"))
    assert "url(" not in page_of(study(tmp_path / "more"))


def test_only_the_pages_own_script_and_style_may_run(tmp_path: Path) -> None:
    text = page_of(study(tmp_path))
    rules = policy(Page(text))
    assert rules.startswith("default-src 'none';")
    assert "unsafe" not in rules
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rules
    assert not re.search(r"<[^>]+ (style|on\w+)=", text)


def test_headings_go_down_one_level_at_a_time(tmp_path: Path) -> None:
    levels = [int(tag[1]) for tag, _ in parsed(study(tmp_path)).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_landmarks_language_and_references(tmp_path: Path) -> None:
    found = parsed(study(tmp_path))
    assert found.all("html") == [{"lang": "en"}]
    assert [len(found.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {(link["href"] or "")[1:] for link in found.all("a") if (link["href"] or "").startswith("#")}
    assert targets <= set(ids)


def test_every_figure_has_a_text_a_caption_and_its_data(tmp_path: Path) -> None:
    found = parsed(study(tmp_path))
    images = found.all("img")
    assert len(images) == len(found.all("figcaption")) == 7
    assert all(image["alt"] for image in images)
    downloads = [link["download"] for link in found.all("a") if "download" in link]
    assert downloads[0] == "accuracy-bits.csv"
    assert len(downloads) == 7


def test_every_number_of_the_tables_is_on_the_page(tmp_path: Path) -> None:
    folder = study(tmp_path)
    rows = Analysis(folder).rows
    text = "".join(parsed(folder).text)
    shown: list[Column] = columns(rows, ("quality", "size", "tasks", "cost"), ["digits"])
    for row in rows:
        for column in shown:
            assert column.text(row).plain.replace("-", "−") in text.replace("-", "−")


def test_cells_that_were_not_run_damaged_lines_and_warnings_are_shown(tmp_path: Path) -> None:
    asked = {"key": make_key("x"), "merge": "ties", "method": "later", "target": "merged", "bits": 4}
    folder = make_folder(tmp_path, make_cell("a", warnings=["dead column 7"]), asked={"cells": [asked]})
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{}\n")
    text = " ".join(parsed(RunFolder.open(folder.path)).text)
    assert "not run" in text
    assert "later" in text
    assert "dead column 7" in text
    assert "records.jsonl:2: schema: Field required" in text


def test_provenance_is_on_the_page(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {
        "revisions": {"experts": {"digits": "f" * 40}},
        "environment": {"packages": {"torch": "2.99.1"}},
        "calibration": {"digits": "c" * 64},
    }
    text = " ".join(parsed(make_folder(tmp_path, make_cell("a"), **manifest)).text)
    for words in ("experts.digits", "f" * 40, "packages.torch", "2.99.1", "c" * 64):
        assert words in text


def test_a_rehearsal_says_so_at_the_top(tmp_path: Path) -> None:
    text = " ".join(parsed(study(tmp_path, rehearsal=True)).text)
    assert "rehearsal: made-up stand-ins, not results" in text.split("At a glance")[0]


def test_claims_have_their_verdicts(tmp_path: Path) -> None:
    text = " ".join(parsed(study(tmp_path)).text)
    for claim in ("C1", "C2", "C3", "C4"):
        assert claim in text
    assert "Not the paper's suite" in text


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert "No method has been run yet." in page_of(make_folder(tmp_path))


HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(tmp_path: Path, name: str) -> None:
    fields: dict[str, Any] = {"merge": name, "method": name, "target": name, "warnings": [name]}
    cell = make_cell("a", {name: 0.5}, axes={name: name, "anchor": 0.1}, **fields)
    manifest: dict[str, Any] = {
        "suite": name,
        "environment": {name: name},
        "revisions": {name: name},
        "calibration": {name: name},
        "asked": {name: name},
        "created": name,
    }
    cell = (cell[0].model_copy(update={"suite": name}), cell[1])
    bounds = []
    for bound, merge in (("experts", None), ("merged", name)):
        record, correct = control(bound, 0.5, suite=name, merge=merge)
        record = record.model_copy(update={"tasks": {name: record.tasks["digits"]}})
        bounds.append((record, {name: correct["digits"]}))
    found = parsed(make_folder(tmp_path, cell, *bounds, **manifest))
    assert len(found.all("script")) == 1
    assert len(found.all("style")) == 1
    assert len(found.all("img")) == len(found.all("figure"))
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert name in "".join(found.text)


def test_the_command_writes_the_page_and_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path / "run")
    assert main(["report", str(folder.path), "--out", str(tmp_path / "r.html"), "--figures"]) == 0
    assert "saved: " in capsys.readouterr().err
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert (folder.path / "figures" / "recovery.svg").exists()
    assert main(["report", str(folder.path)]) == 0
    assert (folder.path / "report.html").exists()
    assert main(["report", str(folder.path), "--out", str(tmp_path / "none" / "r.html")]) == 2
    assert "epmq: error:" in capsys.readouterr().err


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    folder = study(tmp_path / "run")
    for name in ("a", "b"):
        analysis = Analysis(folder)
        save(analysis, drawings(analysis), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
