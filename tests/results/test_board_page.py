"""A board's page fetches nothing, runs nothing of a stranger's, and shows what was not run as that."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks.cli import report as commands
from benchmarks.cli.main import main
from results.board.about import About, Registered, address
from results.board.board import Board, board
from results.board.figures import frontiers
from results.board.folder import save
from results.board.page import page
from results.figures.files import Drawing, drawn
from tests.fixtures.boards import REGISTERED, blurred, cell, of, ours, theirs
from tests.fixtures.records import make_folder
from tests.results.test_report import Page, policy

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


def html(found: Board) -> str:
    return page(found, [Drawing(data, drawn(data, "svg")) for data in frontiers(found.standings)])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Board:
    path = tmp_path_factory.mktemp("folders")
    ours(path / "ours")
    theirs(path / "theirs")
    return board([path / "ours", path / "theirs"], REGISTERED)


@pytest.fixture(scope="module")
def shown(both: Board) -> str:
    return html(both)


def words(text: str) -> str:
    return " ".join(" ".join(Page(text).text).split())


def row(text: str, method: str) -> str:
    """The first row of a method, as words."""
    (found,) = re.findall(rf'<tr [^>]*>\n<th scope="row">{re.escape(method)}<.*?</tr>', text, re.DOTALL)[:1]
    return " ".join(re.sub(r"<[^>]*>", " ", found).split())


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(shown: str) -> None:
    found = Page(shown)
    for tag, attributes in found.elements:
        for name in ("src", "action", "data", "poster", "srcset"):
            url = attributes.get(name)
            assert url is None or url.startswith("data:"), (tag, url)
    assert not found.all("link")
    assert "url(" not in shown
    assert policy(found).startswith("default-src 'none';")
    assert "unsafe" not in policy(found)
    assert not re.search(r"<[^>]+ (style|on\w+)=", shown)


def test_a_row_tells_average_interval_bits_and_reports(shown: str) -> None:
    text = row(shown, "epmq")
    assert re.search(r"\d\d\.\d\d ± \d\.\d\d \(sd \d\.\d\d\) rank 2–2 of 3 4.25 bits/weight", text)
    assert text.count("not run") == 7
    assert "3 draws; report: ours" in text
    assert "3 draws; reports: ours , theirs" in row(shown, "gptq")


def test_no_rank_without_its_interval(shown: str) -> None:
    assert re.findall(r"rank (\S+) of", words(shown)) == re.findall(r"rank (\d+–\d+) of", words(shown))
    assert "a variant: no rank" in row(shown, "epmq (anchor=0.5)")
    assert "alone: no rank" in row(shown, "merged")


def test_what_nobody_ran_is_shown_as_not_run(shown: str) -> None:
    assert row(shown, "awq").count("not run") == 8
    for suite in ("clip-vit-b32-8", "flan-t5-base-glue8-lora16", "micro-glue-8"):
        assert re.search(rf'<th scope="col">{suite}<small>not run</small></th>', shown)
    assert "Merges that were not run on any suite: dare." in words(shown)


def test_papers_and_sources_are_linked(shown: str, tmp_path: Path) -> None:
    links = {link["href"] for link in Page(shown).all("a")}
    assert {"https://arxiv.org/abs/2210.17323", "https://arxiv.org/abs/2306.01708"} <= links
    assert {"https://arxiv.org/abs/2401.00001", "runs/theirs/report.html"} <= links
    assert "mine 0.1 on the package index" in row(shown, "mine")


@pytest.mark.parametrize(
    ("reference", "where"),
    [
        ("arXiv:2605.16882", "https://arxiv.org/abs/2605.16882"),
        ("doi:10.1000/a<b", "https://doi.org/10.1000/a%3Cb"),
        ("https://example.org/paper", "https://example.org/paper"),
        ("folklore", None),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
        ("https://[", None),
        ("arXiv:2605.16882, arXiv:2212.04089", None),
    ],
)
def test_only_addresses_of_the_web_are_linked(reference: str, where: str | None) -> None:
    assert address(reference) == where


def test_the_tables_have_their_semantics(shown: str) -> None:
    found = Page(shown)
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("caption")) == len(found.all("table")) == 2
    assert {cell.get("scope") for cell in found.all("th")} == {"col", "row", "rowgroup"}
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {(link["href"] or "")[1:] for link in found.all("a") if (link["href"] or "").startswith("#")}
    assert targets <= set(ids)
    assert all(image["alt"] for image in found.all("img"))
    assert [output.get("aria-live") for output in found.all("output")] == ["polite"]


def test_grids_are_told_apart_in_words(tmp_path: Path) -> None:
    grouped = {"group_size": 32, "symmetric": True}
    folder = make_folder(tmp_path, cell("a", 0.5), cell("b", 0.5, axes=grouped), suite="micro-clip-8")
    text = words(html(board([folder.path], Registered())))
    assert "4 bits, a scale for each row, asymmetric; calibration samples a task: 128" in text
    assert "4 bits, groups of 32, symmetric; calibration samples a task: 128" in text


def test_without_its_script_everything_is_there(shown: str) -> None:
    hidden = [tag for tag, attributes in Page(shown).elements if "hidden" in attributes]
    assert hidden == ["form"]


def test_all_rows_are_there_as_csv(both: Board, shown: str) -> None:
    (link,) = [a for a in Page(shown).all("a") if a.get("download") == "board.csv"]
    rows = list(csv.DictReader(io.StringIO(unquote(str(link["href"]).partition(",")[2]))))
    assert len(rows) == len(both.standings)
    assert {(r["method"], r["rank_low"], r["rank_high"], r["ranked"]) for r in rows if r["bits"] == "2"} == {
        ("epmq", "1", "1", "2"),
        ("gptq", "2", "2", "2"),
    }


def test_the_frontier_is_drawn_with_its_data(both: Board) -> None:
    (data,) = frontiers(both.standings)
    assert "micro-clip-8, 128 calibration samples" in data.title
    ahead = [(p["label"], p["bits_per_weight"]) for p in data.points if p["frontier"]]
    assert ahead == [("epmq", 2.25), ("mine", 4.25)]
    assert len(data.points) == 5


def test_hostile_names_are_text(tmp_path: Path) -> None:
    suite = "<b>suite"
    folder = tmp_path / "<img src=x>"
    theirs(folder, suite=suite, reference="javascript:alert(1)", authors=[HOSTILE], code=HOSTILE)
    make_folder(tmp_path / "more", of(HOSTILE, blurred(0.5, 1), merge=HOSTILE, suite=suite), suite=suite)
    registered = Registered({HOSTILE: About(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)}, {})
    text = html(board([folder, tmp_path / "more"], registered))
    found = Page(text)
    assert len(found.all("script")) == 1
    assert "b" not in {tag for tag, _ in found.elements}
    assert HOSTILE in "".join(found.text)
    assert all(not (a.get("href") or "").startswith("javascript") for a in found.all("a"))
    for link in found.all("a"):
        parts = urlsplit(link["href"] or "")
        assert ".." not in unquote(parts.path)


def test_a_folder_has_the_page_reports_and_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "run", cell("gptq", 0.5), cell("rtn", 0.4), suite="micro-clip-8")
    (tmp_path / "run" / "report.html").write_text("a stranger's")
    assert main(["board", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert f"saved: {tmp_path}/out/index.html" in capsys.readouterr().err
    assert "stranger" not in (tmp_path / "out/runs/run/report.html").read_text("utf-8")
    text = (tmp_path / "out" / "index.html").read_text("utf-8")
    for link in Page(text).all("a"):
        parts = urlsplit(link["href"] or "")
        if not parts.scheme and parts.path:
            assert (tmp_path / "out" / unquote(parts.path)).is_file()
    assert "def gptq(" in (tmp_path / "out/source/baselines/roundings/gptq.py.txt").read_text("utf-8")
    assert row(text, "magr").count("not run") == 8


def test_the_page_is_the_same_again(both: Board, shown: str) -> None:
    again = board([run.path for run in reversed(both.runs)], REGISTERED)
    assert html(again) == shown


def test_a_checkout_has_its_runs_and_a_wheel_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"micro-clip-8", "micro-glue-8"} <= {path.name for path in commands.kept()}
    theirs(tmp_path / "community" / "mine")
    monkeypatch.setattr(commands, "RESULTS", tmp_path)
    assert commands.kept() == [tmp_path / "community" / "mine"]
    monkeypatch.setattr(commands, "RESULTS", tmp_path / "none")
    assert main(["board"]) == 2


def test_a_bad_folder_ends_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["board", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_seen_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert main(["board", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out: is no folder; choose another --out" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    make_folder(tmp_path / "run", cell("gptq", 0.5), suite="micro-clip-8")
    (tmp_path / "out").write_text("a file")
    said: list[str] = []
    with pytest.raises(Exception, match="cannot write the report there"):
        save(board([tmp_path / "run"], Registered()), tmp_path / "out", said.append)
    assert said == []
