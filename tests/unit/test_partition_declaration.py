"""Declarations of partitions, triggers and limits."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from federation_defs.declaration import (
    DagDeclaration,
    InstanceDeclaration,
    PartitionsDeclaration,
    parse_declaration,
)
from federation_defs.errors import DeclarationError
from tests.unit.build import CONNECTION, declare_instance

UTC = timezone.utc
DAILY: dict[str, Any] = {"cron": "0 0 * * *", "start": "2025-01-01"}


def declare(**more: Any) -> DagDeclaration:
    return DagDeclaration.model_validate({"depends_on": ["warehouse/a"], **more})


def build(**keys: Any) -> PartitionsDeclaration:
    return PartitionsDeclaration.model_validate({**DAILY, **keys})


def test_partitions_are_by_default_in_utc_and_by_data_interval_start() -> None:
    partitions = declare(partitions=DAILY).partitions
    assert partitions is not None
    assert (partitions.timezone, partitions.date) == ("UTC", "data_interval_start")
    assert partitions.key_format is None
    assert declare().partitions is None
    assert not declare(partitions=None).declares_partitions


@pytest.mark.parametrize(
    "cron", ["0 0 * * *", "*/15 * * * *", "@daily", "@hourly", "{{ env.CRON }}"]
)
def test_a_cron_expression_may_be_a_name_or_a_template(cron: str) -> None:
    assert declare(partitions={**DAILY, "cron": cron}).partitions is not None


@pytest.mark.parametrize("cron", ["daily", "every day", "0 0 * *", "99 * * * *", "", "@never"])
def test_an_invalid_cron_expression_is_refused(cron: str) -> None:
    with pytest.raises(ValidationError, match=r"partitions\.cron") as refused:
        declare(partitions={**DAILY, "cron": cron})
    assert "write a cron expression of five fields (0 6 * * *), @daily or auto" in str(
        refused.value
    )


def test_an_unknown_time_zone_is_refused_with_a_similar_one() -> None:
    with pytest.raises(ValidationError, match=r"partitions\.timezone") as refused:
        declare(partitions={**DAILY, "timezone": "Europe/Berln"})
    assert "no such time zone; did you mean 'Europe/Berlin'?" in str(refused.value)


def test_a_key_format_that_gives_two_partitions_one_key_is_refused() -> None:
    hourly = {**DAILY, "cron": "@hourly", "key_format": "%Y-%m-%d"}
    with pytest.raises(ValidationError, match="key_format: two partitions have the same key"):
        declare(partitions=hourly)
    for other in ({"cron": "@daily"}, {"key_format": "%Y-%m-%d-%H"}, {"cron": "{{ env.CRON }}"}):
        assert declare(partitions={**hourly, **other}).partitions is not None


@pytest.mark.parametrize(
    ("cron", "key_format"),
    [
        ("@daily", "%d"),
        ("@daily", "%j"),
        ("@daily", "%m-%d"),
        ("@hourly", "%Y-%d-%H"),
        ("@hourly", "%Y-%m-%d-%I"),
        ("0 6,18 * * *", "%Y-%m-%d"),
        ("0 9-17 * * *", "%Y-%m-%d-%I"),
        ("@weekly", "%Y-W%W"),
        ("@weekly", "%G-W%V"),
        ("0 0 1 1,7 *", "%Y"),
        ("@daily", "%Y-%j %Y"),
    ],
)
def test_a_key_format_that_does_not_tell_the_partition_is_refused(
    cron: str, key_format: str
) -> None:
    with pytest.raises(
        ValidationError, match=r"two partitions have the same key|write a format of strptime"
    ):
        declare(partitions={**DAILY, "cron": cron, "key_format": key_format})


@pytest.mark.parametrize(
    ("cron", "key_format"),
    [
        ("@weekly", "%G-W%V-%u"),
        ("0 0 * * 1", "%Y-W%W-%w"),
        ("@daily", "%Y-%j"),
        ("@daily", "%y%m%d"),
        ("@hourly", "%Y-%m-%d-%I%p"),
        ("0 1-11 * * *", "%Y-%m-%d-%I"),
        ("0 0 1 1,7 *", "%b %Y"),
        ("30 2 * * *", "%Y-%m-%d"),
    ],
)
@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin"])
def test_a_key_format_that_tells_each_partition_is_accepted(
    cron: str, key_format: str, timezone: str
) -> None:
    keys = {"cron": cron, "key_format": key_format, "timezone": timezone}
    definition = build(**keys).build_definition()
    moment = datetime(2027, 10, 1, tzinfo=UTC)
    for _ in range(100):  # with the end of daylight saving time
        window = definition.get_next_partition_window(moment, respect_bounds=False)
        assert window is not None
        key = definition.get_partition_key_for_timestamp(window.start.timestamp())
        assert definition.time_window_for_partition_key(key) == window
        moment = window.end


@pytest.mark.parametrize("more", [{}, {"key_format": "%Y-%m-%d-%H:%M"}])
@pytest.mark.parametrize(
    ("cron", "timezone"),
    [
        ("*/30 2 * * *", "Europe/Berlin"),
        ("*/15 1-3 * * *", "Europe/Berlin"),
        ("0 * * * *", "Australia/Lord_Howe"),  # whose clocks change by half an hour
    ],
)
def test_partitions_that_dagster_mistakes_when_clocks_change_are_refused(
    cron: str, timezone: str, more: dict[str, str]
) -> None:
    said = rf"cron: Dagster mistakes a partition of '{re.escape(cron)}' in {timezone}"
    with pytest.raises(ValidationError, match=said):
        build(cron=cron, timezone=timezone, **more)
    build(cron=cron, timezone="UTC", **more)


def test_two_hours_of_one_key_when_clocks_change_are_refused() -> None:
    with pytest.raises(ValidationError, match="key_format: two partitions have the same key"):
        build(cron="30 1,2,3 * * *", timezone="Europe/Berlin", key_format="%Y-%m-%d %H")


@pytest.mark.parametrize("more", [{}, {"key_format": "%Y-%m-%d"}])
@pytest.mark.parametrize(
    "dates",
    [
        {"start": "9999-12-31"},
        {"start": "0001-01-01"},
        {"start": "0001-01-01", "timezone": "Asia/Tokyo"},
        {"start": "9994-01-01", "cron": "@yearly"},
        {"cron": "0 0 31 2,4 *"},
    ],
)
def test_partitions_that_never_come_are_refused(
    dates: dict[str, str], more: dict[str, str]
) -> None:
    with pytest.raises(ValidationError, match=r"partitions\n .*cron, start: '.*' gives no partit"):
        declare(partitions={**DAILY, **dates, **more})


def test_partitions_that_dagster_mistakes_for_others_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"cron: Dagster mistakes a partition of '0 0 29 2"):
        declare(partitions={**DAILY, "cron": "0 0 29 2 *"})


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "America/Santiago"])
@pytest.mark.parametrize("start", ["1960-01-01", "2025-09-07", "2025-10-26"])
@pytest.mark.parametrize(
    "cron", ["@hourly", "*/15 * * * *", "30 2 * * *", "0 0 * * 0", "@monthly", "@yearly"]
)
def test_partitions_on_days_when_clocks_change_are_accepted(
    cron: str, start: str, timezone: str
) -> None:
    declare(partitions={"cron": cron, "start": start, "timezone": timezone})


@pytest.mark.parametrize(
    ("key", "value"), [("date", "execution_date"), ("start", "yesterday"), ("strat", "2025-01-01")]
)
def test_other_invalid_keys_of_partitions_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValidationError, match="partitions"):
        declare(partitions={**DAILY, key: value})


def test_on_retry_new_run_is_refused_for_partitions() -> None:
    with pytest.raises(ValidationError, match=r"trigger\.on_retry: Airflow runs a date once"):
        declare(partitions=DAILY, trigger={"on_retry": "new_run"})
    assert declare(trigger={"on_retry": "new_run"}).trigger.on_retry == "new_run"
    for on_retry in ("clear_failed", "clear_all"):
        declare(partitions=DAILY, trigger={"on_retry": on_retry})


@pytest.mark.parametrize("logical_date", ["now", "none"])
def test_a_logical_date_is_refused_for_partitions(logical_date: str) -> None:
    with pytest.raises(ValidationError, match=r"trigger\.logical_date: `partitions` decides"):
        declare(partitions=DAILY, trigger={"logical_date": logical_date})
    assert declare(trigger={"logical_date": logical_date}).trigger.logical_date == logical_date


def test_no_logical_date_is_refused_for_an_instance_that_is_declared_as_airflow_2() -> None:
    declared = {
        "name": "metrics",
        **CONNECTION,
        "dags": {"a": {"trigger": {"logical_date": "none"}}},
    }
    with pytest.raises(DeclarationError) as refused:
        parse_declaration({**declared, "api": "v1"}, "defs.yaml")
    assert refused.value.problems == (
        "defs.yaml: dags.a.trigger.logical_date: in Airflow 2 (`api: v1`) every run has a logical "
        "date; remove the key",
    )
    for api in ("v2", "auto"):
        parse_declaration({**declared, "api": api}, "defs.yaml")


def test_a_trigger_has_its_documented_defaults() -> None:
    trigger = declare().trigger
    assert (trigger.on_timeout, trigger.on_cancel) == ("leave", "cancel")
    assert (trigger.on_retry, trigger.wait) == ("clear_failed", True)
    assert trigger.logical_date == "now"


@pytest.mark.parametrize(
    "trigger",
    [
        {"on_timeout": "stop"},
        {"on_cancel": "ignore"},
        {"on_retry": "again"},
        {"wait": "perhaps"},
        {"logical_date": "today"},
    ],
)
def test_an_invalid_trigger_is_refused(trigger: dict[str, str]) -> None:
    (key,) = trigger
    with pytest.raises(ValidationError, match=f"trigger.{key}"):
        declare(trigger=trigger)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "many"])
def test_a_limit_that_is_no_positive_integer_is_refused(limit: object) -> None:
    with pytest.raises(ValidationError, match=r"limits\.max_active_runs"):
        declare_instance(limits={"max_active_runs": limit})


def test_the_json_schema_accepts_every_key() -> None:
    declared = {
        "name": "metrics",
        **CONNECTION,
        "limits": {"max_active_runs": 4},
        "dags": {
            "a": {
                "depends_on": ["warehouse/b"],
                "trigger": {
                    "on_timeout": "cancel",
                    "on_cancel": "leave",
                    "on_retry": "clear_all",
                    "wait": False,
                },
                "partitions": {
                    **DAILY,
                    "timezone": "Europe/Berlin",
                    "date": "data_interval_end",
                    "key_format": "%Y-%m-%d",
                },
            }
        },
    }
    validator = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())
    assert list(validator.iter_errors(declared)) == []
    assert InstanceDeclaration.model_validate(declared).limits.max_active_runs == 4


@pytest.mark.parametrize(
    ("partitions", "is_accepted"),
    [
        ("auto", True),
        ({"cron": "auto"}, True),
        ({"cron": "auto", "start": "2026-01-01", "key_format": "%Y"}, True),
        (DAILY, True),
        (None, True),
        ("daily", False),
        ({"cron": "@daily"}, False),
        ({"start": "2026-01-01"}, False),
        ({"cron": "auto", "strat": "2026-01-01"}, False),
    ],
)
def test_the_json_schema_accepts_what_a_load_does(partitions: Any, is_accepted: bool) -> None:
    validator = jsonschema.Draft202012Validator(DagDeclaration.model_json_schema())
    assert validator.is_valid({"partitions": partitions}) == is_accepted
    if is_accepted:
        DagDeclaration.model_validate({"partitions": partitions})
    else:
        with pytest.raises(ValidationError, match="partitions"):
            DagDeclaration.model_validate({"partitions": partitions})


def test_partitions_without_a_start_say_what_to_write() -> None:
    with pytest.raises(ValidationError, match="start: write the first partition's day, as 2026-01"):
        declare(partitions={"cron": "@daily"})


@pytest.mark.parametrize(
    ("partitions", "said"),
    [
        ("Auto", "write auto, or the keys `cron` and `start`"),
        ("daily", "write auto, or the keys `cron` and `start`"),
        ({"start": "2026-01-01"}, "cron: write when each partition begins, as 0 0 * * *, or auto"),
        ({"corn": "@daily"}, "unknown key 'corn'; did you mean 'cron'?"),
        ({**DAILY, "cron": "Auto"}, "(0 6 * * *), @daily or auto"),
        ({**DAILY, "key_format": "%G-W%V"}, "or %G-W%V-%u for weeks"),
        ({**DAILY, "key_format": "%Y-%m-%d%z"}, "keys have no time zone (%z, %Z)"),
        ({**DAILY, "start": 0}, "write a day, as 2026-01-01"),
        ({**DAILY, "start": "2026"}, "write a day, as 2026-01-01"),
    ],
)
def test_what_is_wrong_with_partitions_is_refused_with_what_to_write(
    partitions: Any, said: str
) -> None:
    with pytest.raises(ValidationError, match="partitions") as refused:
        declare(partitions=partitions)
    assert said in str(refused.value)


def test_whether_partitions_are_declared_outlasts_copies_and_defaults() -> None:
    """A DAG whose schedule gives no partitions is copied without them, as declared."""
    auto, none = declare(partitions="auto"), declare(partitions=None)
    assert auto.model_copy(update={"partitions": None}).declares_partitions
    assert not none.model_copy().declares_partitions
    dags = {
        "auto": auto,
        "none": DagDeclaration(partitions=None),
        "daily": declare(partitions=DAILY),
    }
    for declaration in (
        parsed := parse_declaration({"name": "a", **CONNECTION, "dags": dags}, "a"),
        parse_declaration(parsed.model_dump(exclude_unset=True), "a"),
        parse_declaration(parsed, "a"),
    ):
        declared = {dag_id for dag_id, dag in declaration.dags.items() if dag.declares_partitions}
        assert declared == {"auto", "daily"}
        assert not declaration.find_dag("unknown").declares_partitions
