"""Where nothing may be triggered."""

from __future__ import annotations

import pytest

from federation_defs.execution.asset import find_safe_mode_reason

BRANCH = {"DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": "1"}


def test_nothing_holds_where_nothing_is_said() -> None:
    assert find_safe_mode_reason({}) is None
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": "  "}) is None


@pytest.mark.parametrize("said", ["on", "ON", "1", "true", "yes", " on "])
def test_what_is_on_triggers_from_a_branch_too(said: str) -> None:
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": said}) is None
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": said, **BRANCH}) is None


@pytest.mark.parametrize("said", ["off", "Off", "0", "false", "no"])
def test_what_is_off_holds_and_the_variable_is_named(said: str) -> None:
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": said}) == (
        f"FEDERATION_TRIGGERS is '{said.lower()}'"
    )


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_a_branch_deployment_holds_and_says_how_to_have_it_otherwise(value: str) -> None:
    reason = find_safe_mode_reason({"DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": value})
    assert reason == "this is a branch deployment (FEDERATION_TRIGGERS=on would allow it)"


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_what_is_no_branch_deployment_does_not_hold(value: str) -> None:
    assert find_safe_mode_reason({"DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": value}) is None


@pytest.mark.parametrize("said", ["maybe", "disabled", "none"])
def test_what_is_neither_is_an_error(said: str) -> None:
    with pytest.raises(ValueError, match=f"FEDERATION_TRIGGERS is '{said}': write on or off"):
        find_safe_mode_reason({"FEDERATION_TRIGGERS": said, **BRANCH})
