"""Every measured number of the pages is one of a committed record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.tools import fill, records
from docs.tools.records import ROOT, text, value
from docs.tools.tables import table
from epmq.errors import UserError
from tests.fixtures.pages import COMMENT, INLINE, LINK, PAGES, prose

AGAIN = "run `python -m docs.tools.fill`"
# What has the look of a measured number and is none, by the words around it.
ALLOWED = {
    "95 %": "the level of every interval",
    "Python 3.11": "what is needed to install",
    "20 TFLOP/s": "an assumption, docs/tools/tables.py holds it",
}
MEASURED = re.compile(
    r"(?<![\w.:/-])[+\u2212-]?\d+\.\d+(?![\w.]|\.\d)"  # 68.3, +8.2
    r"|(?<![\w.])[+\u2212]\d+\b"  # +8
    r"|\b\d+(?: to \d+)? ?"  # 8 points, 9 to 16 %
    r"(?:%|points?\b|percent\b|TFLOP|[kMG]B\b|h\b|s\b|min\b|hours?\b|minutes?\b|seconds?\b)"
)
MICRO = "micro-clip-8"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def untraced(page: str) -> list[str]:
    """Numbers of a page's sentences that no marker fills."""
    for pattern in (fill.NUMBER, fill.TABLE, fill.COMMANDS, COMMENT):
        page = pattern.sub(" ", page)
    page = INLINE.sub(" ", LINK.sub("link", prose(page)))
    page = re.sub(r"arXiv:? ?\d{4}\.\d{5}(?:v\d)?", "arXiv", page)
    for words in ALLOWED:
        page = page.replace(words, " ")
    return [found[0] for found in MEASURED.finditer(page)]


@pytest.mark.parametrize("path", fill.pages(), ids=name)
def test_pages_say_what_records_and_code_say(path: Path) -> None:
    page = path.read_text("utf-8")
    assert fill.filled(page) == page, AGAIN


@pytest.mark.parametrize("path", fill.pages(), ids=name)
def test_what_sentences_state_is_true_of_the_records(path: Path) -> None:
    assert not list(fill.untrue(path.read_text("utf-8")))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_number_is_typed(path: Path) -> None:
    assert not untraced(path.read_text("utf-8"))


@pytest.mark.parametrize("words", ALLOWED)
def test_every_exception_is_needed(words: str) -> None:
    assert any(words in path.read_text("utf-8") for path in PAGES)


@pytest.mark.parametrize(
    "sentence",
    [
        "It keeps 68.3 of them.",
        "It gains +8 here.",
        "It loses 30 points.",
        "It takes 13 GB.",
        "| gptq | 60.10 ± 0.56 |",
        "From 9 to 16 points.",
        "about 27 h on one",
        "a share of 41.7 %",
    ],
)
def test_a_typed_number_is_found(sentence: str) -> None:
    assert untraced(f"# Title\n\n{sentence}\n")


@pytest.mark.parametrize(
    "sentence",
    [
        "Version 0.1.0 of arXiv 2605.16882, arXiv:2605.16882v1, at 4 bits and 256 images.",
        "`--anchor 0.1` is an option, [2.0](a.md) a link.",
        f"It keeps <!--= {MICRO} ties/gptq/4 average-->64.3<!--/--> of them.",
        "    epmq run micro-clip-8 --anchor 0.1 --out DIR",
    ],
)
def test_what_is_no_typed_number_is_let_be(sentence: str) -> None:
    assert not untraced(f"# Title\n\n{sentence}\n")


def test_a_number_that_was_edited_by_hand_is_put_right() -> None:
    query = f"{MICRO} none/experts/full average"
    edited = f"They are at <!--= {query}-->99.9<!--/--> now."
    assert fill.filled(edited) == f"They are at <!--= {query}-->{text(query)}<!--/--> now."
    assert text(query) != "99.9"


def test_numbers_are_those_of_the_table() -> None:
    (row,) = records.rows(MICRO, "ties/gptq/4")
    assert value(f"{MICRO} ties/gptq/4 average") == 100 * row["average"]
    assert text(f"{MICRO} ties/gptq/4 average") == f"{100 * row['average']:.1f}"
    assert text(f"{MICRO} ties/gptq/4 bits_per_weight") == f"{row['bits_per_weight']:.2f}"
    gap = value(f"{MICRO} none/experts/full - ties/gptq/4 average")
    assert gap == pytest.approx(value(f"{MICRO} none/experts/full average") - 100 * row["average"])
    assert text(f"{MICRO} ties/gptq/4 - none/experts/full average") == f"{-gap:+.1f}"
    averages = [100 * r["average"] for r in records.rows(MICRO, "ties/*/4")]
    assert value(f"{MICRO} max ties/*/4 average") == max(averages)
    assert value(f"{MICRO} min ties/*/4 average") == min(averages)


def test_the_papers_numbers_are_those_of_its_file() -> None:
    assert text("paper glue-w4 epmq_value") == "83.34"
    assert text("paper b32-8-ta-w4 baseline_value") == "65"


def test_a_table_holds_the_rows_and_columns_that_were_asked_for() -> None:
    lines = table(
        [MICRO, "ties/gptq/[43]", "none/experts/full", ":", "method,", "bits,", "average"]
    ).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["method", "bits", "average"]
    assert [row[:2] for row in cells[2:]] == [["experts", "full"], ["gptq", "4"], ["gptq", "3"]]
    assert cells[3][2].startswith(text(f"{MICRO} ties/gptq/4 average")[:3])


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("micro-clip-9 ties/gptq/4 average", "no committed run"),
        (f"{MICRO} ties/gptq/9 average", "0 rows"),
        (f"{MICRO} ties/*/4 average", "name one"),
        (f"{MICRO} ties/gptq/4 avarage", "no field"),
        (f"{MICRO} max ties/zzz/4 average", "no row"),
        (f"{MICRO} ties/gptq/4", "no query"),
        ("paper b32-9 epmq_value", "no entry"),
        (f"{MICRO} ties/gptq/4 - none/experts/full average unsigned", "needs its sign"),
    ],
)
def test_a_query_without_an_answer_is_refused(query: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        text(query)


@pytest.mark.parametrize(
    "page",
    [
        f"It is\n<!--= {MICRO} ties/gptq/4 average-->64.3<!--/--> here.",
        f"- <!--= {MICRO} ties/gptq/4 average-->64.3<!--/--> here.",
        f"It is <!--= {MICRO} ties/gptq/4 average-->64.3 here.",
        f"It is so <!--? {MICRO} ties/gptq/4 average is small-->.",
        f"<!--table {MICRO} */*/4 : average-->\n\n| a |",
    ],
)
def test_a_marker_that_would_not_work_is_refused(page: str) -> None:
    with pytest.raises(UserError, match="a marker"):
        fill.filled(page)


def test_a_statement_that_is_no_longer_true_is_told_with_its_numbers() -> None:
    experts, merged = f"{MICRO} none/experts/full average", f"{MICRO} ties/merged/full average"
    assert not list(fill.untrue(f"Above.<!--? {experts} > {merged}--><!--? {merged} < 100-->"))
    (said,) = fill.untrue(f"Below.<!--? {experts} < {merged}-->")
    assert f"{value(experts):.2f} and {value(merged):.2f}" in said


def test_a_table_of_tasks_holds_every_task_and_the_average() -> None:
    lines = table(f"tasks {MICRO} none/experts/full=the_experts".split()).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "the experts"]
    assert cells[-1] == ["average", text(f"{MICRO} none/experts/full average")]
    assert ["mnist", text(f"{MICRO} none/experts/full accuracy_mnist")] in cells


def test_entries_of_committed_files_are_read_as_they_are() -> None:
    log = "benchmarks/embedded/micro_clip_8/models/logs/mnist.json"
    assert text(f"json {log} 0.step") == "80"
    assert text(f"json {log} 0.held_out percent") == f"{100 * value(f'json {log} 0.held_out'):.1f}"
    for missing in (f"json {log} 0.nothing", "json results/nothing.json 0", "json ../outside.json 0"):
        with pytest.raises(UserError):
            text(missing)
