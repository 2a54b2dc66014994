"""Safe mode: deployments in which no DAG run may be triggered, cleared or stopped."""

from __future__ import annotations

from collections.abc import Mapping

from federation_defs.errors import DeclarationError

TRIGGERS_VARIABLE = "FEDERATION_TRIGGERS"

_BRANCH_VARIABLE = "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT"  # set by Dagster+


def find_safe_mode_reason(environment: Mapping[str, str]) -> str | None:
    """Return why no DAG run may be triggered, cleared or stopped, or None if that is allowed.

    Raises:
        DeclarationError: FEDERATION_TRIGGERS is neither on (1, true, yes) nor off (0, false, no).
    """
    value = environment.get(TRIGGERS_VARIABLE, "").strip().lower()
    if value in ("off", "0", "false", "no"):
        return f"{TRIGGERS_VARIABLE} is '{value}'"
    if value in ("on", "1", "true", "yes"):
        return None
    if value:
        raise DeclarationError([f"{TRIGGERS_VARIABLE} is '{value}': write on or off."])
    if environment.get(_BRANCH_VARIABLE, "").strip().lower() in ("1", "true"):
        return f"this is a branch deployment ({TRIGGERS_VARIABLE}=on would allow triggers)"
    return None
