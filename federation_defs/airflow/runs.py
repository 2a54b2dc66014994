"""DAG runs: what became of them, and starting, clearing and stopping them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import requests

from federation_defs.airflow.api import PagedApi, follow_upgrade, is_absent, parse_version
from federation_defs.airflow.http import describe_request
from federation_defs.airflow.models import ACTIVE_STATES, FINISHED_STATES, DagRun, TriggerOptions
from federation_defs.airflow.parsing import parse_dag_run
from federation_defs.airflow.session import read_detail
from federation_defs.airflow.versions import build_path, build_run_path, format_time
from federation_defs.errors import (
    AirflowError,
    DagNotFoundError,
    LogicalDateTakenError,
    RunLostError,
    RunNotStartedError,
    TlsError,
    UnexpectedAnswerError,
    UnreachableError,
    UnsupportedError,
)

_NOW = TriggerOptions()


@dataclass(frozen=True)
class ChangedRuns:
    """Runs that changed within a span of time.

    Attributes:
        runs: In the order of their creation.
        total: How many there are; more than `runs` if they were more than were asked for.
        server_time: When the server began to answer, by its own clock; None if it did not say.
    """

    runs: list[DagRun]
    total: int
    server_time: datetime | None


class RunEndpoints(PagedApi):
    """Questions about DAG runs, and what is done to them."""

    @follow_upgrade
    def fetch_changed_runs(
        self,
        since: datetime,
        until: datetime | None = None,
        states: Collection[str] = (),
        at_most: int | None = None,
    ) -> ChangedRuns:
        """All runs of all DAGs whose row changed last in this span, by the server's clock.

        By update time, because end dates miss what is set by hand, cleared or late; in the order
        of ids, which nothing changes.

        Args:
            until: No end unless set. Rows that change while the list is paged leave a span that
                ends; it is then read anew.
            states: Only runs in one of them; in any unless set.
            at_most: If there are more, only some of them are given.
        """
        params: dict[str, Any] = {"updated_at_gte": format_time(since), "order_by": "id"}
        if until is not None:
            params["updated_at_lte"] = format_time(until)
        if states:
            params["state"] = sorted(states)
        page = self._fetch_pages("/dags/~/dagRuns", "dag_runs", parse_dag_run, params, at_most)
        return ChangedRuns(page.entries, page.total, page.server_time)

    @follow_upgrade
    def fetch_active_runs(self, at_most: int) -> list[DagRun] | None:
        """The runs of all DAGs that are not over; None if there are more than so many.

        While runs end, the list moves as it is paged, and one that goes on may be missing.
        """
        params = {"state": sorted(ACTIVE_STATES), "order_by": "id"}
        page, _ = self._fetch_list("/dags/~/dagRuns", "dag_runs", parse_dag_run, params, at_most)
        return page.entries if page.total <= at_most else None

    @follow_upgrade
    def fetch_active_runs_by_prefix(
        self, prefix: str, at_most: int
    ) -> tuple[list[DagRun], datetime | None] | None:
        """Fetch the queued and running runs of all DAGs whose run id begins with a prefix.

        3.3 selects them itself (`run_id_prefix_pattern`, which also gives some that don't match);
        earlier 3.x pass over the parameter and 2.x refuses it, so there all active runs are read.

        Returns:
            The runs, and the server's time if it says it. None if the list is longer than
            `at_most`.
        """
        params: dict[str, Any] = {"state": sorted(ACTIVE_STATES), "order_by": "id"}
        if self.api_version.api == "v2":
            params["run_id_prefix_pattern"] = prefix
        page, _ = self._fetch_list("/dags/~/dagRuns", "dag_runs", parse_dag_run, params, at_most)
        if page.total > at_most:
            return None
        return [run for run in page.entries if run.run_id.startswith(prefix)], page.server_time

    @follow_upgrade
    def fetch_run_of_date(self, dag_id: str, logical_date: datetime) -> DagRun | None:
        """The run of a DAG that has this logical date, or None if none has."""
        moment = format_time(logical_date)
        # 2.x takes it by the name that it had before 2.2, and passes over any other.
        name = "execution_date" if self.api_version.api == "v1" else "logical_date"
        params = {f"{name}_gte": moment, f"{name}_lte": moment, "limit": 10}
        response = self._get(build_path("dags", dag_id, "dagRuns"), params=params)
        if is_absent(response):
            return None
        runs = self._read_list(response, "dag_runs", parse_dag_run).entries
        return next((run for run in runs if run.logical_date == logical_date), None)

    @follow_upgrade
    def fetch_latest_finished_run(self, dag_id: str) -> DagRun | None:
        """The run of a DAG that ended last, or None if none has.

        Raises:
            DagNotFoundError: There is no such DAG.
        """
        params = {"state": sorted(FINISHED_STATES), "order_by": "-end_date", "limit": 1}
        response = self._get(build_path("dags", dag_id, "dagRuns"), params=params)
        is_known = not is_absent(response)
        runs = self._read_list(response, "dag_runs", parse_dag_run).entries if is_known else []
        # Of a DAG that there is not, 2.11 just lists no runs.
        if not runs and is_absent(self._get(build_path("dags", dag_id))):
            raise DagNotFoundError(self.instance, dag_id, "404")
        return runs[0] if runs else None

    @follow_upgrade
    def fetch_run(self, dag_id: str, run_id: str) -> DagRun | None:
        """One DAG run, or None if there is none of this id."""
        response = self._get(build_run_path(dag_id, run_id))
        return None if is_absent(response) else self._read(response, parse_dag_run)

    @follow_upgrade
    def fetch_runs(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], DagRun]:
        """DAG runs by (DAG id, run id), without those that there are not.

        A request each, several at a time: neither API takes a list of run ids. For many that go
        on, `fetch_active_runs` tells the same in fewer requests.
        """
        asked = list(dict.fromkeys(keys))
        runs = self._fetch_together(lambda key: self.fetch_run(*key), asked)
        return {key: run for key, run in zip(asked, runs, strict=True) if run is not None}

    @follow_upgrade
    def trigger_run(
        self,
        dag_id: str,
        run_id: str,
        conf: Mapping[str, Any] | None = None,
        options: TriggerOptions = _NOW,
    ) -> DagRun:
        """The DAG run of this id: started now, or adopted if it is there already.

        Safe to repeat: Airflow keeps run ids unique per DAG (2.11 and 3.3 alike answer 409), and an
        answer that says nothing sure, a 5xx or none at all, is followed by asking for the run.

        Raises:
            DagNotFoundError: The instance has no such DAG.
            LogicalDateTakenError: Another run owns the logical date.
            RunNotStartedError: The trigger failed there, or was lost; no run came of it so far.
            RequestRefusedError: The conf, a date or the partition key is none that the DAG takes.
            UnsupportedError: A partition key before 3.2, a data interval before 2.9.
        """
        self._refuse_unsupported(options)
        try:
            response = self._send(
                "POST",
                build_path("dags", dag_id, "dagRuns"),
                json=self.api_version.build_trigger_body(run_id, conf or {}, options),
            )
        except UnreachableError as error:
            return self._fetch_started(dag_id, run_id, error.reason)
        except TlsError:
            if (run := self.fetch_run(dag_id, run_id)) is not None:
                return run
            raise
        if response.status_code in (200, 201):
            with suppress(UnexpectedAnswerError):
                return self._read(response, parse_dag_run)
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404 to the trigger")
        status = response.status_code
        if status == 409:
            if (run := self.fetch_run(dag_id, run_id)) is not None:
                return run
            raise LogicalDateTakenError(self.instance, dag_id, run_id, read_detail(response))
        if status == 408 or status < 300 or status >= 500:
            detail = read_detail(response) if status >= 400 else "no run of Airflow's in it"
            reason = f"{describe_request(response)}: {status}"
            return self._fetch_started(dag_id, run_id, reason, detail)
        raise self.session.build_error(response)

    def _fetch_started(self, dag_id: str, run_id: str, reason: str, detail: str = "") -> DagRun:
        """The run of a trigger that may have been done."""
        try:
            run = self.fetch_run(dag_id, run_id)
        except UnreachableError:
            raise
        except AirflowError as error:
            reason = f"{reason}; asked for the run, it {error.message}"
            raise RunNotStartedError(self.instance, dag_id, run_id, reason, detail) from error
        if run is None:
            raise RunNotStartedError(self.instance, dag_id, run_id, reason, detail)
        return run

    def _refuse_unsupported(self, options: TriggerOptions) -> None:
        """Older versions would say that they know no such field; that tells nobody what to do."""
        needs = {
            "partition keys": (options.partition_key, (3, 2)),
            "data intervals that a trigger gives": (options.data_interval, (2, 9)),
        }
        for what, (value, since) in needs.items():
            if value is None or (self._version and parse_version(self._version) >= since):
                continue
            version = self.fetch_version()  # it may have been upgraded since
            if parse_version(version) < since:
                first = ".".join(map(str, since))
                raise UnsupportedError(self.instance, version, what, first)

    @follow_upgrade
    def clear_failed_tasks(self, dag_id: str, run_id: str) -> None:
        """Runs the failed tasks of a finished run again, and what comes after them.

        Raises:
            RunLostError: There is no such run.
        """
        response = self._send(
            "POST",
            build_path("dags", dag_id, "clearTaskInstances"),
            json={
                "dag_run_id": run_id,
                "only_failed": True,
                "reset_dag_runs": True,
                "dry_run": False,  # the default is true: nothing would happen
            },
        )
        self._refuse_bad_answer(response, dag_id, run_id, "clear")

    @follow_upgrade
    def clear_run(self, dag_id: str, run_id: str) -> None:
        """Runs all tasks of a finished run again.

        Raises:
            RunLostError: There is no such run.
        """
        path = build_run_path(dag_id, run_id, "clear")
        response = self._send("POST", path, json={"dry_run": False})
        self._refuse_bad_answer(response, dag_id, run_id, "clear")

    @follow_upgrade
    def stop_run(self, dag_id: str, run_id: str) -> DagRun:
        """The run, ended: as failed, its tasks' processes gone within seconds. One that is over is
        left as it is (but for one that ends between our look and our word).

        Raises:
            RunLostError: There is no such run.
        """
        run = self.fetch_run(dag_id, run_id)
        if run is not None and run.is_finished:
            return run
        response = self._send("PATCH", build_run_path(dag_id, run_id), json={"state": "failed"})
        self._refuse_bad_answer(response, dag_id, run_id, "stop")
        return self._read(response, parse_dag_run)

    def _refuse_bad_answer(
        self, response: requests.Response, dag_id: str, run_id: str, verb: str
    ) -> None:
        if is_absent(response):
            said = f"has no run '{run_id}' of DAG '{dag_id}' to {verb}. Was it deleted there?"
            raise RunLostError(self.instance, said)
        if response.status_code != 200:
            raise self.session.build_error(response)

    def build_run_url(self, dag_id: str, run_id: str) -> str:
        """Where a person looks at a run."""
        return self.url + self.api_version.build_run_page(dag_id, run_id)
