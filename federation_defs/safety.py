"""Safe mode: where nothing may be triggered in any Airflow."""

from __future__ import annotations

from collections.abc import Mapping

from federation_defs.errors import DeclarationError

TRIGGERS_VARIABLE = "FEDERATION_TRIGGERS"

_BRANCH_VARIABLE = "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT"  # set by Dagster+


def find_safe_mode_reason(environment: Mapping[str, str]) -> str | None:
    """Return why no DAG may be triggered, cleared or stopped, or None if it may.

    Raises:
        DeclarationError: FEDERATION_TRIGGERS says neither on nor off.
    """
    value = environment.get(TRIGGERS_VARIABLE, "").strip().lower()
    if value in ("off", "0", "false", "no"):
        return f"{TRIGGERS_VARIABLE} is '{value}'"
    if value in ("on", "1", "true", "yes"):
        return None
    if value:
        raise DeclarationError([f"{TRIGGERS_VARIABLE} is '{value}': write on or off."])
    if environment.get(_BRANCH_VARIABLE, "").strip().lower() in ("1", "true"):
        return f"this is a branch deployment ({TRIGGERS_VARIABLE}=on would allow it)"
    return None
