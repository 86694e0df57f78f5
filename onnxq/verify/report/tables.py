"""Titled tables: what HTML and Markdown both show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = [
    "Column",
    "Row",
    "Section",
    "Table",
    "code_columns",
    "make_table",
    "number_columns",
    "only_columns",
    "text_columns",
]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Column:
    """A column's title, and what its cells are: numbers stand right, code in a fixed width."""

    title: str
    kind: Literal["text", "number", "code", "verdict"] = "number"


@dataclass(frozen=True)
class Row:
    """One cell for each column; ``marked`` rows stand out."""

    cells: tuple[str, ...]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; every row has as many cells as there are columns."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the report. ``folded`` ones open on a click, ``long`` ones Markdown omits."""

    id: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    folded: bool = False
    long: bool = False


def make_table(
    columns: Sequence[Column],
    items: Iterable[Item],
    cells: Callable[[Item], Sequence[str]],
    marked: Callable[[Item], bool] = lambda _: False,
    title: str = "",
) -> Table:
    """A row for each item, of the cells that it is made into."""
    rows = tuple(Row(tuple(cells(item)), marked(item)) for item in items)
    return Table(tuple(columns), rows, title)


def text_columns(*titles: str) -> tuple[Column, ...]:
    """Columns of text."""
    return tuple(Column(title, "text") for title in titles)


def code_columns(*titles: str) -> tuple[Column, ...]:
    """Columns of names from a file."""
    return tuple(Column(title, "code") for title in titles)


def number_columns(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(title) for title in titles)


def only_columns(table: Table, indices: Sequence[int]) -> Table:
    """The table with the columns at ``indices`` alone, in that order."""
    rows = tuple(Row(tuple(row.cells[i] for i in indices), row.marked) for row in table.rows)
    return Table(tuple(table.columns[i] for i in indices), rows, table.title)
