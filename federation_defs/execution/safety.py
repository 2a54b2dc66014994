"""Where nothing may be triggered: a branch deployment is a copy that looks at the real Airflows."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "FEDERATION_TRIGGERS"
_BRANCH = "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT"  # set by Dagster+


def find_hold_reason(environment: Mapping[str, str]) -> str | None:
    """Why no DAG may be triggered, cleared or stopped; None if it may.

    Raises:
        ValueError: The variable says neither on nor off.
    """
    said = environment.get(VARIABLE, "").strip().lower()
    if said in ("off", "0", "false", "no"):
        return f"{VARIABLE} is '{said}'"
    if said in ("on", "1", "true", "yes"):
        return None
    if said:
        raise ValueError(f"{VARIABLE} is '{said}': write on or off.")
    if environment.get(_BRANCH, "").strip().lower() in ("1", "true"):
        return f"this is a branch deployment ({VARIABLE}=on would allow it)"
    return None
