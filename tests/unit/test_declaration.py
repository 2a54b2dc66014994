from __future__ import annotations

import datetime
import math
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.errors import DeclarationError

MINIMAL: dict[str, Any] = {
    "name": "metrics",
    "url": "http://127.0.0.1:8082",
    "auth": {"type": "password", "username": "me", "password": "s3cret"},
}


def declare(**more: Any) -> InstanceDeclaration:
    return InstanceDeclaration.model_validate({**MINIMAL, **more})


def test_keys_that_are_not_set_have_their_documented_defaults() -> None:
    declared = declare(dags={"a": {"depends_on": ["warehouse/b"]}})
    assert declared.api == "auto"
    assert declared.select.dag_ids == ["*"]
    assert declared.observe.interval == 2
    assert declared.dags["a"].trigger.timeout == 24 * 3600


def test_an_upstream_is_an_instance_and_a_dag_id() -> None:
    declared = declare(dags={"a": {"depends_on": ["warehouse/b.c-d"]}})
    assert declared.dags["a"].upstreams == [("warehouse", "b.c-d")]


def test_downstreams_are_the_dags_that_depend_on_others() -> None:
    declared = declare(dags={"a": {"depends_on": ["w/b"]}, "c": {"trigger": {"timeout": "2h"}}})
    assert list(declared.downstreams) == ["a"]


@pytest.mark.parametrize(
    ("written", "seconds"), [("30s", 30), ("5m", 300), ("24h", 86400), ("7d", 604800), (90, 90)]
)
def test_a_duration_is_a_number_and_a_unit(written: object, seconds: float) -> None:
    more: dict[str, Any] = {"dags": {"a": {"trigger": {"timeout": written}}}}
    validator = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())
    assert list(validator.iter_errors({**MINIMAL, **more})) == []
    declared = declare(**more)
    assert declared.dags["a"].trigger.timeout == seconds


def test_an_interval_is_a_number_of_seconds_or_has_a_unit() -> None:
    assert declare(observe={"interval": 5}).observe.interval == 5
    assert declare(observe={"interval": "5s"}).observe.interval == 5
    assert declare(observe={"interval": "1m"}).observe.interval == 60


@pytest.mark.parametrize(
    "written", ["soon", "5 weeks", "-3h", 0, True, "1000000d", math.inf, math.nan]
)
def test_an_invalid_duration_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match=r"dags\.a\.trigger\.timeout"):
        declare(dags={"a": {"trigger": {"timeout": written}}})


@pytest.mark.parametrize(
    ("key", "written", "shortest"),
    [("lookback", "1000000d", "0.001"), ("lookback", math.inf, "0.001"), ("interval", 0.01, "1")],
)
def test_a_time_out_of_range_is_refused_with_the_range(
    key: str, written: object, shortest: str
) -> None:
    values = {**MINIMAL, "observe": {key: written}}
    with pytest.raises(DeclarationError) as refused:
        parse_declaration(values, "defs.yaml")
    assert refused.value.problems == (
        f"defs.yaml: observe.{key}: {written} is out of range: write a time from {shortest}s to "
        "3650d",
    )


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (math.nan, "is infinite or NaN"),
        (-math.inf, "is infinite or NaN"),
        (datetime.date(2026, 1, 31), "is of type date"),
        (b"secret", "is of type bytes"),
    ],
)
def test_a_conf_that_is_no_json_is_refused_with_its_key(value: object, seen: str) -> None:
    conf = {"days": [{"first": 1}, {"first": value}]}
    with pytest.raises(DeclarationError) as refused:
        parse_declaration({**MINIMAL, "dags": {"a": {"trigger": {"conf": conf}}}}, "defs.yaml")
    assert refused.value.problems == (
        f"defs.yaml: dags.a.trigger.conf: conf.days.1.first {seen}, which JSON does not have: "
        "write a text in quotes",
    )


@pytest.mark.parametrize("key", [datetime.date(2026, 1, 31), None, 1, True])
def test_a_conf_with_a_key_that_is_no_text_is_refused(key: object) -> None:
    conf = {"days": [{key: 1}]}
    with pytest.raises(DeclarationError) as refused:
        parse_declaration({**MINIMAL, "dags": {"a": {"trigger": {"conf": conf}}}}, "defs.yaml")
    assert refused.value.problems == (
        f"defs.yaml: dags.a.trigger.conf: conf.days.0 has a key of type {type(key).__name__}: "
        "write the key in quotes",
    )


@pytest.mark.parametrize(
    ("more", "where", "message"),
    [
        ({"nme": 1}, "", "unknown key 'nme'; did you mean 'name'?"),
        (
            {"dags": {"a": {"depend_on": []}}},
            "dags.a",
            "unknown key 'depend_on'; did you mean 'depends_on'?",
        ),
        (
            {"dags": {"a": {"trigger": {"timeoutt": "1h"}}}},
            "dags.a.trigger",
            "unknown key 'timeoutt'; did you mean 'timeout'?",
        ),
        (
            {"auth": {**MINIMAL["auth"], "user": "x"}},
            "auth.password",
            "unknown key 'user'; did you mean 'username'?",
        ),
    ],
)
def test_an_unknown_key_is_named_at_every_level(
    more: dict[str, Any], where: str, message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        declare(**more)
    (error,) = refused.value.errors()
    assert ".".join(map(str, error["loc"])) == where
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("more", "path", "message"),
    [
        ({"dags": {"a": {"depend_on": []}}}, "dags.a", "'depend_on' was unexpected"),
        ({"auth": {**MINIMAL["auth"], "user": "x"}}, "auth", "'user' was unexpected"),
        ({"auth": {"type": "basik"}}, "auth.type", "'basik' is not one of"),
        ({"observe": {"interval": -1}}, "observe.interval", "-1"),
        ({"dags": {"a": {"depends_on": ["b"]}}}, "dags.a.depends_on.0", "'b' does not match"),
    ],
)
def test_the_json_schema_names_the_wrong_key_too(
    more: dict[str, Any], path: str, message: str
) -> None:
    validator = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())
    errors = list(validator.iter_errors({**MINIMAL, **more}))
    assert [".".join(map(str, error.absolute_path)) for error in errors] == [path]
    assert message in errors[0].message


def test_a_template_may_replace_a_number() -> None:
    raw = {**MINIMAL, "observe": {"interval": "{{ env.INTERVAL }}"}}
    validator = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())
    assert list(validator.iter_errors(raw)) == []
    assert declare(**raw).observe.interval == "{{ env.INTERVAL }}"


def test_neither_a_repr_nor_an_error_has_a_password() -> None:
    assert "s3cret" not in repr(declare())
    with pytest.raises(ValidationError) as refused:
        declare(auth={"type": "password", "username": 1, "password": "s3cret"})
    assert "s3cret" not in str(refused.value)


def test_an_instance_name_has_only_characters_that_dagster_allows() -> None:
    with pytest.raises(ValidationError, match="name"):
        declare(name="two words")


def test_a_representation_shows_no_conf() -> None:
    declared = declare(dags={"a": {"trigger": {"conf": {"token": "s3cret-word"}}}})
    assert "s3cret-word" not in repr(declared) + str(declared)
