"""DAG runs and their tasks: read, trigger, clear and stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from random import randrange
from typing import Any

import requests

from federation_defs.airflow.api import (
    MAX_ROWS,
    AirflowApi,
    is_absent,
    retry_after_upgrade,
)
from federation_defs.airflow.http import describe_request, read_server_time
from federation_defs.airflow.models import (
    ACTIVE_STATES,
    FINISHED_STATES,
    UNREADABLE_STATE,
    DagRun,
    RunKey,
    TaskInstance,
    TriggerOptions,
    parse_dag_run,
    parse_log_line,
    parse_task_instance,
    require_text,
)
from federation_defs.airflow.pages import Page, parse_rows
from federation_defs.airflow.session import read_detail
from federation_defs.airflow.versions import V2, build_path, build_run_path, parse_version
from federation_defs.errors import (
    RUN_ANEW,
    AirflowError,
    DagNotFoundError,
    LogicalDateTakenError,
    RunLostError,
    RunNotStartedError,
    TlsError,
    UnexpectedAnswerError,
    UnreachableError,
    UnsupportedError,
    quote_detail,
)

MAX_LOG_BYTES = 64_000_000
_LONGER_LOG = f"… (longer than {MAX_LOG_BYTES // 10**6} MB: read the rest in Airflow)"
MAX_NOW_TRIES = 3
_NO_OPTIONS = TriggerOptions()
_PARSE_RUNS = partial(parse_rows, "dag_runs", parse_dag_run)
_UNREADABLE_TASK = TaskInstance(
    "(an unreadable row)", map_index=-1, state=UNREADABLE_STATE, try_number=0
)


class RunEndpoints(AirflowApi):
    """Endpoints for DAG runs and task instances."""

    @retry_after_upgrade
    def fetch_changed_runs(
        self,
        since: datetime,
        until: datetime | None = None,
        states: Collection[str] = (),
        at_most: int = MAX_ROWS,
    ) -> Page[DagRun]:
        """Fetch the runs of all DAGs whose row last changed in a span, by the server's clock.

        The update time counts, because the end date misses runs that were cleared, set by hand, or
        whose row appeared late. Runs are in the order of their database ids, which never change.
        Runs that can't be parsed are in `unreadable`, with their keys.

        Args:
            until: The end of the span; None for an open one. With an end, a row that changes again
                while the list is read leaves the span, and the list is read again.
            states: Only runs in these states.
            at_most: If there are more runs than this, and more than a page, only the first page is
                fetched.
        """
        params: dict[str, Any] = {"updated_at_gte": since.isoformat(), "order_by": "id"}
        if until is not None:
            params["updated_at_lte"] = until.isoformat()
        if states:
            params["state"] = sorted(states)
        return self._fetch_list("/dags/~/dagRuns", "dag_runs", parse_dag_run, params, at_most)

    @retry_after_upgrade
    def fetch_active_runs(
        self, at_most: int, prefix: str = "", dag_id: str = "~"
    ) -> Page[DagRun] | None:
        """Fetch the queued and running runs of all DAGs, or of one. Return None if there are more
        than `at_most`, and more than a page.

        The list moves when runs end while it is read, so an active run may be missing.

        Args:
            prefix: Only runs whose id begins with it. 3.3 selects them itself, with some that don't
                match. Earlier 3.x ignores the parameter and 2.x refuses it, so there `at_most`
                counts all active runs.
        """
        params: dict[str, Any] = {"state": sorted(ACTIVE_STATES), "order_by": "id"}
        if prefix and self.api_version.api == "v2":
            params["run_id_prefix_pattern"] = prefix
        path = build_path("dags", dag_id, "dagRuns")
        page = self._fetch_pages(path, "dag_runs", parse_dag_run, params, at_most)
        if not page.is_whole:
            return None
        return replace(
            page,
            entries=[run for run in page.entries if run.run_id.startswith(prefix)],
            unreadable=[row for row in page.unreadable if (row.run_id or "").startswith(prefix)],
        )

    @retry_after_upgrade
    def fetch_running_runs(self, started_before: datetime, at_most: int) -> Page[DagRun]:
        """Fetch the running runs of all DAGs that started before a time, by Airflow's clock. If
        there are more than `at_most`, and more than a page, only the oldest of them.

        The list moves when runs end while it is read, so a running run may be missing.
        """
        moment = started_before.isoformat()
        params = {"state": ["running"], "start_date_lte": moment, "order_by": "id"}
        return self._fetch_pages("/dags/~/dagRuns", "dag_runs", parse_dag_run, params, at_most)

    @retry_after_upgrade
    def fetch_run_of_date(self, dag_id: str, logical_date: datetime) -> DagRun | None:
        """Fetch the run of a DAG with this logical date, or None."""
        name, moment = self.api_version.logical_date, logical_date.isoformat()
        params = {f"{name}_gte": moment, f"{name}_lte": moment, "limit": 10}
        response = self._get(build_path("dags", dag_id, "dagRuns"), params=params)
        if is_absent(response):
            return None
        runs = self._read(response, _PARSE_RUNS)
        return next((run for run in runs if run.logical_date == logical_date), None)

    @retry_after_upgrade
    def fetch_latest_finished_run(self, dag_id: str) -> DagRun | None:
        """Fetch the run of a DAG that ended last, or None.

        Raises:
            DagNotFoundError: The instance has no such DAG.
        """
        params = {"state": sorted(FINISHED_STATES), "order_by": "-end_date", "limit": 1}
        response = self._get(build_path("dags", dag_id, "dagRuns"), params=params)
        is_known = not is_absent(response)
        runs = self._read(response, _PARSE_RUNS) if is_known else []
        # For an unknown DAG, 2.11 returns an empty list.
        if not runs and is_absent(self._get(build_path("dags", dag_id))):
            raise DagNotFoundError(self.instance, dag_id, "404")
        return runs[0] if runs else None

    @retry_after_upgrade
    def fetch_run(self, dag_id: str, run_id: str) -> DagRun | None:
        """Fetch a run, or None if the DAG has no run of this id."""
        response = self._get(build_run_path(dag_id, run_id))
        return None if is_absent(response) else self._read(response, parse_dag_run)

    @retry_after_upgrade
    def trigger_run(
        self,
        dag_id: str,
        run_id: str,
        conf: Mapping[str, Any] = {},
        options: TriggerOptions = _NO_OPTIONS,
    ) -> DagRun:
        """Start a run, or adopt the existing one of this id, and return it.

        Idempotent: Airflow keeps run ids unique per DAG and answers 409 to a second one (2.11,
        3.3), whatever its date. If the answer is lost or a 5xx, the run is looked up. If it does
        not exist, this raises `RunNotStartedError`, and another call with the same ids uses the
        same logical date. Errors hide the conf's secrets.

        Raises:
            DagNotFoundError: The instance has no such DAG.
            LogicalDateTakenError: Another run has the logical date.
            RunNotStartedError: The trigger failed or was lost, and no such run was found so far.
            RequestRefusedError: The DAG does not accept the conf, a date or the partition key.
            UnsupportedError: A partition key before 3.2, a run without a date before 3.0, or a
                data interval before 2.9.
        """
        self._check_supported(options)
        if options.logical_date == "now":
            for _ in range(MAX_NOW_TRIES - 1):
                with suppress(LogicalDateTakenError):  # another trigger chose the same microsecond
                    return self._trigger_run(dag_id, run_id, conf, options)
        return self._trigger_run(dag_id, run_id, conf, options)

    def _trigger_run(
        self, dag_id: str, run_id: str, conf: Mapping[str, Any], options: TriggerOptions
    ) -> DagRun:
        key = dag_id, run_id
        if options.logical_date == "now" and self.api_version.api == "v2":  # 2.x chooses it itself
            if key not in self._lost_triggers:
                self._lost_triggers[key] = self._fetch_now()
            options = replace(options, logical_date=self._lost_triggers[key])
        body = self.api_version.build_trigger_body(run_id, conf, options)
        try:
            response = self._send("POST", build_path("dags", dag_id, "dagRuns"), json=body)
        except UnreachableError as error:
            return self._fetch_triggered_run(dag_id, run_id, error.reason)
        except TlsError:
            if (run := self.fetch_run(dag_id, run_id)) is not None:
                return run
            raise
        status = response.status_code
        if status in (200, 201):
            with suppress(UnexpectedAnswerError):
                run = self._read(response, parse_dag_run)
                self._lost_triggers.pop(key, None)
                return run
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404 to the trigger")
        detail = read_detail(response)
        if status == 409:
            self._lost_triggers.pop(key, None)
            if (run := self.fetch_run(dag_id, run_id)) is not None:
                return run
            raise LogicalDateTakenError(self.instance, dag_id, run_id, detail)
        if status == 408 or status < 300 or status >= 500:
            seen = quote_detail(detail if status >= 400 else "no DAG run in the answer")
            reason = f"{describe_request(response)}: {status}{seen}"
            return self._fetch_triggered_run(dag_id, run_id, reason)
        raise self.session.build_error(response)

    def _fetch_now(self) -> datetime:
        """Return the second of the server's clock, and up to 10 ms at random, as a logical date.

        Without the random part, triggers of the same second would have the same date, and Airflow
        skips a scheduled run whose date is taken (3.3, `_create_dag_runs`). It is no longer than
        Airflow takes to look at a new run, because no task runs before the logical date (3.3,
        `RunnableExecDateDep`).
        """
        response = self._get_open(f"{self.api_version.prefix}/version")
        now = read_server_time(response) or self.session.transport.timing.utc_now()
        return now + timedelta(microseconds=randrange(1, 10_000))  # noqa: S311 - to differ

    def _fetch_triggered_run(self, dag_id: str, run_id: str, reason: str) -> DagRun:
        """Fetch the run of a trigger whose outcome is unknown.

        Raises:
            RunNotStartedError: There is no such run so far, or it can't be read.
        """
        try:
            run = self.fetch_run(dag_id, run_id)
        except UnreachableError:
            raise
        except AirflowError as error:
            reason = f"{reason}; asked for the run, Airflow {error.message}"
            raise RunNotStartedError(self.instance, dag_id, run_id, reason) from error
        if run is None:
            raise RunNotStartedError(self.instance, dag_id, run_id, reason)
        self._lost_triggers.pop(run.key, None)
        return run

    def _check_supported(self, options: TriggerOptions) -> None:
        """Refuse options that the server's version lacks. Its own error would only name a field."""
        requirements = {
            "partition keys": (options.partition_key is not None, (3, 2)),
            "runs without a logical date": (options.logical_date == "none", (3, 0)),
            "data intervals of triggers": (options.data_interval is not None, (2, 9)),
        }
        for feature, (is_needed, since) in requirements.items():
            if not is_needed or (self._version and parse_version(self._version) >= since):
                continue
            version = self.fetch_version()  # it may have been upgraded
            if parse_version(version) < since:
                first = ".".join(map(str, since))
                raise UnsupportedError(self.instance, version, feature, first)

    @retry_after_upgrade
    def clear_failed_tasks(self, dag_id: str, run_id: str) -> None:
        """Clear the failed tasks of a finished run, and those downstream: Airflow runs them again.

        Raises:
            RunLostError: There is no such run.
        """
        # `dry_run` is true by default.
        body = {"dag_run_id": run_id, "only_failed": True, "reset_dag_runs": True, "dry_run": False}
        response = self._send("POST", build_path("dags", dag_id, "clearTaskInstances"), json=body)
        self._check_done(response, dag_id, run_id, "clear")

    @retry_after_upgrade
    def clear_run(self, dag_id: str, run_id: str) -> None:
        """Clear all tasks of a finished run: Airflow runs them again.

        Raises:
            RunLostError: There is no such run.
        """
        path = build_run_path(dag_id, run_id, "clear")
        response = self._send("POST", path, json={"dry_run": False})
        self._check_done(response, dag_id, run_id, "clear")

    @retry_after_upgrade
    def stop_run(self, dag_id: str, run_id: str, *, again: bool = False) -> DagRun:
        """Set a run to failed and return it. Airflow ends its processes within seconds.

        A finished run is left as it is, unless it ends between the check and the request.

        Where the scheduler locks no rows (SQLite, or `use_row_level_locking = False`), it may have
        read the run before the stop. Then it overwrites the state with one that it derives from
        the tasks, which is a success if the last ones were skipped (2.11, `DagRun.update_state`).
        So a stop has to be repeated some seconds later.

        Args:
            again: Whether the run was stopped before: then a success is set to failed as well.

        Raises:
            RunLostError: There is no such run.
        """
        run = self.fetch_run(dag_id, run_id)
        if run is not None and run.is_finished and not (again and run.is_success):
            return run
        response = self._send("PATCH", build_run_path(dag_id, run_id), json={"state": "failed"})
        self._check_done(response, dag_id, run_id, "stop")
        return self._read(response, parse_dag_run)

    def _check_done(self, response: requests.Response, dag_id: str, run_id: str, verb: str) -> None:
        if is_absent(response):
            missing = f"has no run '{run_id}' of DAG '{dag_id}' to {verb}: it was deleted there."
            raise RunLostError(
                self.instance, f"{missing} {RUN_ANEW}" if verb == "clear" else missing
            )
        if response.status_code != 200:
            raise self.session.build_error(response)

    @retry_after_upgrade
    def fetch_task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Fetch the tasks of a run; mapped tasks once per index.

        Those whose rows can't be read come last, as one nameless task in `UNREADABLE_STATE`.
        """
        path = build_run_path(dag_id, run_id, "taskInstances")
        page = self._fetch_list(path, "task_instances", parse_task_instance, {})
        # Tasks that are expanded while the list is read move the others: some may come twice.
        tasks = list({(task.task_id, task.map_index): task for task in page.entries}.values())
        return [*tasks, _UNREADABLE_TASK] if page.unreadable else tasks

    @retry_after_upgrade
    def fetch_running_tasks(self, at_most: int) -> dict[RunKey, list[TaskInstance]] | None:
        """Fetch the running tasks of all DAGs by (DAG id, run id), or None if there are more than
        `at_most`, and more than a page."""
        path, params = build_run_path("~", "~", "taskInstances"), {"state": ["running"]}
        page = self._fetch_pages(path, "task_instances", _parse_with_run_key, params, at_most)
        if not page.is_whole:
            return None
        tasks: dict[RunKey, list[TaskInstance]] = {}
        for key, task in page.entries:
            tasks.setdefault(key, []).append(task)
        return tasks

    @retry_after_upgrade
    def fetch_log(
        self, dag_id: str, run_id: str, task: TaskInstance, at_most: int = MAX_LOG_BYTES
    ) -> str:
        """Fetch the end of the log of a task instance's last try.

        The log is read as a stream, so memory holds little more of it than `at_most`. A log is read
        up to 64 MB; the last line then is a note that it is longer.

        Args:
            at_most: The number of characters to return.
        """
        number = str(task.try_number)
        path = build_run_path(dag_id, run_id, "taskInstances", task.task_id, "logs", number)
        params = {"full_content": "true"}
        if task.map_index >= 0:
            params["map_index"] = str(task.map_index)
        api_version = self.api_version
        log_type, parse = api_version.log_type, parse_log_line if api_version is V2 else str
        tail: deque[str] = deque()
        kept = read = 0
        with closing(self._get(path, params=params, accept=log_type, is_streamed=True)) as response:
            self._check_content(response, log_type, "a log")
            for line in self.session.transport.read_lines(response):
                read += len(line) + 1
                is_too_long = read > MAX_LOG_BYTES
                text = _LONGER_LOG if is_too_long else parse(line.decode(errors="replace"))
                tail.append(text)
                kept += len(text) + 1
                while kept - len(tail[0]) - 2 >= at_most:
                    kept -= len(tail.popleft()) + 1
                if is_too_long:
                    break
        return "\n".join(tail)[-at_most:]

    def build_run_url(self, dag_id: str, run_id: str) -> str:
        """Return the address of a run's page."""
        return self.url + self.api_version.build_run_page(dag_id, run_id)


def _parse_with_run_key(answer: Mapping[str, Any]) -> tuple[RunKey, TaskInstance]:
    key = require_text(answer, "dag_id"), require_text(answer, "dag_run_id")
    return key, parse_task_instance(answer)
