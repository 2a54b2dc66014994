"""What became of the runs that a tick reports, as far as it can be told in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.declaration import SuccessDeclaration
from federation_defs.errors import AirflowError
from federation_defs.observation.cursor import build_fingerprint
from federation_defs.observation.timely import run_in_time
from federation_defs.verdicts import (
    Verdict,
    add_log_tails,
    build_unjudged,
    fetch_verdict,
    judge_by_state,
)

# So many runs a tick are asked for their tasks though nothing but "Tries" needs them, and so many
# failed ones for their logs: in a long history both would take longer than all the rest.
MAX_TRIES_ASKED = 20
MAX_LOGS_ASKED = 20
PATIENCE_S = 600.0


class Judging:
    """The verdicts on one instance's runs.

    Args:
        dags: By DAG id, what decides on the success of its runs.
    """

    def __init__(
        self, client: AirflowClient, dags: Mapping[str, SuccessDeclaration | None]
    ) -> None:
        self._client = client
        self._dags = dags
        self._asked_since: dict[bytes, float] = {}
        self._errors: dict[bytes, AirflowError] = {}

    def judge(self, runs: list[DagRun], deadline: float) -> list[Verdict]:
        """The verdicts on these runs, in their order; of a DAG none after one that must wait.

        Args:
            runs: Those of each DAG in the order in which they ended.
            deadline: By the monotonic clock. What is not told by then waits, but for logs: the
                verdict is given without.
        """
        now = time.monotonic()
        self._forget_all_but(runs)
        is_few = len(runs) <= MAX_TRIES_ASKED
        asked = {build_fingerprint(run): run for run in runs if is_few or self._needs_tasks(run)}
        told = self._run([partial(self._ask, run) for run in asked.values()], (now + deadline) / 2)
        found = {mark: verdict for mark, verdict in zip(asked, told, strict=True) if verdict}
        verdicts: list[Verdict] = []
        waiting: set[str] = set()
        for run in runs:
            verdict = found.get(build_fingerprint(run)) or self._judge_without(run)
            if verdict is None:
                waiting.add(run.dag_id)
            elif run.dag_id not in waiting:
                verdicts.append(verdict)
        return self._add_logs(verdicts, deadline)

    def _run(
        self, calls: list[Callable[[], Verdict | None]], deadline: float
    ) -> list[Verdict | None]:
        return run_in_time(calls, self._client.session.transport.http.max_connections, deadline)

    def _add_logs(self, verdicts: list[Verdict], deadline: float) -> list[Verdict]:
        failed = [number for number, one in enumerate(verdicts) if not one.is_success]
        logged = failed[-MAX_LOGS_ASKED:]
        calls = [partial(add_log_tails, self._client, verdicts[number]) for number in logged]
        with_logs = dict(zip(logged, self._run([*calls], deadline), strict=True))
        return [with_logs.get(number) or one for number, one in enumerate(verdicts)]

    def _needs_tasks(self, run: DagRun) -> bool:
        return not run.is_success or self._dags[run.dag_id] is not None

    def _ask(self, run: DagRun) -> Verdict | None:
        """The verdict, its tasks asked for; None if it can't be told now."""
        if self._needs_tasks(run):
            self._asked_since.setdefault(build_fingerprint(run), time.monotonic())
        rule = self._dags[run.dag_id]
        try:
            verdict = fetch_verdict(self._client, run, rule)
            # Cleared since it was listed? Then the tasks are no longer those of this ending.
            if rule and not verdict.is_success and self._has_changed(run):
                return None
        except AirflowError as error:
            self._errors[build_fingerprint(run)] = error
            return None
        return verdict

    def _has_changed(self, run: DagRun) -> bool:
        now = self._client.fetch_run(run.dag_id, run.run_id)
        return now is None or build_fingerprint(now) != build_fingerprint(run)

    def _judge_without(self, run: DagRun) -> Verdict | None:
        """The verdict on a run whose tasks were not told: by its state, if that is all it takes.
        Else None, some minutes long."""
        if not self._needs_tasks(run):
            return judge_by_state(run)
        mark = build_fingerprint(run)
        since = self._asked_since.get(mark)
        if since is None or time.monotonic() - since < PATIENCE_S:
            return None
        why = str(self._errors.get(mark, "no answer in time"))
        return build_unjudged(run, self._dags[run.dag_id], why)

    def _forget_all_but(self, runs: list[DagRun]) -> None:
        marks = {build_fingerprint(run) for run in runs}
        for kept in (self._asked_since, self._errors):
            for mark in kept.keys() - marks:
                kept.pop(mark, None)
