"""What one Airflow can be asked and told, the same for both API versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import requests

from federation_defs.airflow.dialects import DIALECTS, V1, V2, Dialect, format_time
from federation_defs.airflow.records import (
    Dag,
    DagRun,
    MissingFieldError,
    TaskInstance,
    parse_dag,
    parse_dag_run,
    parse_task_instance,
)
from federation_defs.airflow.session import (
    AirflowSession,
    describe_request,
    read_detail,
    read_server_time,
)
from federation_defs.errors import (
    DagNotFoundError,
    LogicalDateTakenError,
    RunLostError,
    UnexpectedAnswerError,
    UnreachableError,
)

PAGE_LIMIT = 100  # servers clamp to this unless told otherwise, so more is never asked for

T = TypeVar("T")


@dataclass(frozen=True)
class ChangedRuns:
    """Runs that changed since a moment.

    Attributes:
        runs: In the order of their creation.
        server_time: When the server began to answer, by its own clock; None if it did not say.
    """

    runs: list[DagRun]
    server_time: datetime | None


class AirflowClient:
    """One Airflow instance. Safe to share between threads.

    Args:
        session: How to reach it, and for whoever needs an endpoint that has no method here.
        api: The API version, "v1" or "v2", or "auto": the server is asked on first use.

    Every method may raise `UnreachableError`, `SignInRefusedError`, `PermissionMissingError` and
    `UnexpectedAnswerError`; what else it raises is said there.
    """

    def __init__(self, session: AirflowSession, api: str = "auto") -> None:
        self.session = session
        self._dialect = DIALECTS.get(api)

    @property
    def instance(self) -> str:
        """The instance's declared name."""
        return self.session.instance

    @property
    def url(self) -> str:
        return self.session.url

    @property
    def dialect(self) -> Dialect:
        """The server's API version, found out once."""
        if self._dialect is None:
            self._dialect = self._fetch_dialect()
        return self._dialect

    def _fetch_dialect(self) -> Dialect:
        """3.x has no v1 at all and 2.x no v2: the one whose version answers is the one."""
        statuses = []
        for dialect in (V2, V1):
            response = self.session.request("GET", f"{dialect.prefix}/version", is_open=True)
            if _is_json(response) and response.status_code == 200:
                return dialect
            statuses.append(str(response.status_code))
        raise UnexpectedAnswerError(
            self.instance,
            "GET /api/v2/version and /api/v1/version",
            " and ".join(statuses),
            f"Is {self.url} an Airflow's web address, path prefix included?",
        )

    def fetch_version(self) -> str:
        """The server's version, such as "2.11.2"."""
        return self._read(
            self.session.request("GET", f"{self.dialect.prefix}/version", is_open=True),
            lambda answer: str(answer["version"]),
        )

    def fetch_dags(self) -> list[Dag]:
        """All DAGs that the account may read, those whose file has gone left out."""
        pages = self._fetch_pages("/dags", "dags", {})
        dags = [self._parse(parse_dag, answer, "GET /dags") for answer in pages]
        return [dag for dag in dags if dag.is_present]

    def fetch_dag(self, dag_id: str) -> Dag:
        """One DAG.

        Raises:
            DagNotFoundError: The instance does not know it, or its file has gone.
        """
        response = self._get(_build_path("dags", dag_id))
        if self._is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404")
        dag = self._read(response, parse_dag)
        if not dag.is_present:
            raise DagNotFoundError(self.instance, dag_id, "its file has gone, or no longer parses")
        return dag

    def fetch_dag_source(self, dag: Dag) -> str:
        """The text of the file that defines a DAG."""
        path = self.dialect.build_source_path(dag.dag_id, dag.raw["file_token"])
        response = self._get(path, accept="text/plain")
        if response.status_code != 200:
            raise self.session.build_error(response)
        return response.text

    def fetch_changed_runs(self, since: datetime) -> ChangedRuns:
        """All runs of all DAGs whose row changed at or after a moment, by the server's clock.

        By update time, because end dates miss what is set by hand, cleared or late; in the order
        of ids and with no upper bound, because rows that leave a window while it is being paged
        shift the offsets of the rest.
        """
        params = {"updated_at_gte": format_time(since), "order_by": "id"}
        times: list[datetime | None] = []
        pages = self._fetch_pages("/dags/~/dagRuns", "dag_runs", params, times.append)
        runs = [self._parse(parse_dag_run, answer, "GET /dags/~/dagRuns") for answer in pages]
        return ChangedRuns(runs, times[0])

    def fetch_run(self, dag_id: str, run_id: str) -> DagRun | None:
        """One DAG run, or None if there is none of this id."""
        response = self._get(_build_run_path(dag_id, run_id))
        if self._is_absent(response):
            return None
        return self._read(response, parse_dag_run)

    def trigger_run(
        self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None
    ) -> DagRun:
        """The DAG run of this id: started now, or adopted if it is there already.

        Safe to repeat: Airflow keeps run ids unique per DAG (2.11 and 3.3 alike answer 409), and an
        answer that says nothing sure, a 5xx or none at all, is followed by asking for the run.

        Raises:
            DagNotFoundError: The instance has no such DAG.
            LogicalDateTakenError: Another run owns the logical date.
        """
        try:
            response = self.session.request(
                "POST",
                self.dialect.prefix + _build_path("dags", dag_id, "dagRuns"),
                json=self.dialect.build_trigger_body(run_id, conf or {}),
            )
        except UnreachableError:
            if (run := self.fetch_run(dag_id, run_id)) is not None:
                return run
            raise
        if response.status_code in (200, 201):
            try:
                return self._read(response, parse_dag_run)
            except UnexpectedAnswerError:
                if (run := self.fetch_run(dag_id, run_id)) is not None:
                    return run
                raise
        if self._is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404 to the trigger")
        is_ambiguous = response.status_code == 409 or response.status_code >= 500
        if is_ambiguous and (run := self.fetch_run(dag_id, run_id)) is not None:
            return run
        if response.status_code == 409:
            raise LogicalDateTakenError(self.instance, dag_id, run_id, read_detail(response))
        raise self.session.build_error(response)

    def clear_failed_tasks(self, dag_id: str, run_id: str) -> None:
        """Runs the failed tasks of a finished run again, and what comes after them."""
        response = self.session.request(
            "POST",
            self.dialect.prefix + _build_path("dags", dag_id, "clearTaskInstances"),
            json={
                "dag_run_id": run_id,
                "only_failed": True,
                "reset_dag_runs": True,
                "dry_run": False,  # the default is true: nothing would happen
            },
        )
        self._refuse_bad_clear(response, dag_id, run_id)

    def clear_run(self, dag_id: str, run_id: str) -> None:
        """Runs all tasks of a finished run again."""
        response = self.session.request(
            "POST",
            self.dialect.prefix + _build_run_path(dag_id, run_id, "clear"),
            json={"dry_run": False},
        )
        self._refuse_bad_clear(response, dag_id, run_id)

    def _refuse_bad_clear(self, response: requests.Response, dag_id: str, run_id: str) -> None:
        if self._is_absent(response):
            raise RunLostError(self.instance, f"has no run '{run_id}' of DAG '{dag_id}' to clear.")
        if response.status_code != 200:
            raise self.session.build_error(response)

    def fetch_task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """The tasks of a run, mapped ones once per index."""
        path = _build_run_path(dag_id, run_id, "taskInstances")
        pages = self._fetch_pages(path, "task_instances", {})
        return [self._parse(parse_task_instance, answer, f"GET {path}") for answer in pages]

    def fetch_log(self, dag_id: str, run_id: str, task: TaskInstance) -> str:
        """The log of a task instance's last try, as text."""
        log = ("taskInstances", task.task_id, "logs", str(task.try_number))
        path = _build_run_path(dag_id, run_id, *log)
        is_mapped = task.map_index >= 0
        params = {"map_index": task.map_index} if is_mapped else None
        # 2.x gives plain text when asked; 3.x answers that with 406.
        accept = "text/plain" if self.dialect.api == "v1" else None
        response = self._get(path, params=params, accept=accept)
        if response.status_code != 200:
            raise self.session.build_error(response)
        return self.dialect.parse_log(response.json() if _is_json(response) else response.text)

    def build_dag_url(self, dag_id: str) -> str:
        """Where a person looks at a DAG."""
        return self.url + self.dialect.build_dag_page(dag_id)

    def build_run_url(self, dag_id: str, run_id: str) -> str:
        """Where a person looks at a run."""
        return self.url + self.dialect.build_run_page(dag_id, run_id)

    def _is_absent(self, response: requests.Response) -> bool:
        """Whether Airflow says that there is no such thing.

        Raises:
            UnreachableError: Somebody else said so: a gateway whose Airflow is away answers 404
                too, in HTML or plain text.
        """
        if response.status_code != 404:
            return False
        if not _is_json(response):
            seen = f"404 to {describe_request(response)}, but not from Airflow"
            raise UnreachableError(self.instance, self.url, seen)
        return True

    def _get(
        self, path: str, params: Mapping[str, Any] | None = None, accept: str | None = None
    ) -> requests.Response:
        return self.session.request("GET", self.dialect.prefix + path, params=params, accept=accept)

    def _fetch_pages(
        self,
        path: str,
        field: str,
        params: Mapping[str, Any],
        on_answer: Callable[[datetime | None], None] = lambda _: None,
    ) -> Iterator[Mapping[str, Any]]:
        """Every entry of a list, by what came back and `total_entries`: servers clamp the page."""
        offset, total = 0, 1
        while offset < total:
            page = {**params, "limit": PAGE_LIMIT, "offset": offset}
            response = self._get(path, params=page)
            on_answer(read_server_time(response))
            entries, total = self._read(
                response, lambda answer: (answer[field], answer["total_entries"])
            )
            if not entries:
                return
            yield from entries
            offset += len(entries)

    def _read(self, response: requests.Response, parse: Callable[[Any], T]) -> T:
        """A good answer's JSON through `parse`; an error for any other."""
        if response.status_code not in (200, 201):
            raise self.session.build_error(response)
        request = describe_request(response)
        if not _is_json(response):
            kind = response.headers.get("Content-Type", "no content type")
            raise UnexpectedAnswerError(
                self.instance,
                request,
                f"{kind} instead of JSON",
                "Is there a login page or a proxy in between?",
            )
        try:
            answer = response.json()
        except requests.JSONDecodeError as error:
            raise UnexpectedAnswerError(self.instance, request, "broken JSON") from error
        return self._parse(parse, answer, request)

    def _parse(self, parse: Callable[[Any], T], answer: Any, request: str) -> T:
        if not isinstance(answer, Mapping):
            seen = f"a {type(answer).__name__} where an object belongs"
            raise UnexpectedAnswerError(self.instance, request, seen)
        try:
            return parse(answer)
        except MissingFieldError as error:
            raise UnexpectedAnswerError(self.instance, request, str(error)) from error
        except KeyError as error:
            raise UnexpectedAnswerError(self.instance, request, f"no `{error.args[0]}`") from error
        except (AttributeError, TypeError, ValueError) as error:
            seen = f"a field of another kind than Airflow's ({error})"
            raise UnexpectedAnswerError(self.instance, request, seen) from error


def _is_json(response: requests.Response) -> bool:
    return "json" in response.headers.get("Content-Type", "")


def _build_path(*parts: str) -> str:
    """A path whose parts may hold anything: run ids do hold `+`, `:` and worse."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _build_run_path(dag_id: str, run_id: str, *more: str) -> str:
    return _build_path("dags", dag_id, "dagRuns", run_id, *more)
