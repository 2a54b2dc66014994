"""Stores the events of finished runs in Dagster's event log, once for each end of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor
from federation_defs.dagster_io.reports import (
    END_LABEL,
    OUTCOME_LABEL,
    STATE_LABEL,
    UNREADABLE_OUTCOME,
    ReportedRuns,
    fetch_reported_runs,
    fetch_reports,
)
from federation_defs.dagster_io.run_tags import find_owners
from federation_defs.events import (
    ReportEvent,
    build_missing_events,
    build_unreadable_run_observation,
)
from federation_defs.observation.tick import Tick
from federation_defs.outcome import Outcome
from federation_defs.partitions import Partitioning, RunPartition, find_partition
from federation_defs.redaction import clean_text
from federation_defs.timing import Timing

_RUNS_PER_CHECK = 50


@dataclass
class _Known:
    """What was read from the event log for one call of `report`.

    Attributes:
        read_at: When the reports of a DAG were read, by DAG id. Times of the monotonic clock.
    """

    reported: ReportedRuns = field(default_factory=ReportedRuns)
    read_at: dict[str, float] = field(default_factory=dict)


@dataclass
class Reporter:
    """Reports the runs of one instance that no living Dagster run is going to report.

    Events are stored within `timing.owner_check_s` after the check for owners. A Dagster run that
    takes over a finished DAG run first announces itself, and then waits longer than that before it
    reads the event log.

    Attributes:
        partitionings: The partitions of DAGs that have some, by DAG id.
        unknown: The ids of DAGs that declare partitions which are not known yet.
    """

    client: AirflowClient
    partitionings: Mapping[str, Partitioning]
    heartbeats: HeartbeatMonitor
    timing: Timing
    unknown: Collection[str] = ()

    def __post_init__(self) -> None:
        # Halved while the event log is so slow that the time is over before any run is reported.
        self._runs_per_check = _RUNS_PER_CHECK

    def find_owned(self, instance: dg.DagsterInstance, runs: Collection[DagRun]) -> set[RunKey]:
        """Find the finished runs that a living Dagster run has yet to report.

        A Dagster run that has reported a DAG run, or given it up, may still be waiting for others.
        """
        keys = [run.key for run in runs]
        owners = find_owners(instance, self.client.instance, keys, self.heartbeats.is_in_step)
        owned = [run for run in runs if owners[run.key]]
        reported = fetch_reported_runs(instance, self.client.instance, owned)
        return {run.key for run in owned if not reported.is_reported_by(owners[run.key], run)}

    def find_orphans(self, instance: dg.DagsterInstance, keys: Collection[RunKey]) -> set[RunKey]:
        """Find the deferred runs that no living Dagster run owns any more."""
        owners = find_owners(instance, self.client.instance, keys, self.heartbeats.is_in_step)
        return {key for key in keys if not owners[key]}

    def report(
        self, tick: Tick, outcomes: Sequence[Outcome], deadline: float
    ) -> tuple[list[DagRun], list[DagRun]]:
        """Store the events that the event log lacks, unless another process has taken over.

        Args:
            outcomes: Those of each DAG in the order in which to report them.
            deadline: By the monotonic clock. Outcomes that are left then wait for another tick.

        Returns:
            The runs whose events are in the event log now, and the ones of them whose events this
            call has stored.
        """
        settled: list[DagRun] = []
        newly_reported: list[DagRun] = []
        start, now, known = 0, self.timing.monotonic, _Known()
        while start < len(outcomes) and now() < deadline:
            size, until = self._runs_per_check, now() + self.timing.owner_check_s
            if not tick.is_current():
                break
            owned = self._check(tick.instance, outcomes[start:], size, known, until)
            before = start
            for outcome in outcomes[start : start + size]:
                if now() > min(until, deadline) and size > 1:
                    break
                start += 1
                if outcome.run.key in owned:
                    continue
                events = self._build_events(outcome, known.reported, tick.log)
                for event in events:
                    tick.instance.report_runless_asset_event(event)
                if events:
                    newly_reported.append(outcome.run)
                settled.append(outcome.run)
            is_slow = start == before and not owned
            self._runs_per_check = max(1, size // 2) if is_slow else min(_RUNS_PER_CHECK, 2 * size)
        return settled, newly_reported

    def _check(
        self,
        instance: dg.DagsterInstance,
        outcomes: Sequence[Outcome],
        size: int,
        known: _Known,
        until: float,
    ) -> set[RunKey]:
        """Find which of the next runs have owners, and read into `known` what was reported of their
        DAGs.

        The event log is read once for all runs of a DAG, and again before `timing.takeover_s` has
        passed. A step that takes over a run meanwhile waits for that time before it reports it.

        Args:
            outcomes: All outcomes that are left.
            size: The number of the next ones to report.
            until: When the events of the next ones are stored at the latest, by the monotonic
                clock.
        """
        next_runs = [outcome.run for outcome in outcomes[:size]]
        oldest, read_at = until - self.timing.takeover_s, known.read_at
        stale = {run.dag_id for run in next_runs if read_at.get(run.dag_id, -math.inf) <= oldest}
        unread = [outcome.run for outcome in outcomes if outcome.run.dag_id in stale]
        checked_at = self.timing.monotonic()
        owned = self.find_owned(instance, {run.key: run for run in (*next_runs, *unread)}.values())
        known.reported.update(fetch_reported_runs(instance, self.client.instance, unread))
        # If a run has an owner, its DAG is read again at the next check, because the owner may have
        # reported the run by then.
        known.read_at |= dict.fromkeys(stale - {dag_id for dag_id, _ in owned}, checked_at)
        return owned & {run.key for run in next_runs}

    def report_unreadable(
        self, instance: dg.DagsterInstance, reasons: Mapping[RunKey, str]
    ) -> list[RunKey]:
        """Store an observation of each run that can't be read, with the reason, unless it has one.
        Return the newly reported runs."""
        airflow, labels = self.client.instance, {OUTCOME_LABEL: UNREADABLE_OUTCOME}
        reported = fetch_reports(instance, airflow, dict.fromkeys(reasons))
        newly_reported = [key for key in reasons if reported.lacks_unreadable(key)]
        for key in newly_reported:
            event = build_unreadable_run_observation(airflow, key, reasons[key], labels)
            instance.report_runless_asset_event(event)
        return newly_reported

    def _build_events(
        self, outcome: Outcome, reported: ReportedRuns, log: Callable[[], logging.Logger]
    ) -> list[ReportEvent]:
        """Build the events of an outcome that the event log lacks. If that fails, build an
        observation that says why."""
        run = outcome.run
        try:
            partition = find_partition(self.partitionings, run)
            if run.dag_id in self.unknown:
                partition = RunPartition(absence="The DAG's partitions were not known yet.")
            events = build_missing_events(self.client, outcome, reported, partition)
            for event in events:
                dg.serialize_value(event)
        except Exception as error:  # noqa: BLE001 - logged, and reported in place of the run
            reason = f"{type(error).__name__}: {error}"
            ids = map(clean_text, run.key[::-1])
            log().warning(
                "Run %s of DAG %s in Airflow '%s' can't be reported.",
                *ids,
                self.client.instance,
                exc_info=True,
            )
            end = run.end_date and dg.MetadataValue.timestamp(run.end_date)
            labels = {STATE_LABEL: run.state, OUTCOME_LABEL: outcome.result, END_LABEL: end}
            key = self.client.instance, run.key
            return [build_unreadable_run_observation(*key, reason, labels)]
        return events
