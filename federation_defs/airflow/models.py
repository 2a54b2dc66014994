"""Records of what Airflow answers, the same for both APIs, and their parsers.

Times are aware and in UTC. An optional value that is missing or of an unexpected type is None, or
empty. A required field raises `KeyError` if it is missing, and `TypeError` or `ValueError` if its
type or value is wrong.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from federation_defs.redaction import clean_text

ACTIVE_STATES = frozenset({"queued", "running"})
FINISHED_STATES = frozenset({"success", "failed"})
UNREADABLE_STATE = "unreadable"  # in place of the state of a task whose row can't be read

RunKey = tuple[str, str]  # DAG id and run id: run ids are unique per DAG only
Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dag:
    """A DAG as an instance lists it.

    Attributes:
        is_present: Whether its file exists and parses; the DAG may be paused. Airflow still lists
            a DAG for a while after its file has gone (`is_active` in 2.x, `is_stale` in 3.x).
        has_import_errors: Whether its file can't be imported as it is now.
        is_partitioned: Whether its runs have partition keys instead of logical dates (3.2).
        last_parsed_at: When its file last defined it, or None.
        schedule: Its schedule as text (a cron expression, "@daily"), or None.
        file_token: The id of its source in 2.x.
        file: The path of its file, the same for all DAGs in one file.
        raw: The whole answer. None unless asked for, because it takes most of a long list's memory.
    """

    dag_id: str
    is_paused: bool
    is_present: bool
    has_import_errors: bool
    is_partitioned: bool
    last_parsed_at: datetime | None
    description: str | None
    owners: tuple[str, ...]
    tags: tuple[str, ...]
    schedule: str | None
    file_token: str
    file: str
    raw: Answer | None = None

    @property
    def problem(self) -> str | None:
        """Why the DAG can't run though it is present, as it follows its name; None if it can."""
        return describe_problem(self.is_paused, self.has_import_errors)


def describe_problem(is_paused: bool, has_import_errors: bool) -> str | None:
    if has_import_errors:
        return "has import errors"
    return "is paused" if is_paused else None


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a DAG, as its details show it.

    Attributes:
        text: As `Dag.schedule`. A time delta is a text such as "1 day, 0:00:00".
        timezone: The server's default. Airflow does not return the DAG's own.
        start_date: None in 2.x if only the default arguments of its tasks have it.
        next_logical_date: That of the next scheduled run; None if the DAG is partitioned (3.2).
        next_fires_at: When the next scheduled run is due; None if there is none.
        latest_key: The partition key of the run that ended last, or None.
    """

    text: str | None
    timezone: str | None
    start_date: datetime | None
    catchup: bool
    is_partitioned: bool
    next_logical_date: datetime | None
    next_fires_at: datetime | None
    latest_key: str | None = None


@dataclass(frozen=True, slots=True)
class DagRun:
    """One run of a DAG.

    Every date may be missing: in 3.x the logical date is optional, and a cleared run loses its
    start and end.

    Attributes:
        run_type: Such as "scheduled", "manual", "backfill", "asset_triggered" (3.x) or
            "dataset_triggered" (2.x).
        partition_key: For runs of partitioned DAGs (3.2).
    """

    dag_id: str
    run_id: str
    state: str
    run_type: str | None
    logical_date: datetime | None
    data_interval_start: datetime | None
    data_interval_end: datetime | None
    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None
    conf: Mapping[str, Any]
    note: str | None
    partition_key: str | None

    @property
    def key(self) -> RunKey:
        return self.dag_id, self.run_id

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED_STATES

    @property
    def is_success(self) -> bool:
        return self.state == "success"

    def measure_s(self, now: datetime) -> float:
        """Return the seconds that the run took, or has taken by now; 0 if it has not started.

        Args:
            now: The time by Airflow's clock.
        """
        end = self.end_date if self.is_finished else now
        return (end - self.start_date).total_seconds() if self.start_date and end else 0.0


@dataclass(frozen=True, slots=True)
class TriggerOptions:
    """Options of a trigger.

    Attributes:
        logical_date: "now" is the moment of the trigger by Airflow's clock. With "none" (3.0) the
            run has neither a logical date nor a data interval.
        data_interval: Start and end (2.9). By default Airflow infers them from the logical date.
        partition_key: For a partitioned DAG (3.2), whose runs have no logical date.
    """

    logical_date: datetime | Literal["now", "none"] = "now"
    data_interval: tuple[datetime, datetime] | None = None
    note: str | None = None
    partition_key: str | None = None


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """The last try of one task in a DAG run.

    Attributes:
        map_index: -1 unless the task is mapped.
        state: None before it is scheduled; `UNREADABLE_STATE` if Airflow's row can't be read.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    end_date: datetime | None = None


@dataclass(frozen=True, slots=True)
class AirflowAsset:
    """An asset of Airflow 3, or a dataset of Airflow 2.

    Attributes:
        scheduled_dag_ids: The DAGs that its events start.
        producing_tasks: (DAG id, task id) pairs.
    """

    id: int
    uri: str
    extra: Mapping[str, Any]
    scheduled_dag_ids: tuple[str, ...]
    producing_tasks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DagImportError:
    """A DAG file that Airflow can't import.

    Attributes:
        file: Its path; in 3.x, below the bundle's folder.
    """

    file: str
    stack_trace: str


def parse_dag(answer: Answer, *, with_raw: bool = False) -> Dag:
    bundle, file = answer.get("bundle_name"), require_text(answer, "fileloc")
    return Dag(
        dag_id=require_text(answer, "dag_id"),
        is_paused=bool(require(answer, "is_paused")),
        is_present=not answer.get("is_stale", False) and answer.get("is_active", True) is not False,
        has_import_errors=bool(answer.get("has_import_errors")),
        is_partitioned=bool(answer.get("timetable_partitioned")),
        last_parsed_at=_parse_time(answer.get("last_parsed_time")),
        description=_parse_text(answer.get("description")),
        owners=_parse_texts(answer.get("owners")),
        tags=tuple(clean_text(tag) for (tag,) in _parse_rows(answer.get("tags"), "name")),
        schedule=_parse_schedule(answer),
        file_token=require_text(answer, "file_token"),
        file=f"{bundle}:{file}" if bundle else file,
        raw=answer if with_raw else None,
    )


def parse_schedule(answer: Answer) -> Schedule:
    """Parse the details of a DAG."""
    logical_date = answer.get("next_dagrun_logical_date", answer.get("next_dagrun"))  # 3.x, 2.x
    fires_at = answer.get("next_dagrun_data_interval_end") or answer.get("next_dagrun_run_after")
    start_date, defaults = answer.get("start_date"), answer.get("default_args")
    if start_date is None and isinstance(defaults, Mapping):
        start_date = defaults.get("start_date")
    return Schedule(
        text=_parse_schedule(answer),
        timezone=_parse_text(answer.get("timezone")),
        start_date=_parse_time(start_date),
        catchup=bool(answer.get("catchup")),
        is_partitioned=bool(answer.get("timetable_partitioned")),
        next_logical_date=_parse_time(logical_date),
        next_fires_at=_parse_time(fires_at),
    )


def parse_dag_run(answer: Answer) -> DagRun:
    conf = answer.get("conf")
    return DagRun(
        dag_id=require_text(answer, "dag_id"),
        run_id=require_text(answer, "dag_run_id"),
        state=require_text(answer, "state"),
        run_type=_parse_text(answer.get("run_type")),
        logical_date=_parse_time(answer.get("logical_date")),
        data_interval_start=_parse_time(answer.get("data_interval_start")),
        data_interval_end=_parse_time(answer.get("data_interval_end")),
        queued_at=_parse_time(answer.get("queued_at")),
        start_date=_parse_time(answer.get("start_date")),
        end_date=_parse_time(answer.get("end_date")),
        conf=conf if isinstance(conf, Mapping) else {},
        note=_parse_text(answer.get("note")),
        partition_key=_parse_text(answer.get("partition_key")),
    )


def parse_task_instance(answer: Answer) -> TaskInstance:
    state = answer.get("state")
    if not isinstance(state, str | None):
        raise TypeError("no text for `state`")
    return TaskInstance(
        task_id=require_text(answer, "task_id"),
        map_index=int(answer.get("map_index", -1)),
        state=state,
        try_number=int(answer.get("try_number") or 0),
        end_date=_parse_time(answer.get("end_date")),
    )


def parse_log_line(line: str) -> str:
    """Return a line of a 3.x log as text, followed by its error, which 3.x has in another field.

    A line is JSON, or plain text for a task that 2.x ran.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(content, Mapping):
        return line
    text = str(content.get("event", ""))
    for kind, value in _parse_rows(content.get("error_detail"), "exc_type", "exc_value"):
        text += f"\n{kind}: {value}"
    return text


def parse_asset(answer: Answer) -> AirflowAsset:
    scheduled = answer.get("scheduled_dags", answer.get("consuming_dags"))  # 3.x, 2.x
    producing = answer.get("producing_tasks")
    return AirflowAsset(
        id=require(answer, "id"),
        uri=require_text(answer, "uri"),
        extra=_parse_extra(answer.get("extra")),
        scheduled_dag_ids=tuple(dag_id for (dag_id,) in _parse_rows(scheduled, "dag_id")),
        producing_tasks=tuple(
            (dag_id, task_id) for dag_id, task_id in _parse_rows(producing, "dag_id", "task_id")
        ),
    )


def parse_import_error(answer: Answer) -> DagImportError:
    stack_trace = _parse_text(answer.get("stack_trace"))
    return DagImportError(require_text(answer, "filename"), stack_trace or "")


def require(answer: Answer, name: str) -> Any:
    if answer.get(name) is None:
        raise KeyError(name)
    return answer[name]


def require_text(answer: Answer, name: str) -> str:
    """Return a text that every database and address can hold.

    Raises:
        KeyError, TypeError, ValueError: There is no such text.
    """
    text = require(answer, name)
    if not isinstance(text, str) or not text or "\0" in text:
        raise TypeError(f"no text for `{name}`")
    text.encode()  # fails for half of a surrogate pair, which JSON can hold
    return text


def _parse_time(value: Any) -> datetime | None:
    """Return a time in UTC, or None for anything else."""
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))  # Python 3.10 reads no "Z"
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (AttributeError, OverflowError, TypeError, ValueError):
        return None


def _parse_text(value: Any) -> str | None:
    """Return a text without control characters, or None for anything else."""
    return clean_text(value) if isinstance(value, str) else None


def _parse_texts(values: Any) -> tuple[str, ...]:
    """Return the texts in a list; anything else is left out."""
    values = values if isinstance(values, list) else []
    return tuple(clean_text(value) for value in values if isinstance(value, str))


def _parse_rows(rows: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the texts under these names of each object in a list, if it has all of them."""
    for row in rows if isinstance(rows, list) else []:
        values = [row.get(name) for name in names] if isinstance(row, Mapping) else []
        texts = tuple(value for value in values if isinstance(value, str))
        if len(texts) == len(names):
            yield texts


def _parse_schedule(answer: Answer) -> str | None:
    if "timetable_summary" in answer:  # 3.x
        return _parse_text(answer["timetable_summary"])
    interval = answer.get("schedule_interval")  # 2.x: {"__type": "CronExpression", "value": "…"}
    if not isinstance(interval, Mapping):
        return None
    kind = interval.get("__type")
    if kind == "CronExpression":
        return _parse_text(interval.get("value"))
    if kind == "TimeDelta":
        with suppress(KeyError, OverflowError, TypeError):
            return str(timedelta(interval["days"], interval["seconds"]))
    return _parse_text(answer.get("timetable_description")) or _parse_text(kind)


def _parse_extra(extra: Any) -> Mapping[str, Any]:
    """Parse an object, or its text as JSON or as a Python literal (2.x)."""
    for parse in (json.loads, ast.literal_eval) if isinstance(extra, str) else ():
        try:
            extra = parse(extra)
            break
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return extra if isinstance(extra, Mapping) else {}
