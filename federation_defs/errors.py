"""What can go wrong, by who can mend it.

FederationError
├── DeclarationError            a defs.yaml says something that can't hold
└── AirflowError                what one Airflow answered, or did not
    ├── UnreachableError        no answer, or none but "not now" (429, 5xx)
    ├── SignInRefusedError      401: the account or its password
    ├── PermissionMissingError  403: the account may not do this (2.x: or its password)
    ├── UnexpectedAnswerError   an answer that is none of Airflow's, or lacks what we need
    ├── DagNotFoundError        the DAG is not there (any more)
    ├── DagPausedError          the DAG would leave a run queued
    ├── LogicalDateTakenError   another run owns the logical date
    └── RunLostError            a DAG run that was there is gone, or overstayed its time-out

Every message says what, where, what was seen and what to do, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence


class FederationError(Exception):
    """The root of all errors that this package raises on purpose."""


class DeclarationError(FederationError):
    """One or more declarations can't hold.

    Args:
        problems: One sentence each, naming file, key, what is wrong and the remedy.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        super().__init__(f"{count} in the declarations:\n" + "\n".join(f"- {p}" for p in problems))


class AirflowError(FederationError):
    """Something about one Airflow instance.

    Args:
        instance: The instance's declared name.
        message: What was seen and what to do; the instance's name is put before it.
    """

    def __init__(self, instance: str, message: str) -> None:
        self.instance = instance
        super().__init__(f"Airflow '{instance}' {message}")


class UnreachableError(AirflowError):
    """No answer came, or none that helps: nothing listens there, the network is cut, it took too
    long, or a server said that it can't now. The only error that is worth waiting out."""

    def __init__(self, instance: str, url: str, reason: str) -> None:
        self.url = url
        super().__init__(
            instance,
            f"did not answer at {url} ({reason}). Is it running, and is its `url` right?",
        )


class SignInRefusedError(AirflowError):
    """The account, or its password, was not accepted.

    Args:
        request: Method and path of what was asked.
        status: Of the answer.
        check: The environment variables (or keys) that hold the account.
    """

    def __init__(self, instance: str, request: str, status: int, check: str) -> None:
        super().__init__(instance, f"refused {request} ({status}). Check {check}.")


class PermissionMissingError(AirflowError):
    """The account may not do this; or, as Airflow 2.11 tells neither apart, its password is wrong.

    Args:
        detail: Airflow's own words; 2.11 has none, for either.
        check: The environment variables (or keys) that hold the account.
    """

    def __init__(self, instance: str, request: str, detail: str, check: str) -> None:
        remedy = "Give the account a role that may do this."
        if not detail:
            remedy = (
                f"Check {check}: Airflow 2 answers a wrong password so. If it is right: {remedy}"
            )
        super().__init__(instance, f"forbids {request} (403{_said(detail)}). {remedy}")


class UnexpectedAnswerError(AirflowError):
    """An answer that is not Airflow's API, a status we can't act on, or a missing field."""

    def __init__(self, instance: str, request: str, seen: str, remedy: str = "") -> None:
        super().__init__(instance, f"answered {request} with {seen}. {remedy}".rstrip())


class DagNotFoundError(AirflowError):
    """The instance has no such DAG, or none that it can still parse."""

    def __init__(self, instance: str, dag_id: str, seen: str) -> None:
        self.dag_id = dag_id
        super().__init__(
            instance,
            f"has no DAG '{dag_id}' ({seen}). Bring its file back, look for an import error, "
            "or take it out of the declarations.",
        )


class DagPausedError(AirflowError):
    """The DAG is paused: a run would stay queued until someone unpauses it."""

    def __init__(self, instance: str, dag_id: str, url: str) -> None:
        self.dag_id = dag_id
        super().__init__(
            instance,
            f"has DAG '{dag_id}' paused: a run would wait for ever. Unpause it at {url} and "
            "materialize the asset again.",
        )


class LogicalDateTakenError(AirflowError):
    """Another run of the DAG owns the logical date that a trigger asked for."""

    def __init__(self, instance: str, dag_id: str, run_id: str, detail: str) -> None:
        super().__init__(
            instance,
            f"did not start run '{run_id}' of DAG '{dag_id}': another run has its logical date "
            f"(409{_said(detail)}). Clear that run instead.",
        )


class RunLostError(AirflowError):
    """A DAG run that we waited for is gone, or is still going past its time-out."""


def _said(detail: str) -> str:
    return f": {detail}" if detail else ""
