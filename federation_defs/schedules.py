"""Resolves `cron: auto`: the partitions that the schedule of a DAG in its Airflow implies. Pure.

The partition of a run is the window between two ticks that ends when the run fires. With data
intervals, the logical date of the run is the start of that window; with a cron trigger, all dates
of the run are the end. So both kinds have the same partitions, and the logical date of the next run
shows the kind.

Airflow (2.11, 3.3) returns neither the class of a timetable nor its time zone: the `timezone` of a
DAG's details is the server's default. So the next run has to be at a tick in one time zone only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import ValidationError

from federation_defs.airflow.models import Schedule
from federation_defs.declaration import (
    InstanceDeclaration,
    PartitionsDeclaration,
    find_upstream,
)
from federation_defs.declaration.fields import find_timezones
from federation_defs.declaration.partitions import find_last_window, find_next_window
from federation_defs.errors import AirflowError
from federation_defs.partition_mapping import in_utc

_MOST_PARTITIONS = 100_000  # of an asset, as Dagster advises (1.13)
_KEY_FORMAT = "%Y-%m-%dT%H:%M:%S"  # of a `CronPartitionTimetable` that sets none (3.3)
_CRONS = {"@quarterly": "0 0 1 */3 *"}  # names that Dagster does not have
_DELTA = re.compile(r"(?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)")
_QUOTED = re.compile(r"""["']([\w/+-]+)["']""")
_UTC_MENTION = re.compile(r"\butc\b", re.IGNORECASE)
_ZONE_MENTION = re.compile(r"\b(\w+_)?tz\w*|\b\w*time_?zone\w*|\bzoneinfo\b", re.IGNORECASE)
_HOURLY = re.compile(r"@hourly|\S+ \* \* \* \*")  # at the same minutes in (nearly) all time zones
_QUARTER, _DAY, _HOUR = timedelta(days=91), timedelta(days=1), timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_INSTEAD = "write `cron` and `start`"
_REFRESH = "refresh the state: `dg utils refresh-defs-state`"
_UNTIL_KNOWN = (
    "A run that ends before they are known belongs to none of them, unless it runs again."
)


@dataclass(frozen=True)
class AutoPartitions:
    """The partitions of one DAG with `cron: auto`.

    Attributes:
        declared: The keys that were declared when this was resolved.
        resolved: The keys in full; None if the schedule does not determine them.
        problem: What is wrong and what to do, as sentences; None if nothing is.
    """

    declared: Mapping[str, str]
    resolved: Mapping[str, str] | None
    problem: str | None = None

    def build(self) -> PartitionsDeclaration | None:
        """Return the declaration in full; None if it is not resolved, or no longer valid."""
        try:
            return PartitionsDeclaration.model_validate(self.resolved) if self.resolved else None
        except ValidationError:
            return None


def find_auto_partitions(declaration: InstanceDeclaration) -> dict[str, PartitionsDeclaration]:
    """Return the declarations with `cron: auto`, by DAG id."""
    return {
        dag_id: dag.partitions
        for dag_id, dag in declaration.dags.items()
        if dag.partitions and dag.partitions.is_auto
    }


def resolve_declaration(
    declaration: InstanceDeclaration, known: Mapping[str, AutoPartitions]
) -> InstanceDeclaration:
    """Return the declaration of an instance with all partitions in full. A DAG whose partitions are
    not known has none.

    Args:
        known: What `cron: auto` stands for, by DAG id.
    """
    resolved = {
        dag_id: declaration.dags[dag_id].model_copy(
            update={"partitions": known[dag_id].build() if dag_id in known else None}
        )
        for dag_id in find_auto_partitions(declaration)
    }
    fields = {**dict(declaration), "dags": {**declaration.dags, **resolved}}
    # A copy would keep the cached properties of the original.
    return InstanceDeclaration.model_construct(declaration.model_fields_set, **fields)


def find_unknown_partitions(
    declaration: InstanceDeclaration, instances: Mapping[str, InstanceDeclaration]
) -> dict[str, list[str]]:
    """Return the DAGs that nothing can start, because their own partitions or those of upstreams
    are not known. By DAG id, a clause for each such upstream.

    Args:
        declaration: With all partitions resolved, as in `instances`.
        instances: The declarations of all instances, by name.
    """

    def is_unknown(upstream: tuple[str, str]) -> bool:
        dag = find_upstream(instances, upstream)
        return dag is not None and dag.declares_partitions and dag.partitions is None

    return {
        dag_id: [
            f"the partitions of {'/'.join(each)} are not known; see its check `partitions`"
            for each in filter(is_unknown, dag.upstreams)
        ]
        for dag_id, dag in declaration.downstreams.items()
        if any(map(is_unknown, [(declaration.name, dag_id), *dag.upstreams]))
    }


def describe_auto(
    declared: PartitionsDeclaration | None, known: AutoPartitions | None
) -> str | None:
    """Return what is wrong with the partitions of a DAG with `cron: auto`, as sentences. None if
    nothing is, or for another DAG."""
    if declared is None or not declared.is_auto:
        return None
    if known is None:
        return f"Its partitions are not known yet; {_REFRESH}. {_UNTIL_KNOWN}"
    is_known, problem = known.build() is not None, known.problem
    if known.declared != _dump(declared) or (known.resolved and not is_known):
        problem = f"Its partitions are those of an earlier declaration; {_REFRESH}."
    return problem if is_known else f"{problem} {_UNTIL_KNOWN}"


def resolve_schedule(
    declared: PartitionsDeclaration,
    schedule: Schedule | AirflowError,
    source: str | AirflowError | None,
    last: AutoPartitions | None,
) -> AutoPartitions:
    """Return the partitions of a DAG with `cron: auto`.

    The first result is kept until the declaration changes, so that reported partitions keep their
    meaning. Only an earlier start is taken, which adds partitions. To take another schedule, a
    person writes another `start`.

    Args:
        schedule: The DAG's schedule, or the error of reading it.
        source: The text of the file that defines the DAG, which may name time zones, or the error
            of reading it; None if the file was deleted, or need not be read.
        last: The result at the last refresh; None if there is none.
    """
    written, found, problem = _dump(declared), None, None
    known = last.build() if last and last.declared == written else None
    try:
        if isinstance(schedule, AirflowError):
            raise schedule
        found = _resolve(declared, schedule, source, known)
    except AirflowError as error:
        problem = str(error)
    except (ArithmeticError, ValueError) as error:
        problem = f"Its schedule does not determine its partitions: {_describe_error(error)}."
    if known is None:
        return AutoPartitions(written, found and _dump(found), problem)
    if found is None:
        problem = f"{problem} The partitions stay those of {_describe(known)}."
    elif _describe(found) != _describe(known):
        problem = (
            f"Its schedule is now {_describe(found)}. The partitions stay those of "
            f"{_describe(known)}, as reported ones would get another meaning. To take the new "
            "schedule from some day on, write that day: `partitions: {cron: auto, start: …}`."
        )
    elif found.start and known.start and found.start < known.start:
        known = found
    return AutoPartitions(written, _dump(known), problem)


def _resolve(
    declared: PartitionsDeclaration,
    schedule: Schedule,
    source: str | AirflowError | None,
    known: PartitionsDeclaration | None,
) -> PartitionsDeclaration:
    """Return the declaration in full.

    Args:
        known: The result at the last refresh. It stays if Airflow plans no next run and `cron` is
            the same. If several time zones fit, its time zone stays.

    Raises:
        ArithmeticError: A date is out of range.
        ValueError: The schedule does not determine it. The message has the reason and what to
            write, as the end of a sentence.
    """
    values = declared.model_dump(exclude_unset=True, exclude_none=True)
    values["cron"] = cron = _find_cron(schedule)
    if schedule.next_fires_at is None and known is not None and known.cron == cron:
        return known
    if "timezone" in values:
        zones = [declared.timezone]
    elif _DELTA.fullmatch(schedule.text or ""):
        zones = ["UTC"]
    else:
        zones = _find_zones(schedule, cron, source)
    windows, window = _find_windows(cron, zones, schedule.next_fires_at, known)
    values["timezone"] = windows.timezone
    if schedule.is_partitioned and "key_format" not in values:
        values["key_format"] = _find_key_format(schedule)
    elif not schedule.is_partitioned and "date" not in values:
        values["date"] = _find_date(schedule, window)
    if "start" not in values:
        is_trigger = values.get("date") == "data_interval_end"
        values["start"] = _find_start(schedule, windows, window, is_trigger=is_trigger)
    elif declared.start is not None:
        begin = datetime.combine(declared.start, time.min, ZoneInfo(windows.timezone))
        _check_number(begin, window, f"since {declared.start}")
    return PartitionsDeclaration.model_validate(values)


def _find_cron(schedule: Schedule) -> str:
    if (text := schedule.text) is None:
        raise ValueError(f"the DAG has none; {_INSTEAD}")
    if (match := _DELTA.fullmatch(text)) is not None:
        delta = timedelta(**{unit: int(number or 0) for unit, number in match.groupdict().items()})
        return _convert_delta(delta, schedule)
    cron = _CRONS.get(text, text)
    try:
        _build_windows(cron, "UTC")
    except ValidationError as error:
        raise ValueError(f"'{text}' gives none ({_describe_error(error)}); {_INSTEAD}") from None
    return cron


def _convert_delta(delta: timedelta, schedule: Schedule) -> str:
    """Return the cron expression that has the ticks of a time delta, in UTC.

    Airflow (2.11, 3.3) counts from the start date, or from the last run. After a pause, without
    catch-up, it counts from 1970 (data intervals), or from the end of the pause (triggers).
    """
    date, fires_at = schedule.next_logical_date, schedule.next_fires_at
    has_intervals = fires_at is None or (date and fires_at - date == delta)
    moments = [moment for moment in (date, fires_at, schedule.start_date) if moment]
    if delta and (has_intervals or schedule.catchup):
        is_steady = all((moment - _EPOCH) % delta == timedelta() for moment in moments)
        minutes = delta // timedelta(minutes=1)
        if is_steady and delta in (_HOUR, _DAY):
            return "0 * * * *" if delta == _HOUR else "0 0 * * *"
        if is_steady and minutes and not _HOUR % delta:
            return f"*/{minutes} * * * *"
        if is_steady and not _DAY % delta and not delta % _HOUR:
            return f"0 */{minutes // 60} * * *"
    raise ValueError(
        f"it is a time delta ({schedule.text}), which Airflow counts from run to run; {_INSTEAD}"
    )


def _find_zones(schedule: Schedule, cron: str, source: str | AirflowError | None) -> list[str]:
    """Return the time zones that the schedule may have. A date without one has the server's."""
    if not isinstance(source, str):
        why = f" ({source})" if source else ""
        raise ValueError(
            f"Airflow does not show the DAG's file, which has its time zone{why}; write `timezone`"
        )
    named = [zone for zone in _QUOTED.findall(source) if zone in find_timezones()]
    is_known = named or _UTC_MENTION.search(source) or _HOURLY.fullmatch(cron)
    if not is_known and (word := _ZONE_MENTION.search(source)):
        raise ValueError(
            f"the DAG's file takes its time zone from elsewhere ('{word[0]}'); write `timezone`"
        )
    zones = dict.fromkeys([schedule.timezone or "UTC", "UTC", *named])
    return [zone for zone in zones if zone in find_timezones()]


def _find_windows(
    cron: str,
    zones: Sequence[str],
    fires_at: datetime | None,
    known: PartitionsDeclaration | None,
) -> tuple[dg.TimeWindowPartitionsDefinition, dg.TimeWindow]:
    """Return the windows between the ticks, and the window that ends when the next run fires.

    The time zone is the only one of `zones` with a tick at that time. (Zones with the same ticks
    count as one.) If there are several, it is the known one.
    """
    if fires_at is None:
        raise ValueError(f"Airflow plans no next run, which would confirm them; {_INSTEAD}")
    found = dict[tuple[float, ...], tuple[dg.TimeWindowPartitionsDefinition, dg.TimeWindow]]()
    last = known and known.timezone
    for zone in sorted(zones, key=lambda zone: zone != last):
        windows = _build_windows(cron, zone)
        window = in_utc(find_last_window(windows, fires_at))
        if window.end == fires_at:
            later = (fires_at + number * _QUARTER for number in (1, 2, 3))
            ticks = tuple(find_next_window(windows, each).start.timestamp() for each in later)
            found.setdefault(ticks, (windows, window))
    fitting = [windows.timezone for windows, _ in found.values()]
    if len(fitting) != 1 and last not in fitting:
        found_ticks = (
            f"a tick of '{cron}' in {' and in '.join(fitting)}"
            if fitting
            else f"no tick of '{cron}' in {' or '.join(zones)}"
        )
        raise ValueError(
            f"the next run is due at {fires_at:%Y-%m-%dT%H:%M:%S}Z, {found_ticks}; write `timezone`"
        )
    return next(iter(found.values()))


def _build_windows(cron: str, timezone: str) -> dg.TimeWindowPartitionsDefinition:
    values = {"cron": cron, "timezone": timezone, "start": "2026-01-01"}
    return PartitionsDeclaration.model_validate(values).build_definition()


def _find_date(schedule: Schedule, window: dg.TimeWindow) -> str:
    match schedule.next_logical_date:
        case window.start:
            return "data_interval_start"
        case window.end:
            return "data_interval_end"
        case date:
            raise ValueError(
                f"the logical date of the next run is {date}, neither start nor end of its window; "
                "write `date`"
            )


def _find_key_format(schedule: Schedule) -> str:
    """Return Airflow's default format of partition keys, if the DAG's last key has it."""
    if (key := schedule.latest_key) is None:
        raise ValueError("no run has ended whose partition key confirms it; write `key_format`")
    try:
        datetime.strptime(key, _KEY_FORMAT)
    except ValueError:
        raise ValueError(
            f"the last partition key, '{key}', does not have Airflow's default format; write "
            "`key_format`"
        ) from None
    return _KEY_FORMAT


def _find_start(
    schedule: Schedule,
    windows: dg.TimeWindowPartitionsDefinition,
    window: dg.TimeWindow,
    *,
    is_trigger: bool,
) -> str:
    """Return the day on which the first window begins.

    Args:
        window: That of the next run.
        is_trigger: Whether the first run fires at the first tick, and not at the end of a first
            interval.
    """
    if schedule.start_date is None:
        raise ValueError("Airflow shows no start date; write `start`")
    _check_number(schedule.start_date, window, "since its start date")
    first = find_next_window(windows, schedule.start_date)
    if is_trigger:
        first = find_last_window(windows, first.start)
    return f"{first.start.astimezone(ZoneInfo(windows.timezone)):%Y-%m-%d}"


def _check_number(begin: datetime, window: dg.TimeWindow, since: str) -> None:
    if (window.end - begin) / (window.end - window.start) > _MOST_PARTITIONS:
        raise ValueError(
            f"{since} there would be more than {_MOST_PARTITIONS} partitions; write a later `start`"
        )


def _dump(declared: PartitionsDeclaration) -> dict[str, str]:
    # Without `start: null`, which a declaration in full must not have.
    return declared.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def _describe(declared: PartitionsDeclaration) -> str:
    """Return all that the meaning of a partition key depends on, as text."""
    keys = f", keys {declared.key_format}" if declared.key_format else f" by {declared.date}"
    return f"'{declared.cron}' in {declared.timezone}{keys}"


def _describe_error(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    (first, *_) = error.errors(include_url=False)
    return ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
