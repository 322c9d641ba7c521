"""What goes where: data to stdout, what is said to a person to stderr. Colour on a terminal only, unless NO_COLOR."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

Format = Literal["table", "json", "name"]
FormatOption = Annotated[
    Format,
    typer.Option("--output", "-o", help="table for people; json as the HTTP API gives it; name: one name a line."),
]
DocumentOption = Annotated[
    Literal["table", "json"], typer.Option("--output", "-o", help="table for people, json for scripts.")
]

# A table that is piped has no terminal to fit: its lines stay whole.
_PIPED_WIDTH = 10_000


@functools.cache
def data() -> Console:
    """stdout."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


@functools.cache
def messages() -> Console:
    """stderr."""
    from rich.console import Console

    width = None if sys.stderr.isatty() else _PIPED_WIDTH
    return Console(stderr=True, highlight=False, markup=False, emoji=False, width=width)


def show(renderable: RenderableType = "") -> None:
    """Print data."""
    _print(data(), sys.stdout, renderable)


def say(text: RenderableType, style: str | None = None) -> None:
    """One message for the person at the terminal."""
    _print(messages(), sys.stderr, text, style)


def hint(text: str) -> None:
    """What to do next."""
    say(text, style="dim")


def _print(console: Console, stream: TextIO, renderable: RenderableType, style: str | None = None) -> None:
    """In a pipe without the blanks that fill a table's last column."""
    if console.is_terminal:
        console.print(renderable, style=style)
        return
    with console.capture() as captured:
        console.print(renderable, style=style)
    stream.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    stream.flush()


@dataclass(frozen=True)
class Column:
    """`value` gives the cell of an item; an id is never cut, other text is wrapped."""

    title: str
    value: Callable[[Any], RenderableType]
    right: bool = False
    whole: bool = False


def show_list(items: Sequence[Message], columns: Sequence[Column], format: str, empty: str) -> None:
    """Resources: a table, a JSON array, or their names. `empty` is said where there are none."""
    if format == "json":
        write_json([as_json(item) for item in items])
    elif format == "name":
        for item in items:
            sys.stdout.write(f"{item.name}\n")  # pyright: ignore[reportAttributeAccessIssue]
    elif items:
        show(table(columns, items))
    else:
        say(empty)


def show_row(item: Message, columns: Sequence[Column], format: str) -> None:
    """One resource: a table of one row, a JSON object, or its name."""
    if format == "json":
        write_json(as_json(item))
    else:
        show_list([item], columns, format, "")


def show_one(item: Message, facts: Iterable[tuple[str, RenderableType]], format: str) -> None:
    """One resource: its facts in two columns, a JSON object, or its name."""
    if format == "json":
        write_json(as_json(item))
    elif format == "name":
        sys.stdout.write(f"{item.name}\n")  # pyright: ignore[reportAttributeAccessIssue]
    else:
        show(grid(facts))


def table(columns: Sequence[Column], items: Iterable[Any]) -> RenderableType:
    from rich.table import Table

    result = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in columns:
        justify = "right" if column.right else "left"
        result.add_column(column.title, justify=justify, no_wrap=column.right or column.whole, overflow="fold")
    for item in items:
        result.add_row(*(column.value(item) for column in columns))
    return result


def grid(facts: Iterable[tuple[str, RenderableType]]) -> RenderableType:
    """Facts as two columns; empty ones are left out."""
    from rich.table import Table

    result = Table.grid(padding=(0, 2, 0, 0))
    result.add_column(style="bold", no_wrap=True)
    result.add_column(overflow="fold")
    for title, value in facts:
        if value != "":
            result.add_row(title, value)
    return result


def paragraphs(text: str) -> str:
    """Text that was wrapped for source code, its lines joined so that they can be wrapped for a terminal."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def as_json(message: Message) -> dict[str, Any]:
    """As the HTTP API writes it: lowerCamelCase, every field, 64-bit integers as text, whole numbers whole."""
    from services.mesh.rpc import protojson_printing

    return protojson_printing.tree(message)


def write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_line(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
