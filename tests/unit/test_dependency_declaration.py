"""Declarations of dependencies, deadlines, and when they start a DAG."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml
from dagster.components import ResolutionContext

from federation_defs.declaration import DagDeclaration, InstanceDeclaration, parse_declaration
from federation_defs.declaration.fields import render_templates
from federation_defs.errors import DeclarationError
from tests.unit.build import CONNECTION

INSTANCE: dict[str, Any] = {"name": "m", **CONNECTION}
SCHEMA = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())


def declare(text: str) -> DagDeclaration:
    """Return the DAG that a text in YAML declares. The JSON schema has to accept it, too."""
    values = {**INSTANCE, "dags": {"a": yaml.safe_load(text)}}
    assert list(SCHEMA.iter_errors(values)) == []
    return parse_declaration(values, "defs.yaml").dags["a"]


def find_problems(text: str) -> list[str]:
    """Return what is wrong with the DAG that a text in YAML declares."""
    values = {**INSTANCE, "dags": {"a": yaml.safe_load(text)}}
    with pytest.raises(DeclarationError) as refused:
        parse_declaration(values, "defs.yaml")
    return [problem.removeprefix("defs.yaml: dags.a") for problem in refused.value.problems]


def test_a_text_is_the_success_of_a_dag() -> None:
    text, mapping = declare("depends_on: [w/a, {dag: w/b, state: success}]").depends_on
    assert (text.dag, text.state, text.across_environments) == ("w/a", "success", False)
    assert text.model_copy(update={"dag": "w/b"}) == mapping


def test_an_upstream_is_a_dag_or_the_key_of_an_asset() -> None:
    dag = declare("depends_on: [w/b.c-d, {asset: [sales, targets]}, {dag: w/b.c-d, state: late}]")
    assert dag.upstreams == [("w", "b.c-d")]
    assert dag.upstream_assets == [["sales", "targets"]]
    assert [each.name for each in dag.depends_on] == ["w/b.c-d", "sales/targets", "w/b.c-d"]


def test_an_asset_and_a_dag_of_the_same_words_are_two_dependencies() -> None:
    assert len(declare("depends_on: [w/a, {asset: [w, a]}]").depends_on) == 2


@pytest.mark.parametrize("text", ["{asset: ['']}", "{asset: [w/a]}", '{dag: "w/a\\n"}'])
def test_a_key_or_id_that_nothing_can_have_is_refused(text: str) -> None:
    (problem,) = find_problems(f"depends_on: [{text}]")
    assert "write " in problem


@pytest.mark.parametrize("key", ["when: all", "runs: each", "only_if: a:b", "pass_upstream: true"])
def test_keys_about_upstreams_need_one(key: str) -> None:
    name = key.partition(":")[0]
    (problem,) = find_problems(f"trigger: {{{key}}}")
    assert problem == f": trigger.{name}: it needs `depends_on`; add that, or remove the key"


@pytest.mark.parametrize(
    ("cron", "within", "words"),
    [
        ("0 6 * * *", "25h", "within: 90000 s is longer than the time between two deadlines"),
        ("0 6 * * *", "30s", "within: 30 s is too short; write a minute (1m) or more"),
        ("0 6,18 * * *", "13h", "within: 46800 s is longer than the time between two deadlines"),
        ("daily", "3h", "cron: 'daily' gives no deadlines; write a cron expression of five fields"),
        ("0 6 31 2 *", "3h", "cron: '0 6 31 2 *' gives no deadlines"),
    ],
)
def test_a_deadline_that_never_comes_or_overlaps_the_one_before_is_refused(
    cron: str, within: str, words: str
) -> None:
    (problem,) = find_problems(f"deadline: {{cron: '{cron}', within: {within}}}")
    assert problem.startswith(f".deadline: {words}")


def test_yaml_booleans_are_switches() -> None:
    dag = declare(
        "{depends_on: [{dag: w/a, across_environments: yes}], trigger: {pass_upstream: on}}"
    )
    assert dag.depends_on[0].across_environments is True
    assert dag.trigger.pass_upstream is True


def test_no_key_is_a_word_that_yaml_reads_as_something_else() -> None:
    definitions = InstanceDeclaration.model_json_schema()["$defs"].values()
    keys = {key for each in definitions for key in each.get("properties", {})}
    assert "depends_on" in keys
    assert yaml.safe_load("\n".join(f"{key}:" for key in keys)).keys() == keys


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a]", ".0.dag: write instance/dag_id, as warehouse/load_orders"),
        ("['w/a b']", ".0.dag: write instance/dag_id, as warehouse/load_orders"),
        ("[{dag: w/}]", ".0.dag: write instance/dag_id, as warehouse/load_orders"),
        ("[{}]", ".0: write either `dag` or `asset`"),
        ("[{dag: w/a, asset: [x]}]", ".0: write either `dag` or `asset`"),
        ("[{asset: []}]", ".0.asset: List should have at least 1 item after validation, not 0"),
        ("[{asset: [x, no]}]", ".0.asset.1: Input should be a valid string"),
        (
            "[{asset: [x], state: late}]",
            ".0: asset: an asset has neither a `state` nor an environment",
        ),
        (
            "[{asset: [x], across_environments: true}]",
            ".0: asset: an asset has neither a `state` nor an environment",
        ),
        ("[{dag: w/a, stat: late}]", ".0: unknown key 'stat'; did you mean 'state'?"),
        (
            "[{dag: w/a, state: on}]",
            ".0.state: Input should be 'success', 'failure', 'finished', 'late' or 'slow'",
        ),
        (
            "[{dag: w/a, across_environments: maybe}]",
            ".0.across_environments: Input should be a valid boolean, unable to interpret input",
        ),
        ("[w/a, w/a]", ": 'w/a' is named twice with state success; remove one"),
        ("[{asset: [x]}, {asset: [x]}]", ": 'x' is named twice with state success; remove one"),
        (
            "[{dag: w/a, state: finished}, w/a]",
            ": 'w/a' is named with state finished, which is success and failure; remove the others",
        ),
        (
            "[{dag: w/a, state: failure}, {dag: w/a, state: finished}]",
            ": 'w/a' is named with state finished, which is success and failure; remove the others",
        ),
        ("w/a", ": Input should be a valid list"),
    ],
)
def test_a_wrong_dependency_is_refused(text: str, problem: str) -> None:
    assert find_problems(f"depends_on: {text}") == [f".depends_on{problem}"]


UPSTREAM = "depends_on: [w/a]\n"  # of texts that need one


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "trigger: {runs: each, when: all}",
            ": trigger: `runs: each` is a run for each upstream run, and `when: all` one run for "
            "all of them; remove one of the two keys",
        ),
        (
            "trigger: {at_once: 1}",
            ": trigger.at_once: it needs `runs: each`; add that, or remove the key",
        ),
        (
            "trigger: {runs: latest, reruns: follow}",
            ": trigger.reruns: it needs `runs: each`; add that, or remove the key",
        ),
        ("trigger: {runs: each, at_once: 0}", ".trigger.at_once: Input should be greater than 0"),
        ("trigger: {when: some}", ".trigger.when: Input should be 'any' or 'all'"),
        ("trigger: {runs: every}", ".trigger.runs: Input should be 'latest' or 'each'"),
        (
            "trigger: {runs: each, reruns: again}",
            ".trigger.reruns: Input should be 'follow', 'ignore' or 'rerun'",
        ),
        (
            "trigger: {only_if: rules.is_month_end}",
            r".trigger.only_if: String should match pattern '^\w+(\.\w+)*:\w+$'",
        ),
        (
            "{depends_on: [{asset: [x]}], trigger: {logical_date: upstream}}",
            ": trigger.logical_date: an asset and a DAG that is late have no logical date; remove "
            "that dependency, or write now",
        ),
        (
            "{depends_on: [w/a, {dag: w/a, state: late}], trigger: {logical_date: upstream}}",
            ": trigger.logical_date: an asset and a DAG that is late have no logical date; remove "
            "that dependency, or write now",
        ),
        (
            UPSTREAM + "trigger: {logical_date: upstream, when: all}",
            ": trigger.logical_date: with `when: all` there are several upstream runs; write now, "
            "or `when: any`",
        ),
        (
            UPSTREAM + "partitions: {cron: '@daily', start: 2026-01-01}\n"
            "trigger: {logical_date: upstream}",
            ": trigger.logical_date: `partitions` decides the date of each run; remove one of the "
            "two keys",
        ),
        (
            "{depends_on: [{dag: w/a, state: late}], partitions: {cron: '@daily', start: "
            "2026-01-01}}",
            ": depends_on: `state: late` belongs to no partition; let a DAG without `partitions` "
            "depend on it",
        ),
        (
            "{depends_on: [{dag: w/a, window: last}]}",
            ": depends_on: the `window` of w/a needs partitions of this DAG; declare "
            "`partitions`, or remove the key",
        ),
        (
            UPSTREAM + "granularity: last",
            ": granularity: it is about this DAG's partitions; declare `partitions`, or remove the "
            "key",
        ),
        ("max_duration: 0", ".max_duration: 0 is out of range: write a time from 0.001s to 3650d"),
        ("max_duration: on", ".max_duration: write a number and a unit: 30s, 5m, 24h, 7d"),
    ],
)
def test_what_contradicts_itself_in_one_dag_is_refused(text: str, problem: str) -> None:
    assert find_problems(text) == [problem]


@pytest.mark.parametrize(
    ("text", "is_decided_by_events"),
    [
        ("depends_on: [w/a, {asset: [x]}]", False),
        (UPSTREAM + "trigger: {when: all, runs: latest, logical_date: none, wait: off}", False),
        (UPSTREAM + "trigger: {runs: each, at_once: 3, reruns: rerun}", True),
        (UPSTREAM + "trigger: {only_if: 'my_project.rules:is_month_end'}", True),
        (UPSTREAM + "trigger: {when: all, pass_upstream: true}", True),
        (UPSTREAM + "trigger: {logical_date: upstream}", True),
        *(
            (f"depends_on: [w/b, {{dag: w/a, state: {state}}}]", True)
            for state in ("failure", "finished", "late", "slow")
        ),
    ],
)
def test_conditions_decide_on_successes_and_the_event_sensor_on_all_else(
    text: str, is_decided_by_events: bool
) -> None:
    assert declare(text).is_decided_by_events is is_decided_by_events


@pytest.mark.parametrize(
    "deadline",
    [
        "cron: 0 6 * * *, within: 3h",
        "cron: 0 6 * * *, within: 24h",
        "cron: '@daily', within: 90m, timezone: Europe/Berlin",
        "cron: '0 6,18 * * *', within: 12h",
        "cron: 0 6 * * 1-5, within: 1d",
    ],
)
def test_a_deadline_is_a_cron_expression_and_a_time_before_it(deadline: str) -> None:
    declared = declare(f"deadline: {{{deadline}}}").deadline
    assert declared is not None
    assert declared.build_policy()


@pytest.mark.parametrize(
    ("deadline", "problem"),
    [
        ("{cron: 0 6 * * *}", ".within: Field required"),
        (
            "{cron: 0 6 * * *, within: 3h, timezone: Europe/Berln}",
            ".timezone: no such time zone; did you mean 'Europe/Berlin'?",
        ),
        ("0 6 * * *", ": Input should be a valid dictionary or instance of DeadlineDeclaration"),
    ],
)
def test_a_wrong_key_of_a_deadline_is_named(deadline: str, problem: str) -> None:
    assert find_problems(f"deadline: {deadline}") == [f".deadline{problem}"]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("depends_on: [b]", "depends_on.0", "'b' does not match"),
        ("depends_on: w/a", "depends_on", "'w/a' is not of type 'array'"),
        ("depends_on: [{dag: w/a, state: fail}]", "depends_on.0.state", "'fail' is not one of"),
        ("depends_on: [{dag: w/a, stat: x}]", "depends_on.0", "'stat' was unexpected"),
        ("trigger: {when: some}", "trigger.when", "'some' is not one of ['any', 'all']"),
        ("trigger: {only_if: a.b}", "trigger.only_if", "'a.b' is not valid"),
        ("deadline: {cron: 0 6 * * *}", "deadline", "'within' is a required property"),
        ("deadline: {corn: 0 6 * * *, within: 3h, cron: x}", "deadline", "'corn' was unexpected"),
        ("partitions: {cron: 0 6 * * *}", "partitions", "'start' is a required property"),
        ("max_duration: long", "max_duration", "'long' is not valid"),
    ],
)
def test_the_json_schema_points_at_what_is_wrong(text: str, path: str, message: str) -> None:
    errors = list(SCHEMA.iter_errors({**INSTANCE, "dags": {"a": yaml.safe_load(text)}}))
    assert [".".join(map(str, error.absolute_path)) for error in errors] == [f"dags.a.{path}"]
    assert message in errors[0].message


@pytest.mark.parametrize("key", ["deadline", "partitions", "max_duration", "success_when"])
def test_a_key_without_a_value_is_as_if_it_were_not_there(key: str) -> None:
    assert declare(f"{key}:") == DagDeclaration()


def load(text: str) -> DagDeclaration:
    """Return the DAG that a text in YAML declares, as a component does: in two steps."""
    values = InstanceDeclaration.model_validate({**INSTANCE, "dags": {"a": yaml.safe_load(text)}})
    raw = values.model_dump(exclude_unset=True, warnings=False)
    rendered = render_templates(raw, ResolutionContext.default().scope, "defs.yaml")
    return parse_declaration(rendered, "defs.yaml").dags["a"]


TEMPLATES = """\
depends_on:
  - "{{ env.UPSTREAM }}"
  - {dag: "{{ env.STAGE }}_warehouse/a", across_environments: "{{ env.ACROSS }}"}
trigger: {runs: each, at_once: "{{ env.NUMBER }}", pass_upstream: "{{ env.ACROSS }}"}
max_duration: "{{ env.SPAN }}"
deadline: {cron: "{{ env.CRON }}", within: "{{ env.SPAN }}", timezone: "{{ env.ZONE }}"}
"""


def test_texts_numbers_and_switches_may_be_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"UPSTREAM": "warehouse/b", "STAGE": "test", "ACROSS": "true", "NUMBER": "2"}
    for name, value in {**values, "SPAN": "2h", "CRON": "@daily", "ZONE": "Asia/Tokyo"}.items():
        monkeypatch.setenv(name, value)
    declare(TEMPLATES)  # as the JSON schema sees it
    dag = load(TEMPLATES)
    assert dag.upstreams == [("warehouse", "b"), ("test_warehouse", "a")]
    assert dag.depends_on[1].across_environments is True
    assert (dag.trigger.at_once, dag.trigger.pass_upstream, dag.max_duration) == (2, True, 7200)
    assert dag.deadline is not None
    assert (dag.deadline.within, dag.deadline.timezone) == (7200, "Asia/Tokyo")


def test_what_a_template_becomes_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WITHIN", "25h")
    with pytest.raises(DeclarationError, match="within: 90000 s is longer than"):
        load("deadline: {cron: '@daily', within: '{{ env.WITHIN }}'}")
    monkeypatch.setenv("UPSTREAM", "load_orders")
    with pytest.raises(DeclarationError, match="write instance/dag_id"):
        load("depends_on: ['{{ env.UPSTREAM }}']")
