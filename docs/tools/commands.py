"""The page of the command line, made from the parser of ``epmq``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.cli.main import _parser


def parser() -> argparse.ArgumentParser:
    """The parser of ``epmq``."""
    return _parser()


def commands(of: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every command below a parser, with its line of help; ``golden update`` is one of its own."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                below = list(commands(command))
                yield from below or [(command, helps[name])]


def reference() -> str:
    """All commands as Markdown, a section each."""
    return "\n\n".join(_section(command, line) for command, line in commands(parser()))


def _section(command: argparse.ArgumentParser, line: str) -> str:
    arguments = [a for a in command._actions if not a.option_strings]
    usage = " ".join([command.prog, *(_name(a) for a in arguments), "[OPTIONS]"])
    parts = [f"## {command.prog}", f"```text\n{usage}\n```", _sentence(command.description or line)]
    parts.append(_items(arguments + _options(command._optionals)))
    for group in command._action_groups[2:]:  # argparse's own two come first
        parts += [f"### {_text(group.title or '')}", _items(_options(group))]
    return "\n\n".join(part for part in parts if part)


def _options(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    return [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]


def _items(actions: list[argparse.Action]) -> str:
    return "\n".join(_item(action) for action in actions)


def _item(action: argparse.Action) -> str:
    needed = " (required)" if action.required and action.option_strings else ""
    meaning = (action.help or "") % vars(action)
    return f"- `{_name(action)}`{needed}{': ' if meaning else ''}{_text(meaning)}"


def _name(action: argparse.Action) -> str:
    """The argument as one writes it: ``--bits N ...``."""
    metavar = action.metavar if isinstance(action.metavar, str) else None
    if action.choices is not None:
        metavar = metavar or "{" + ",".join(map(str, action.choices)) + "}"
    value = "" if action.nargs == 0 else metavar or action.dest.upper()
    value += {"+": " ...", "*": " ..."}.get(str(action.nargs), "")
    value = f"[{value}]" if action.nargs in ("?", "*") else value
    return " ".join([*action.option_strings[:1], value]).strip()


def _sentence(text: str) -> str:
    text = _text(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _text(text: str) -> str:
    """Help as Markdown: nothing in it is markup."""
    return " ".join(text.split()).replace("*", r"\*").replace("<", "&lt;")
