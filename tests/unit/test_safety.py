"""Where nothing may be triggered: FEDERATION_TRIGGERS, and branch deployments."""

from __future__ import annotations

import pytest

from federation_defs.errors import DeclarationError
from federation_defs.safety import find_safe_mode_reason

BRANCH = {"DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": "1"}


def test_triggers_are_allowed_unless_something_is_set() -> None:
    assert find_safe_mode_reason({}) is None
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": "  "}) is None


@pytest.mark.parametrize("said", ["on", "ON", "1", "true", "yes", " on "])
def test_on_allows_triggers_in_a_branch_deployment_too(said: str) -> None:
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": said}) is None
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": said, **BRANCH}) is None


@pytest.mark.parametrize("said", ["off", "Off", "0", "false", "no"])
def test_off_is_the_reason_and_names_the_variable(said: str) -> None:
    assert find_safe_mode_reason({"FEDERATION_TRIGGERS": said}) == (
        f"FEDERATION_TRIGGERS is '{said.lower()}'"
    )


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_a_branch_deployment_is_the_reason_and_says_how_to_allow_triggers(value: str) -> None:
    reason = find_safe_mode_reason({"DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": value})
    assert reason == "this is a branch deployment (FEDERATION_TRIGGERS=on would allow triggers)"


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_other_deployments_allow_triggers(value: str) -> None:
    assert find_safe_mode_reason({"DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": value}) is None


@pytest.mark.parametrize("said", ["maybe", "disabled", "none"])
def test_other_values_are_an_error(said: str) -> None:
    with pytest.raises(DeclarationError, match=f"FEDERATION_TRIGGERS is '{said}': write on or off"):
        find_safe_mode_reason({"FEDERATION_TRIGGERS": said, **BRANCH})
