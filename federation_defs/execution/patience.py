"""How long a wait is kept up when what comes back is no help."""

from __future__ import annotations

from federation_defs.errors import (
    AirflowError,
    CredentialError,
    DagBrokenError,
    DagNotFoundError,
    DagPausedError,
    RunLostError,
    RunNotStartedError,
    UnreachableError,
)
from federation_defs.execution.failures import build_silence_error
from federation_defs.execution.waiting import Wait

# How long an answer that is none of Airflow's is borne: a gateway's, or one from an upgrade; and
# triggers that fail there, as they do while SQLite is locked.
TROUBLE_S = 600.0

# How long an instance has to be away to be forgiven what was before.
AWAY_S = 60.0

_FINAL = (DagNotFoundError, DagPausedError, DagBrokenError, RunLostError)
_MAY_PASS = (UnreachableError, CredentialError, RunNotStartedError)


def bear(one: Wait, error: AirflowError, now: float) -> AirflowError | None:
    """What to give a wait up with after this error; None if it goes on.

    It goes on until its time-out while the instance is away, and for ten minutes while that answers
    oddly, if now and then not at all, or there is nothing to sign in with. A trigger that was
    answered, if with a refusal, is not tried again.

    Args:
        now: By the monotonic clock, in seconds.
    """
    if isinstance(error, _FINAL):
        return error
    is_away = isinstance(error, UnreachableError)
    if not is_away:
        one.away_since = None
        one.odd_since = now if one.odd_since is None else one.odd_since
    elif one.away_since is None:
        one.away_since = now
    elif now - one.away_since > AWAY_S:
        one.odd_since = None
    is_refused = one.run is None and not isinstance(error, _MAY_PASS)
    is_odd_for_s = 0.0 if is_away or one.odd_since is None else now - one.odd_since
    if is_refused or is_odd_for_s > TROUBLE_S:
        return error
    if now < one.deadline:
        return None
    if one.run is not None and one.is_going_on:
        return build_silence_error(one.run, now - one.since, error)
    return error  # it was not started, or it is over and its tasks aren't told
