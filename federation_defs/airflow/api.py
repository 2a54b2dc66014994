"""One Airflow's REST API: which version it is, and its answers read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import requests

from federation_defs.airflow.dialects import DIALECTS, V1, V2, Dialect
from federation_defs.airflow.flight import SingleFlight
from federation_defs.airflow.parsing import MissingFieldError
from federation_defs.airflow.session import AirflowSession
from federation_defs.airflow.transport import describe_request
from federation_defs.errors import (
    AirflowError,
    RequestRefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)

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
        before = self.known_dialect
        try:
            return call(self, *args, **kwargs)
        except UpgradedError:
            pass
        except (RequestRefusedError, UnexpectedAnswerError):
            # Another thread may have been the first to see it, halfway through this call.
            if before is None or self.known_dialect is before:
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
        self._dialect = DIALECTS.get(api)
        self._version: str | None = None
        self._detecting: SingleFlight[Dialect] = SingleFlight()

    @property
    def instance(self) -> str:
        """The instance's declared name."""
        return self.session.instance

    @property
    def url(self) -> str:
        return self.session.url

    @property
    def known_dialect(self) -> Dialect | None:
        """The server's API version, if it was found out."""
        return self._dialect

    @property
    def dialect(self) -> Dialect:
        """The server's API version, found out once."""
        return self._dialect or self._detecting.do(lambda: self._detect(None))

    def _detect(self, known: Dialect | None) -> Dialect:
        """The dialect, asked for unless somebody has since it was this one."""
        dialect = self._dialect
        if dialect is known or dialect is None:
            self._dialect = dialect = self._fetch_dialect()
        return dialect

    def _fetch_dialect(self) -> Dialect:
        """3.x has no v1 at all and 2.x no v2: the one whose version answers is the one."""
        statuses = []
        for dialect in (V2, V1):
            response = self._get_open(f"{dialect.prefix}/version")
            if response.status_code == 200 and is_json(response):
                self._version = self._read(response, _read_version)
                return dialect
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
        response = self._get_open(f"{self.dialect.prefix}/version")
        self._check_dialect(self.dialect, response)
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
        dialect = self.dialect
        response = self.session.request(method, dialect.prefix + path, **content)
        self._check_dialect(dialect, response)
        return response

    def _get(self, path: str, **content: Any) -> requests.Response:
        return self._send("GET", path, **content)

    def _check_dialect(self, dialect: Dialect, response: requests.Response) -> None:
        """Looks anew which API this is, if another one answered than was asked.

        3.3 answers 404 to a GET of v1 and 405 to all else, in its own form; 2.11 has a page.
        """
        if response.status_code not in (404, 405) or dialect.is_own(_read_answer(response)):
            return
        if self._is_pinned:
            if is_json(response):
                return
            other = V1 if dialect is V2 else V2
            if self._get_open(f"{other.prefix}/version").status_code == 200:
                remedy = f"It speaks {other.api}: declare `api: auto`."
                request = describe_request(response)
                seen = str(response.status_code)
                raise UnexpectedAnswerError(self.instance, request, seen, remedy)
        if not self._is_pinned:
            # What answers as neither is something in front of them.
            with suppress(UnexpectedAnswerError):
                if self._detecting.do(lambda: self._detect(dialect)) is not dialect:
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
        if self._version is None and self._dialect is not None:  # else that is what is asked now
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
