"""One Airflow's REST API: which version it is, and its answers read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import requests

from federation_defs.airflow.http import describe_request, read_server_time
from federation_defs.airflow.parsing import MissingFieldError
from federation_defs.airflow.session import AirflowSession
from federation_defs.airflow.versions import API_VERSIONS, V1, V2, ApiVersion
from federation_defs.errors import (
    AirflowError,
    RequestRefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from federation_defs.threads import SingleFlight, run_calls

UPGRADING = "now as Airflow 2, now as Airflow 3: an upgrade that is under way?"

# What comes of reading a field that is none: of another kind, without end, out of all bounds.
_ODD = (ArithmeticError, AttributeError, MemoryError, RecursionError, TypeError, ValueError)

T = TypeVar("T")

R = TypeVar("R")

P = ParamSpec("P")

Api = TypeVar("Api", bound="AirflowApi")


class UpgradedError(Exception):
    """The server answers in the other dialect since a moment ago; what was asked was not done."""


def follow_upgrade(
    call: Callable[Concatenate[Api, P], R],
) -> Callable[Concatenate[Api, P], R]:
    """Has a call made anew when the instance turns out to have been upgraded under our feet."""

    @wraps(call)
    def made_anew(self: Api, *args: P.args, **kwargs: P.kwargs) -> R:
        before = self.known_api_version
        try:
            return call(self, *args, **kwargs)
        except UpgradedError:
            pass
        except (RequestRefusedError, UnexpectedAnswerError):
            # Another thread may have been the first to see it, halfway through this call.
            if before is None or self.known_api_version is before:
                raise
        try:
            return call(self, *args, **kwargs)
        except UpgradedError as error:  # behind a balancer, old and new answer in turn
            raise UnreachableError(self.instance, self.url, UPGRADING) from error

    return made_anew


class AirflowApi:
    """What all kinds of questions to one Airflow need.

    Args:
        session: How to reach it, and for whoever needs an endpoint that has no method here.
        api: The API version, "v1" or "v2", or "auto": the server is asked on first use, and again
            when it starts to answer like the other one.
    """

    def __init__(self, session: AirflowSession, api: str = "auto") -> None:
        self.session = session
        self._is_pinned = api != "auto"
        self._api_version = API_VERSIONS.get(api)
        self._version: str | None = None
        self._detecting: SingleFlight[ApiVersion] = SingleFlight()

    @property
    def instance(self) -> str:
        """The instance's declared name."""
        return self.session.instance

    @property
    def url(self) -> str:
        return self.session.url

    @property
    def known_api_version(self) -> ApiVersion | None:
        """The server's API version, if it was found out."""
        return self._api_version

    @property
    def api_version(self) -> ApiVersion:
        """The server's API version, found out once."""
        return self._api_version or self._detecting.do(lambda: self._detect(None))

    def _detect(self, known: ApiVersion | None) -> ApiVersion:
        """The dialect, asked for unless somebody has since it was this one."""
        api_version = self._api_version
        if api_version is known or api_version is None:
            self._api_version = api_version = self._fetch_api_version()
        return api_version

    def _fetch_api_version(self) -> ApiVersion:
        """3.x has no v1 at all and 2.x no v2: the one whose version answers is the one."""
        statuses = []
        for api_version in (V2, V1):
            response = self._get_open(f"{api_version.prefix}/version")
            if response.status_code == 200 and is_json(response):
                self._version = self._read(response, _read_version)
                return api_version
            if response.status_code == 429 or response.status_code >= 500:
                raise self.session.build_error(response)
            if response.status_code in (401, 403):
                raise self.session.build_error(response)
            statuses.append(str(response.status_code))
        raise UnexpectedAnswerError(
            self.instance,
            "GET /api/v2/version and /api/v1/version",
            " and ".join(statuses),
            f"Is {self.url} an Airflow's web address, path prefix included?",
        )

    @follow_upgrade
    def fetch_version(self) -> str:
        """The server's version, such as "2.11.2"."""
        response = self._get_open(f"{self.api_version.prefix}/version")
        self._check_api_version(self.api_version, response)
        self._version = self._read(response, _read_version)
        return self._version

    def _get_open(self, path: str) -> requests.Response:
        """What an endpoint answers that Airflow has open to anybody. A host may ask for the
        sign-in even there, with a gateway of its own."""
        response = self.session.request("GET", path, is_open=True)
        if response.status_code in (401, 403) or response.is_redirect:
            response = self.session.request("GET", path)
        return response

    def _send(self, method: str, path: str, **content: Any) -> requests.Response:
        """The answer to a request below the API's prefix, whatever its status.

        Raises:
            UpgradedError: It came from the other API.
            UnreachableError: It came from something in front of an Airflow that is away.
        """
        api_version = self.api_version
        response = self.session.request(method, api_version.prefix + path, **content)
        self._check_api_version(api_version, response)
        return response

    def _get(self, path: str, **content: Any) -> requests.Response:
        return self._send("GET", path, **content)

    def _check_api_version(self, api_version: ApiVersion, response: requests.Response) -> None:
        """Looks anew which API this is, if another one answered than was asked.

        3.3 answers 404 to a GET of v1 and 405 to all else, in its own form; 2.11 has a page.
        """
        if response.status_code not in (404, 405) or api_version.is_own(_read_answer(response)):
            return
        if self._is_pinned:
            if is_json(response):
                return
            other = V1 if api_version is V2 else V2
            if self._get_open(f"{other.prefix}/version").status_code == 200:
                remedy = f"It speaks {other.api}: declare `api: auto`."
                request = describe_request(response)
                seen = str(response.status_code)
                raise UnexpectedAnswerError(self.instance, request, seen, remedy)
        if not self._is_pinned:
            # What answers as neither is something in front of them.
            with suppress(UnexpectedAnswerError):
                if self._detecting.do(lambda: self._detect(api_version)) is not api_version:
                    raise UpgradedError
        # A gateway whose Airflow is away answers so too; or one that has both behind it.
        seen = f"{response.status_code} to {describe_request(response)}, but not from Airflow"
        if is_json(response):
            seen = UPGRADING
        raise UnreachableError(self.instance, self.url, seen)

    def _read(self, response: requests.Response, parse: Callable[[Any], T]) -> T:
        """A good answer's JSON through `parse`; an error for any other."""
        if response.status_code not in (200, 201):
            raise self.session.build_error(response)
        request = describe_request(response)
        if not is_json(response):
            raise self._build_kind_error(response, "JSON")
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:  # also numbers and lists without end
            raise UnexpectedAnswerError(self.instance, request, "broken JSON") from error
        return self._parse(parse, answer, request)

    def _read_text(self, response: requests.Response) -> str:
        """A good answer's plain text; an error for any other."""
        if response.status_code != 200:
            raise self.session.build_error(response)
        kind = response.headers.get("Content-Type", "no content type")
        if not kind.startswith("text/plain"):
            raise self._build_kind_error(response, "plain text")
        response.encoding = "utf-8"  # requests takes text without a charset for Latin-1
        return response.text

    def _build_kind_error(self, response: requests.Response, wanted: str) -> UnexpectedAnswerError:
        kind = response.headers.get("Content-Type", "no content type")
        return UnexpectedAnswerError(
            self.instance,
            describe_request(response),
            f"{kind} instead of {wanted}",
            "Is there a login page or a proxy in between?",
        )

    def _parse(self, parse: Callable[[Any], T], answer: Any, request: str) -> T:
        """The record that an answer is, or a part of it.

        Raises:
            UnexpectedAnswerError: It is none, or lacks what we need.
        """
        try:
            if not isinstance(answer, Mapping):
                raise TypeError(f"a {type(answer).__name__} where an object belongs")
            return parse(answer)
        except MissingFieldError as error:
            seen, cause = str(error), error
        except KeyError as error:
            seen, cause = f"no `{error.args[0]}`", error
        except _ODD as error:
            seen, cause = f"a field of another kind than Airflow's ({error})", error
        if (
            self._version is None and self._api_version is not None
        ):  # else that is what is asked now
            with suppress(AirflowError):
                self.fetch_version()
        version = self._version or "of unknown version"
        remedy = f"The server says it is Airflow {version}: is that its answer, or a proxy's?"
        raise UnexpectedAnswerError(self.instance, request, seen, remedy) from cause


def is_json(response: requests.Response) -> bool:
    return "json" in response.headers.get("Content-Type", "")


def is_absent(response: requests.Response) -> bool:
    """Whether Airflow says that there is no such thing."""
    return response.status_code == 404 and "detail" in _read_answer(response)


def _read_answer(response: requests.Response) -> Mapping[str, Any]:
    """The JSON object that an answer is; an empty one if it is none."""
    if not is_json(response):
        return {}
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, Mapping) else {}


def parse_version(version: str) -> tuple[int, int]:
    """Major and minor; of what is no version, the oldest there is."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _read_version(answer: Mapping[str, Any]) -> str:
    version = answer["version"]
    if not isinstance(version, str):
        raise TypeError(f"`version` is a {type(version).__name__}")
    return version


# Servers clamp it to what they allow, by default the other (2.11 and 3.3).
PAGE_LIMIT = 1000

SERVER_PAGE = 100

READ_AGAIN = 2


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

    def _fetch_together(self, fetch: Callable[[T], R], asked: Sequence[T]) -> list[R]:
        """The answers in the order of what is asked, as many at a time as is declared."""
        calls = [partial(fetch, item) for item in asked]
        return run_calls(calls, self.session.transport.http.max_connections)


def _read_page(field: str, answer: Mapping[str, Any]) -> tuple[list[Any], int]:
    entries, total = answer[field], answer["total_entries"]
    if not isinstance(entries, list) or not isinstance(total, int):
        raise TypeError(f"`{field}` is no list, or `total_entries` no number")
    return entries, total
