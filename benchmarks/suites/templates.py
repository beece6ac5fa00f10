"""What a prompt's template may hold: columns, texts, conditions and a few functions of texts.

lm-eval renders templates without a sandbox, and a task file may be anybody's; so what is not in the lists
here is refused where the file is read, and nothing of a file is ever run.
"""

from __future__ import annotations

import re
from string import Formatter

import jinja2
from jinja2 import nodes

_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Concat),
    *(nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Add, nodes.Sub, nodes.Getitem, nodes.Getattr, nodes.Call, nodes.Filter, nodes.List, nodes.Tuple),
)
_METHODS = frozenset(
    {"strip", "lstrip", "rstrip", "lower", "upper", "capitalize", "title", "replace", "format"}
)
_FILTERS = frozenset({"trim", "lower", "upper", "capitalize", "title", "replace", "string", "int", "length"})
_SPEC = re.compile(r"[<>=^]?[+ -]?0?\d{0,2}(\.\d{1,2})?[a-z%]?")


def parsed(template: str) -> nodes.Template:
    """The template, seen to hold nothing but what is in the lists.

    Raises:
        ValueError: it is no template, or holds something else.
    """
    try:
        found = jinja2.Environment().parse(template)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise ValueError(f"is no template: {error}") from error
    called = {id(call.node) for call in found.find_all(nodes.Call)}
    for node in _all(found):
        if not isinstance(node, _NODES):
            raise ValueError(f"holds a {type(node).__name__.lower()}, which no prompt of ours needs")
        if isinstance(node, nodes.Getattr) and (node.attr.startswith("_") or id(node) not in called):
            raise ValueError(f"asks for .{node.attr}; give a column by name")
        if isinstance(node, nodes.Filter) and (node.name not in _FILTERS or node.node is None):
            raise ValueError(f"uses the filter {node.name!r}, expected one of {', '.join(sorted(_FILTERS))}")
        if isinstance(node, nodes.Getitem) and not _plain_index(node):
            raise ValueError(
                "asks for a part by another thing than a number or a text; give a column by name"
            )
        if isinstance(node, nodes.Call) and not _known_call(node):
            raise ValueError(f"calls what is none of {', '.join(sorted(_METHODS))} of a text")
    return found


def _all(node: nodes.Node) -> list[nodes.Node]:
    return [node, *(each for child in node.iter_child_nodes() for each in _all(child))]


def _plain_index(node: nodes.Getitem) -> bool:
    if not isinstance(node.arg, nodes.Const) or not isinstance(node.arg.value, int | str):
        return False
    return not str(node.arg.value).startswith("_")


def _known_call(call: nodes.Call) -> bool:
    target = call.node
    if not isinstance(target, nodes.Getattr) or target.attr not in _METHODS:
        return False
    return target.attr != "format" or (
        isinstance(target.node, nodes.Const) and _plain_format(target.node.value)
    )


def _plain_format(text: object) -> bool:
    """Whether a format's fields are numbered alone: it reaches into no object and pads no gigabyte."""
    if not isinstance(text, str):
        return False
    try:
        fields = list(Formatter().parse(text))
    except ValueError:
        return False
    return all(
        name is None or ((not name or name.isdecimal()) and _SPEC.fullmatch(spec or "") is not None)
        for _, name, spec, _ in fields
    )
