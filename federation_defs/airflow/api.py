"""The REST API of one Airflow: its version, reading its answers, and lists in pages.

The API version is detected once. After an upgrade, the server answers requests to the old API with
errors that are not that API's own. `AirflowApi` then detects the version again, and
`retry_after_upgrade` repeats the call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import requests

from federation_defs.airflow.http import describe_request, read_object, read_server_time
from federation_defs.airflow.models import RunKey, require_text
from federation_defs.airflow.pages import (
    Page,
    UnreadableError,
    UnreadableRow,
    join_pages,
    parse_object,
    parse_page,
)
from federation_defs.airflow.session import AirflowSession
from federation_defs.airflow.versions import API_VERSIONS, V1, V2, ApiVersion
from federation_defs.errors import (
    AirflowError,
    RequestRefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from federation_defs.redaction import clean_text
from federation_defs.threads import SingleFlight, run_in_threads

_log = logging.getLogger(__name__)

PAGE_LIMIT = 1000  # servers lower it to their own maximum
SERVER_PAGE = 100  # the default of that maximum (2.11 and 3.3)
MAX_ROWS = 1_000_000  # of a list; it takes 10,000 requests
MAX_REREADS = 2
_MAX_WARNINGS = 100  # about unreadable rows
# Callers report unreadable runs and tasks, even if no row of the list can be read.
_REPORTED_ROWS = ("dag_runs", "task_instances")
_UPGRADING = "now as Airflow 2, now as Airflow 3: is an upgrade under way?"
T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Api = TypeVar("Api", bound="AirflowApi")


class UpgradedError(Exception):
    """The server was upgraded or downgraded to the other API. The request was not carried out."""


def retry_after_upgrade(
    method: Callable[Concatenate[Api, P], R],
) -> Callable[Concatenate[Api, P], R]:
    """Call a method once more if the instance was upgraded or downgraded in the meantime."""

    @wraps(method)
    def retried(self: Api, *args: P.args, **kwargs: P.kwargs) -> R:
        before = self.known_api_version
        try:
            return method(self, *args, **kwargs)
        except UpgradedError:
            pass
        except (RequestRefusedError, UnexpectedAnswerError):
            # Another thread may have noticed the upgrade during this call.
            if before is None or self.known_api_version is before:
                raise
        try:
            return method(self, *args, **kwargs)
        except UpgradedError as error:  # a load balancer with both versions behind it
            raise UnreachableError(self.instance, self.url, _UPGRADING) from error

    return retried


class AirflowApi:
    """Sends requests to one Airflow's API and reads the answers.

    Args:
        session: Sends the requests. Other endpoints can be called through it.
        api: "v1" or "v2", or "auto" to ask the server.

    Attributes:
        known_api_version: The server's API version; None if it was not detected yet.
        max_connections: The largest number of concurrent requests.
    """

    def __init__(self, session: AirflowSession, api: str = "auto") -> None:
        self.session = session
        self.instance = session.instance
        self.url = session.url
        self.max_connections = session.transport.http.max_connections
        self.known_api_version = API_VERSIONS.get(api)
        self._is_declared = api != "auto"
        self._version: str | None = None
        self._detection: SingleFlight[ApiVersion] = SingleFlight()
        self._warned_of: set[tuple[str, UnreadableRow]] = set()
        # The logical dates of triggers whose run was not seen yet.
        self._lost_triggers: dict[RunKey, datetime] = {}

    @property
    def api_version(self) -> ApiVersion:
        """The server's API version. The first use asks the server."""
        return self.known_api_version or self._detect(None)

    @retry_after_upgrade
    def fetch_version(self) -> str:
        """Fetch the server's version, such as "2.11.2"."""
        response = self._get_open(f"{self.api_version.prefix}/version")
        self._check_api_version(self.api_version, response)
        return self._read_version(response)

    def _detect(self, outdated: ApiVersion | None) -> ApiVersion:
        """Return the API version. Ask the server, unless one other than `outdated` is known."""

        def detect() -> ApiVersion:
            found = self.known_api_version
            if found is None or found is outdated:
                found = self.known_api_version = self._fetch_api_version()
            return found

        return self._detection.do(detect)

    def _fetch_api_version(self) -> ApiVersion:
        statuses = []
        for api_version in (V2, V1):  # 3.x has no v1 and 2.x no v2
            response = self._get_open(f"{api_version.prefix}/version")
            if response.status_code == 200 and is_json(response):
                self._read_version(response)
                return api_version
            if response.status_code in (401, 403, 429) or response.status_code >= 500:
                raise self.session.build_error(response)
            statuses.append(str(response.status_code))
        raise UnexpectedAnswerError(
            self.instance,
            "GET /api/v2/version and /api/v1/version",
            " and ".join(statuses),
            f"Is {self.url} an Airflow's web address, path prefix included?",
        )

    def _read_version(self, response: requests.Response) -> str:
        self._version = self._read(response, lambda answer: require_text(answer, "version"))
        return self._version

    def _get_open(self, path: str) -> requests.Response:
        """Get an endpoint that needs no sign-in. If a gateway requires one, repeat it signed in."""
        response = self.session.request("GET", path, is_open=True)
        if response.status_code in (401, 403) or response.is_redirect:
            response = self.session.request("GET", path)
        return response

    def _send(self, method: str, path: str, **content: Any) -> requests.Response:
        """Send a request below the API's prefix and return the answer, whatever its status.

        Raises:
            UpgradedError: The other API answered.
            UnreachableError: A gateway answered in place of Airflow.
        """
        api_version = self.api_version
        response = self.session.request(method, api_version.prefix + path, **content)
        self._check_api_version(api_version, response)
        return response

    def _get(self, path: str, **content: Any) -> requests.Response:
        return self._send("GET", path, **content)

    def _check_api_version(self, api_version: ApiVersion, response: requests.Response) -> None:
        """Check that a 404 or 405 comes from this API, and look for the other one if not.

        To requests of v1, 3.3 answers with JSON: 404 to a GET and 405 to other methods. To requests
        of v2, 2.11 answers with an HTML page.

        Raises:
            UpgradedError: The server has the other API now.
            UnexpectedAnswerError: It has the other API, and `api` is declared.
            UnreachableError: Neither API answers reliably, as behind a gateway.
        """
        status = response.status_code
        if status not in (404, 405) or api_version.is_own_error(read_object(response)):
            return
        request = describe_request(response)
        if not self._is_declared:
            # If neither API answers, a gateway does.
            with suppress(UnexpectedAnswerError):
                if self._detect(api_version) is not api_version:
                    raise UpgradedError
        elif is_json(response):
            return
        else:
            other = V1 if api_version is V2 else V2
            if self._get_open(f"{other.prefix}/version").status_code == 200:
                remedy = f"It speaks {other.api}: declare `api: auto`."
                raise UnexpectedAnswerError(self.instance, request, str(status), remedy)
        # A gateway answers whose Airflow is down, or that has both versions behind it.
        reason = f"{status} to {request}, but not from Airflow"
        raise UnreachableError(self.instance, self.url, _UPGRADING if is_json(response) else reason)

    def _read(self, response: requests.Response, parse: Callable[[Any], T]) -> T:
        """Parse the JSON of a good answer.

        Raises:
            AirflowError: The status is an error, or the answer is not JSON, or not Airflow's.
        """
        self._check_content(response, "json", "JSON")
        request = describe_request(response)
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:  # also for numbers and lists without end
            raise UnexpectedAnswerError(self.instance, request, "broken JSON") from error
        try:
            return parse_object(parse, answer)
        except UnreadableError as error:
            raise self._build_unreadable_error(request, str(error)) from error

    def _read_text(self, response: requests.Response) -> str:
        """Return the plain text of a good answer."""
        self._check_content(response, "text/plain", "plain text")
        response.encoding = "utf-8"  # requests assumes Latin-1
        return response.text

    def _check_content(self, response: requests.Response, content_type: str, name: str) -> None:
        if response.status_code not in (200, 201):
            raise self.session.build_error(response)
        found = _get_content_type(response)
        if content_type not in found:
            request, seen = describe_request(response), f"{found} instead of {name}"
            remedy = "Is there a login page or a proxy in between?"
            raise UnexpectedAnswerError(self.instance, request, seen, remedy)

    def _build_unreadable_error(self, request: str, reason: str) -> UnexpectedAnswerError:
        # The message names the version. It is not fetched here while it is being detected.
        if self._version is None and self.known_api_version is not None:
            with suppress(AirflowError):
                self.fetch_version()
        version = self._version or "of unknown version"
        remedy = f"The server is Airflow {version}: is that its answer, or a proxy's?"
        return UnexpectedAnswerError(self.instance, request, reason, remedy)

    def _fetch_list(
        self,
        path: str,
        field: str,
        parse: Callable[[Any], T],
        params: Mapping[str, Any],
        at_most: int = MAX_ROWS,
    ) -> Page[T]:
        """Fetch all entries of a list. If it shrinks while it is read, it is read again.

        Args:
            field: The name of the list in the answer.
            at_most: If the list has more rows than this, and than a page, only its first page is
                fetched.

        Raises:
            UnexpectedAnswerError: It has more than a million rows, and `at_most` is not given.
            UnreachableError: The list shrank each time it was read.
        """
        for _ in range(1 + MAX_REREADS):
            page = self._fetch_pages(path, field, parse, params, at_most)
            if at_most == MAX_ROWS and not page.is_whole:
                seen = f"more than {MAX_ROWS} entries"
                raise UnexpectedAnswerError(self.instance, f"GET {path}", seen)
            if not page.has_shrunk:
                return page
        reason = f"GET {path}: the list shrank each time it was read"
        raise UnreachableError(self.instance, self.url, reason)

    def _fetch_pages(
        self,
        path: str,
        field: str,
        parse: Callable[[Any], T],
        params: Mapping[str, Any],
        at_most: int,
    ) -> Page[T]:
        """Fetch a list once, the pages after the first in parallel.

        Servers may return fewer entries than `limit`, so offsets are counted in the rows that came,
        up to `total_entries`. That may be too large, so a list only counts as longer than `at_most`
        if there is a row beyond it, and an empty page ends every list.

        Raises:
            UnexpectedAnswerError: No row can be parsed, and callers don't report that; or each
                offset has the same rows.
        """

        def fetch(offset: int, limit: int = PAGE_LIMIT) -> Page[T]:
            query = {"limit": limit, **params, "offset": offset}
            response = self._get(path, params=query)
            page = self._read(response, partial(parse_page, field, parse))
            return replace(page, server_time=read_server_time(response))

        first = fetch(0)
        is_too_large = first.total > at_most and first.size < first.total
        if is_too_large and (first.size > at_most or fetch(at_most, limit=1).size):
            return replace(first, is_whole=False)
        pages, read, size = [first], first.size, first.size
        total = at_most if is_too_large else first.total
        # A limited number of pages at a time, because the total may be wrong.
        max_pages = self.max_connections * 4
        while size and read < total <= at_most:
            offsets = range(read, total, size)[:max_pages]
            for page in self._fetch_all(fetch, offsets):
                if page.size and page.has_rows_of(first):
                    seen = f"the same `{field}` at each offset"
                    remedy = "Is there a proxy or a cache that ignores the query?"
                    raise UnexpectedAnswerError(self.instance, f"GET {path}", seen, remedy)
                pages.append(page)
                read += page.size
                total = at_most if is_too_large else page.total
                if page.size < size:  # the next page would leave a gap
                    size = page.size
                    break
        whole = join_pages(pages, total)
        if whole.unreadable and not whole.entries and field not in _REPORTED_ROWS:
            request = f"GET {self.api_version.prefix}{path}"
            raise self._build_unreadable_error(request, whole.unreadable[0].reason)
        self._warn_of(whole.unreadable, field)
        return replace(whole, is_whole=not size or read >= total)

    def _warn_of(self, unreadable: Sequence[UnreadableRow], field: str) -> None:
        """Log each row that can't be read once, and 100 rows at most."""
        for row in unreadable:
            if (field, row) in self._warned_of or len(self._warned_of) >= _MAX_WARNINGS:
                continue
            self._warned_of.add((field, row))
            ids = clean_text(" of ".join(filter(None, (row.run_id, row.dag_id))))
            of = f" ({ids})" if ids else ""
            text = (
                "Airflow '%s' has an entry in `%s`%s that can't be read: %s. The others are read."
            )
            _log.warning(text, self.instance, field, of, row.reason)

    def _fetch_all(self, fetch: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Fetch something for each item, in parallel, and return the results in order."""
        return run_in_threads([partial(fetch, item) for item in items], self.max_connections)


def is_json(response: requests.Response) -> bool:
    return "json" in _get_content_type(response)


def is_absent(response: requests.Response) -> bool:
    """Return whether Airflow answers that the requested object does not exist."""
    return response.status_code == 404 and "detail" in read_object(response)


def _get_content_type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "no content type")
