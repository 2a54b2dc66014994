"""One Airflow's lists, to their end: servers clamp pages, and lists change while they are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar

import requests

from federation_defs.airflow.api import AirflowApi
from federation_defs.airflow.transport import describe_request, read_server_time
from federation_defs.errors import UnreachableError

# Servers clamp it to what they allow, by default the other (2.11 and 3.3).
PAGE_LIMIT = 1000
SERVER_PAGE = 100
READ_AGAIN = 2

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A list, or a part of it.

    Attributes:
        total: Of the whole list, as it was then.
        server_time: When the server answered, by its own clock; None if it did not say.
    """

    entries: list[T]
    total: int
    server_time: datetime | None


class PagedApi(AirflowApi):
    """What all kinds of questions that are answered with a list need."""

    def _fetch_pages(
        self,
        path: str,
        field: str,
        parse: Callable[[Any], T],
        params: Mapping[str, Any],
        at_most: int | None = None,
    ) -> Page[T]:
        """A list to its end, by what came back and `total_entries`: servers clamp the pages.

        The first page tells how many there are; the others are asked for together. A list that
        shrank meanwhile is read anew: what was taken out moved the rest, and hid some of it.

        Args:
            at_most: Of a list with more entries than this, only the first page.
        """
        limit = at_most or sys.maxsize
        whole, has_shrunk = self._fetch_list(path, field, parse, params, limit)
        for _ in range(READ_AGAIN):
            if has_shrunk:
                whole, has_shrunk = self._fetch_list(path, field, parse, params, limit)
        if has_shrunk:
            seen = f"GET {path}: a list that shrinks while it is read"
            raise UnreachableError(self.instance, self.url, seen)
        return whole

    def _fetch_list(
        self,
        path: str,
        field: str,
        parse: Callable[[Any], T],
        params: Mapping[str, Any],
        at_most: int,
    ) -> tuple[Page[T], bool]:
        def fetch(offset: int) -> Page[T]:
            return self._fetch_page(path, field, parse, {**params, "offset": offset})

        first = fetch(0)
        entries, total, size = list(first.entries), first.total, len(first.entries)
        has_shrunk = False
        at_once = self.session.transport.http.max_connections
        while size and len(entries) < total <= at_most:
            # Not all of them: it is only said that there are so many.
            offsets = range(len(entries), total, size)[: at_once * 4]
            for page in self._fetch_together(fetch, offsets):
                entries += page.entries
                # Than the first was: they come at a time, and one that was later may say less.
                has_shrunk = has_shrunk or page.total < first.total
                total = page.total
                if len(page.entries) < size:  # those after it would leave a gap
                    size = len(page.entries)
                    break
        return Page(entries, total, first.server_time), has_shrunk

    def _fetch_page(
        self, path: str, field: str, parse: Callable[[Any], T], params: Mapping[str, Any]
    ) -> Page[T]:
        response = self._get(path, params={"limit": PAGE_LIMIT, **params})
        return self._read_list(response, field, parse)

    def _read_list(
        self, response: requests.Response, field: str, parse: Callable[[Any], T]
    ) -> Page[T]:
        """The part of a list that an answer is; an error for any other answer."""
        request = describe_request(response)
        entries, total = self._read(response, partial(_read_page, field))
        parsed = [self._parse(parse, entry, request) for entry in entries]
        return Page(parsed, total, read_server_time(response))

    def _fetch_together(self, fetch: Callable[[T], R], asked: range | list[T]) -> list[R]:
        """The answers in the order of what is asked, as many at a time as is declared."""
        if len(asked) <= 1:
            return [fetch(one) for one in asked]  # type: ignore[arg-type]
        threads = min(len(asked), self.session.transport.http.max_connections)
        with ThreadPoolExecutor(threads, thread_name_prefix=f"airflow-{self.instance}") as pool:
            return list(pool.map(fetch, asked))  # type: ignore[arg-type]


def _read_page(field: str, answer: Mapping[str, Any]) -> tuple[list[Any], int]:
    entries, total = answer[field], answer["total_entries"]
    if not isinstance(entries, list) or not isinstance(total, int):
        raise TypeError(f"`{field}` is no list, or `total_entries` no number")
    return entries, total
