"""What is written to a terminal for people: tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cacheagent.cli.plain import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_PIPE_WIDTH = 240
"""Columns where nobody looks: a table that goes into a pipe is not folded."""

_NO_LIMIT = 10_000
"""Columns enough for any table: to measure how wide it would like to be."""


def print_rows(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()
) -> None:
    """Print a table with a head; None becomes a hyphen.

    The first column holds ids, which stay whole. On a terminal that is too narrow the columns
    ``spare`` are left out, in this order, until the others have room.
    """
    lines = [dict(zip(head, row, strict=True)) for row in rows]
    columns = list(head)
    screen = console()
    table = _table(columns, lines)
    for name in spare if screen.is_terminal else ():
        if (
            screen.measure(table, options=screen.options.update(max_width=_NO_LIMIT)).maximum
            <= screen.width
        ):
            break
        columns.remove(name)
        table = _table(columns, lines)
    screen.print(table)


def _table(columns: Sequence[str], lines: Iterable[Mapping[str, object]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=place == 0)
    for line in lines:
        table.add_row(*(_cell(line[name]) for name in columns))
    return table


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line, however long; None becomes a hyphen."""
    pairs = list(facts)
    width = max((len(name) for name, _ in pairs), default=0)
    screen = console()
    for name, value in pairs:
        line = Text.assemble((f"{name:<{width}}", "bold"), "  ", _cell(value))
        screen.print(line, soft_wrap=True)


def _cell(value: object) -> Text:
    return Text("-" if value is None else printable(str(value)))


def console() -> Console:
    """Give standard output as it is now: a terminal, or a pipe that folds nothing."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
