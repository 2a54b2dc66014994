"""When a DAG runs, in words."""

from __future__ import annotations

from typing import Any

import pytest

from federation_defs.declaration import DagDeclaration
from federation_defs.specs import describe_trigger


@pytest.mark.parametrize(
    ("depends_on", "trigger", "words"),
    [
        ([], {}, ""),
        (["a/x"], {}, "Runs when a/x has succeeded."),
        (["a/x", "b/y"], {}, "Runs when a/x or b/y has succeeded."),
        (
            ["a/x", "b/y"],
            {"when": "all"},
            "Runs when a/x and b/y have succeeded, all since its last run.",
        ),
        (
            ["a/x", {"dag": "b/y", "state": "failure"}, {"asset": ["sales", "targets"]}],
            {},
            "Runs when a/x has succeeded or b/y has failed or sales/targets was materialized.",
        ),
        (
            [{"dag": "a/x", "state": "late"}, {"dag": "b/y", "state": "slow"}],
            {"only_if": "rules:is_day"},
            "Runs when a/x has missed its deadline or b/y has exceeded its max_duration, if "
            "rules:is_day returns Run.",
        ),
        (
            [{"dag": "a/x", "state": "finished"}],
            {"runs": "each", "at_once": 3, "reruns": "ignore"},
            "Runs once for each time that a/x has ended, in that order, 3 at a time. An upstream "
            "run that is cleared and ends again starts no other run.",
        ),
        (
            [f"a/{number}" for number in range(12)],
            {},
            f"Runs when {' or '.join(f'a/{number}' for number in range(10))} or 2 more has "
            "succeeded.",
        ),
    ],
)
def test_a_dag_says_in_words_when_it_runs(
    depends_on: list[Any], trigger: dict[str, Any], words: str
) -> None:
    declared = {"depends_on": depends_on, "trigger": trigger}
    assert describe_trigger(DagDeclaration.model_validate(declared)) == words


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({}, "Runs a partition when a/x has succeeded for it, one at a time."),
        (
            {"granularity": 20, "trigger": {"at_once": 4}},
            "Runs a partition when a/x has succeeded for it, 4 at a time. It needs 20 of the "
            "partitions that an upstream has in its time.",
        ),
        (
            {"trigger": {"runs": "each"}},
            "Runs a partition once for each time that a/x has succeeded for it, in that order, one "
            "at a time.",
        ),
    ],
)
def test_a_dag_with_partitions_says_in_words_when_one_runs(
    declared: dict[str, Any], words: str
) -> None:
    partitions = {"cron": "@daily", "start": "2026-01-01"}
    values = {"depends_on": ["a/x"], "partitions": partitions, **declared}
    assert describe_trigger(DagDeclaration.model_validate(values)) == words
