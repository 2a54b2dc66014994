from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from federation_defs.airflow.models import UNREADABLE_STATE, TaskInstance
from federation_defs.declaration import SuccessDeclaration, parse_declaration
from federation_defs.errors import DeclarationError
from federation_defs.outcome import (
    find_unmet_condition,
    join_names,
    quote_as_code,
    select_failed,
)
from federation_defs.redaction import clean_text

LOAD = SuccessDeclaration(tasks=["load"])
BUT_CLEAN_UP = SuccessDeclaration(all_except=["clean_up"])


def build_tasks(**states: str | None) -> list[TaskInstance]:
    """Build tasks by their ids, with `__` for a dot."""
    return [TaskInstance(name.replace("__", "."), -1, state, 1) for name, state in states.items()]


def map_task(task_id: str, *states: str | None) -> list[TaskInstance]:
    return [TaskInstance(task_id, index, state, 1) for index, state in enumerate(states)]


def test_a_named_task_that_succeeded_is_enough_whatever_the_others_did() -> None:
    tasks = build_tasks(extract="success", load="success", mail="failed", report="upstream_failed")
    assert find_unmet_condition(tasks, LOAD) is None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("failed", "load is failed"),
        ("upstream_failed", "load is upstream_failed"),
        ("running", "load is running"),
        ("up_for_retry", "load is up_for_retry"),
        (None, "load is without a state"),
        ("skipped", "'load' did not run"),
        ("a state of a later version", "load is a state of a later version"),
    ],
)
def test_a_named_task_that_did_not_succeed_is_returned_with_its_state(
    state: str | None, expected: str
) -> None:
    assert find_unmet_condition(build_tasks(extract="success", load=state), LOAD) == expected


def test_each_of_the_named_tasks_has_to_have_succeeded() -> None:
    both = SuccessDeclaration(tasks=["load", "publish"])
    assert find_unmet_condition(build_tasks(load="success", publish="success"), both) is None
    missing = find_unmet_condition(build_tasks(load="success", publish="failed"), both)
    assert missing == "publish is failed"


def test_a_mapped_task_is_met_when_all_of_its_instances_succeeded() -> None:
    assert find_unmet_condition(map_task("load", "success", "success"), LOAD) is None


def test_a_failed_instance_of_a_mapped_task_is_named_by_its_index() -> None:
    tasks = map_task("load", "success", "failed", "success")
    assert find_unmet_condition(tasks, LOAD) == "load[1] is failed"


def test_a_skipped_instance_of_a_mapped_task_is_ignored_if_another_succeeded() -> None:
    assert find_unmet_condition(map_task("load", "skipped", "success", "skipped"), LOAD) is None


def test_a_mapped_task_whose_instances_were_all_skipped_is_no_success() -> None:
    tasks = map_task("load", "skipped", "skipped")
    assert find_unmet_condition(tasks, LOAD) == "'load' did not run"


def test_a_removed_instance_of_a_mapped_task_is_ignored() -> None:
    assert find_unmet_condition(map_task("load", "success", "removed"), LOAD) is None


def test_a_removed_task_counts_as_missing_and_is_not_suggested() -> None:
    tasks = build_tasks(extract="success", load="removed")
    assert find_unmet_condition(tasks, LOAD) == "it has no task or task group 'load'"


GROUP = SuccessDeclaration(tasks=["group"])


def test_the_name_of_a_task_group_is_a_prefix_of_its_tasks_ids() -> None:
    good = build_tasks(group__a="success", group__inner__b="success", other="failed")
    assert find_unmet_condition(good, GROUP) is None
    bad = build_tasks(group__a="success", group__inner__b="failed")
    assert find_unmet_condition(bad, GROUP) == "group.inner.b is failed"
    inner = SuccessDeclaration(tasks=["group.inner"])
    assert (
        find_unmet_condition(build_tasks(group__a="failed", group__inner__b="success"), inner)
        is None
    )


def test_a_group_with_a_longer_name_is_another_group() -> None:
    tasks = build_tasks(group__a="success", group_two="failed", group_two__a="failed")
    assert find_unmet_condition(tasks, GROUP) is None
    only_the_other = build_tasks(group_two__a="success")
    assert "has no task or task group 'group'" in (
        find_unmet_condition(only_the_other, GROUP) or ""
    )


def test_a_skipped_branch_of_a_group_is_ignored() -> None:
    taken = build_tasks(group__full="skipped", group__increment="success")
    assert find_unmet_condition(taken, GROUP) is None
    none_taken = build_tasks(group__full="skipped", group__increment="skipped")
    assert find_unmet_condition(none_taken, GROUP) == "'group' did not run"


def test_an_excepted_task_may_fail() -> None:
    assert (
        find_unmet_condition(build_tasks(load="success", clean_up="failed"), BUT_CLEAN_UP) is None
    )


def test_a_failed_task_that_is_not_excepted_is_returned() -> None:
    tasks = build_tasks(extract="success", load="failed", clean_up="success")
    assert find_unmet_condition(tasks, BUT_CLEAN_UP) == "load is failed"


def test_a_task_group_may_be_excepted() -> None:
    rule = SuccessDeclaration(all_except=["alerts", "clean_up"])
    tasks = build_tasks(load="success", alerts__mail="failed", alerts__page="failed")
    assert find_unmet_condition(tasks, rule) is None
    near = build_tasks(load="success", alerts_log="failed")
    assert find_unmet_condition(near, rule) == "alerts_log is failed"


@pytest.mark.parametrize("state", ["skipped", "removed"])
def test_skipped_and_removed_tasks_are_ignored_with_all_except(state: str) -> None:
    tasks = build_tasks(load="success", full_load=state, clean_up="failed")
    assert find_unmet_condition(tasks, BUT_CLEAN_UP) is None


def test_a_run_in_which_only_excepted_tasks_ran_is_no_success() -> None:
    tasks = build_tasks(load="skipped", clean_up="success")
    assert find_unmet_condition(tasks, BUT_CLEAN_UP) == "the tasks other than clean_up did not run"
    assert find_unmet_condition([], BUT_CLEAN_UP) == "the tasks other than clean_up did not run"


def test_an_unknown_name_is_returned_with_the_closest_known_one() -> None:
    rule = SuccessDeclaration(tasks=["laod"])
    expected = "it has no task or task group 'laod'; did you mean 'load'?"
    assert find_unmet_condition(build_tasks(extract="success", load="success"), rule) == expected
    assert find_unmet_condition([], rule) == "it has no task or task group 'laod'"


def test_of_many_failed_tasks_the_first_ten_are_named_and_the_others_counted() -> None:
    tasks = map_task("load", *["failed"] * 25)
    unmet = find_unmet_condition(tasks, LOAD) or ""
    assert unmet.startswith("load[0] is failed, load[1] is failed, ")
    assert unmet.endswith("load[9] is failed and 15 more")
    assert join_names(list("abcdefghij")) == "a, b, c, d, e, f, g, h, i, j"


def test_only_tasks_in_the_state_failed_are_failed_tasks() -> None:
    tasks = build_tasks(a="failed", b="upstream_failed", c="skipped", d=None, e="success")
    assert [task.task_id for task in select_failed(tasks)] == ["a"]


def declare(success_when: Any) -> SuccessDeclaration | None:
    values = {
        "name": "metrics",
        "url": "http://127.0.0.1:8082",
        "auth": {"type": "password", "username": "me", "password": "s3cret"},
        "dags": {"a": {"success_when": success_when}},
    }
    return parse_declaration(values, "defs.yaml").find_dag("a").success_when


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, "write either `tasks` or `all_except`"),
        ({"tasks": ["a"], "all_except": ["b"]}, "write either `tasks` or `all_except`"),
        ({"tasks": []}, "at least 1 item"),
        ({"all_except": []}, "at least 1 item"),
        ({"taks": ["a"]}, "unknown key 'taks'; did you mean 'tasks'?"),
        ({"tasks": "a"}, "valid list"),
    ],
)
def test_an_invalid_rule_is_an_error_with_its_place(written: Any, expected: str) -> None:
    where = r"defs\.yaml: dags\.a\.success_when"
    with pytest.raises(DeclarationError, match=f"{where}.*{re.escape(expected)}"):
        declare(written)


def test_a_rule_is_found_by_its_dag() -> None:
    assert declare({"tasks": ["load", "group"]}) == SuccessDeclaration(tasks=["load", "group"])
    assert declare({"all_except": ["clean_up"]}) == BUT_CLEAN_UP
    assert declare(None) is None


# What is said in a log may be Markdown, by chance or on purpose.
LOGS = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(
            ["```", "````", "~~~", "    ", "\n", "> ", "- ", "[a](http://x)", "![](x)"]
        ),
    )
).map("".join)


@given(LOGS)
def test_no_text_ends_the_code_block_that_it_is_in(text: str) -> None:
    text = clean_text(text)
    (block,) = MarkdownIt().parse(quote_as_code(text))
    assert (block.type, block.content) == ("fence", f"{text}\n")


@pytest.mark.parametrize("rule", [LOAD, BUT_CLEAN_UP])
def test_a_run_with_a_task_that_can_not_be_read_is_no_success(rule: SuccessDeclaration) -> None:
    """It may be an instance of any task, and have failed."""
    tasks = [*build_tasks(load="success"), TaskInstance("?", -1, UNREADABLE_STATE, 0)]
    assert find_unmet_condition(tasks, rule) == "the row of one of its tasks can't be read"
