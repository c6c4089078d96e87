"""Owns ``docs/cli.md``, made of the help texts: ``python -m redi.cli.reference > docs/cli.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from redi.cli.app import app

_WIDTH = 100
_HEAD = """# The command line

<!-- Made by `make docs` from the help texts; a test compares them. -->

Exit codes: 0 done; 1 an error, told on standard error in three parts (what was got, what was expected, what to do);
2 wrong usage; 130 interrupted.
"""


def markdown() -> str:
    """Return the help of every command, each in its section."""
    sections = [
        f"## `{name}`\n\n```text\n{text}\n```\n" for name, text in _helps(typer.main.get_command(app), "redi", None)
    ]
    return "\n".join([_HEAD, *sections])


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, help) of a command and of those below it."""
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = command.context_class(command, info_name=name.split()[-1], parent=parent, **settings)
    yield name, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for below, sub in getattr(command, "commands", {}).items():
        yield from _helps(sub, f"{name} {below}", context)


if __name__ == "__main__":
    print(markdown(), end="")
