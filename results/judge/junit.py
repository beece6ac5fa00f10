"""The gate's outcome as JUnit XML, which CI services show: one test case per golden cell."""

from __future__ import annotations

from xml.etree import ElementTree

from results.judge.check import CheckReport, Move


def junit(report: CheckReport, name: str) -> bytes:
    """The report as a JUnit document (UTF-8); names are escaped."""
    cells = {cell: [move for move in report.moves if move.cell == cell] for cell in report.cells}
    if elsewhere := [move for move in report.moves if move.cell not in cells]:
        cells = {"the run as a whole": elsewhere, **cells}
    failures = sum(any(move.failed for move in moves) for moves in cells.values())
    counts = {"tests": str(len(cells)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    for cell, moves in cells.items():
        case = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": cell})
        if failed := [move for move in moves if move.failed]:
            message = f"{len(failed)} regressions, the first: {_line(failed[0])}"
            failure = ElementTree.SubElement(case, "failure", {"message": message, "type": failed[0].verdict})
            failure.text = "\n".join(map(_line, failed))
        if others := [move for move in moves if not move.failed]:
            ElementTree.SubElement(case, "system-out").text = "\n".join(map(_line, others))
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return data + b"\n"


def _line(move: Move) -> str:
    change = f" ({move.change})" if move.change else ""
    return f"{move.quantity}: {move.golden} -> {move.now}{change}, {move.verdict}"
