"""Lists in pages. Rows are parsed one by one: an unreadable row does not affect the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from federation_defs.airflow.models import RunKey, require_text
from federation_defs.redaction import clean_text

# What parsing raises for a field of another type, or with a value out of range.
_INVALID_FIELD = (
    ArithmeticError,
    AttributeError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)

T = TypeVar("T")


_NO_RUN_ID = "(a run without an id)"


class UnreadableError(Exception):
    """An answer or a row can't be parsed. The message is the reason, such as "no `state`"."""


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row of a list that can't be parsed.

    Attributes:
        dag_id: None if the row has no valid one. The same holds for `run_id`.
        reason: What is wrong with it.
    """

    dag_id: str | None
    run_id: str | None
    reason: str

    @property
    def key(self) -> RunKey | None:
        """The key of a DAG run; None if the row has no DAG id."""
        return (self.dag_id, self.run_id or _NO_RUN_ID) if self.dag_id else None


@dataclass(frozen=True)
class Page(Generic[T]):
    """A list, or a part of it.

    Attributes:
        unreadable: The rows that can't be parsed.
        total: The server's count of the rows in the whole list at that time. It may be too large;
            `is_whole` does not depend on it alone.
        server_time: When the server began to answer, by its clock; None if unknown.
        is_whole: Whether these are all rows of the list.
        has_shrunk: Whether the list became shorter while its pages were read. Entries that moved
            to an earlier page may be missing.
    """

    entries: list[T]
    unreadable: list[UnreadableRow]
    total: int
    server_time: datetime | None = None
    is_whole: bool = True
    has_shrunk: bool = False

    @property
    def size(self) -> int:
        """The number of rows that were read."""
        return len(self.entries) + len(self.unreadable)

    def has_rows_of(self, other: Page[T]) -> bool:
        return (self.entries, self.unreadable) == (other.entries, other.unreadable)


def join_pages(pages: Sequence[Page[T]], total: int) -> Page[T]:
    """Join the pages of a list. The server time is that of the first page."""
    first = pages[0]
    return replace(
        first,
        entries=[entry for page in pages for entry in page.entries],
        unreadable=[row for page in pages for row in page.unreadable],
        total=total,
        # Compared with the first page: the others are answered in any order.
        has_shrunk=any(page.total < first.total for page in pages),
    )


def parse_object(parse: Callable[[Any], T], answer: Any) -> T:
    """Parse an object.

    Raises:
        UnreadableError: It is not an object, or a required field is missing or invalid.
    """
    try:
        if not isinstance(answer, Mapping):
            raise TypeError(f"a {type(answer).__name__} in place of an object")
        return parse(answer)
    except KeyError as error:
        raise UnreadableError(f"no `{error.args[0]}`") from error
    except _INVALID_FIELD as error:
        raise UnreadableError(f"a field of another kind than Airflow's ({error})") from error


def parse_page(field: str, parse: Callable[[Any], T], answer: Mapping[str, Any]) -> Page[T]:
    """Parse the answer for a page. Rows that can't be parsed are in `unreadable`.

    Raises:
        KeyError, TypeError: The list or its count is missing or invalid.
    """
    rows, total = answer[field], answer["total_entries"]
    if not isinstance(rows, list) or type(total) is not int or total < 0:
        raise TypeError(f"`{field}` is not a list, or `total_entries` is not a count")
    entries: list[T] = []
    unreadable: list[UnreadableRow] = []
    for row in rows:
        try:
            entries.append(parse_object(parse, row))
        except UnreadableError as error:
            ids = _find_id(row, "dag_id"), _find_id(row, "dag_run_id")
            unreadable.append(UnreadableRow(*ids, clean_text(str(error))))
    return Page(entries, unreadable, min(total, sys.maxsize))


def parse_rows(field: str, parse: Callable[[Any], T], answer: Mapping[str, Any]) -> list[T]:
    """Parse the answer for a list whose rows must all be readable.

    Raises:
        UnreadableError: A row can't be parsed.
    """
    page = parse_page(field, parse, answer)
    if page.unreadable:
        raise UnreadableError(page.unreadable[0].reason)
    return page.entries


def _find_id(row: Any, name: str) -> str | None:
    try:
        return require_text(row, name)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
