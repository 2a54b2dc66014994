"""What became of the runs that a tick reports, as far as it can be told in time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.declaration import SuccessDeclaration
from federation_defs.errors import AirflowError
from federation_defs.observation.cursor import build_fingerprint
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
        self._unjudged_since: dict[bytes, float] = {}

    def judge(self, runs: list[DagRun], deadline: float) -> list[Verdict]:
        """The verdicts on these runs, in their order; of a DAG none after one that must wait.

        Args:
            runs: Those of each DAG in the order in which they ended.
            deadline: By the monotonic clock. What needs more than a look at the run's state waits
                from then on.
        """
        if not runs:
            return []
        needing = [build_fingerprint(run) for run in runs if self._needs_tasks(run)]
        logged = set(needing[-MAX_LOGS_ASKED:])
        is_few = len(runs) <= MAX_TRIES_ASKED

        def judge(run: DagRun) -> Verdict | None:
            is_late = time.monotonic() > deadline
            if not self._needs_tasks(run):
                is_asked = is_few and not is_late
                return fetch_verdict(self._client, run, None) if is_asked else judge_by_state(run)
            verdict = None if is_late else self._judge_by_tasks(run)
            if verdict is None or verdict.is_success or build_fingerprint(run) not in logged:
                return verdict
            return add_log_tails(self._client, verdict)

        at_once = self._client.session.transport.http.max_connections
        with ThreadPoolExecutor(at_once, thread_name_prefix="verdicts") as pool:
            found = list(pool.map(judge, runs))
        verdicts: list[Verdict] = []
        waiting: set[str] = set()
        for run, verdict in zip(runs, found, strict=True):
            if verdict is None:
                waiting.add(run.dag_id)
            elif run.dag_id not in waiting:
                verdicts.append(verdict)
        return verdicts

    def _needs_tasks(self, run: DagRun) -> bool:
        return not run.is_success or self._dags[run.dag_id] is not None

    def _judge_by_tasks(self, run: DagRun) -> Verdict | None:
        """The verdict, or None if it can't be told now: some minutes long, it is waited for."""
        mark = build_fingerprint(run)
        try:
            verdict = fetch_verdict(self._client, run, self._dags[run.dag_id])
        except AirflowError as error:
            now = time.monotonic()
            if now - self._unjudged_since.setdefault(mark, now) < PATIENCE_S:
                return None
            verdict = build_unjudged(run, error)
        self._unjudged_since.pop(mark, None)
        return verdict
