"""The errors of this package, by what they are about.

FederationError
├── DeclarationError            a defs.yaml, or a variable that is read beside it, is wrong
├── DeclaredTwiceError          two code locations declare an instance
├── TickOutdatedError           a sensor was changed during a tick of it
├── ReloadFailedError           Dagster's webserver did not reload the code location
├── OnlyIfError                 an `only_if` function gave no answer
└── AirflowError                a problem with one Airflow instance
    ├── UnreachableError        no usable answer, or a 429 or 5xx: may pass by itself
    ├── TlsError                no trusted TLS connection: a certificate, or no TLS at all
    ├── CredentialError         the source of the credentials failed: a file, a command, a cloud
    ├── MissingExtraError       the sign-in needs a package that is not installed
    ├── SignInRefusedError      401: wrong account or password
    ├── PermissionMissingError  403: missing permission (2.x: or wrong password)
    ├── RequestRefusedError     400, 422: a conf, a date or a partition key was rejected
    ├── UnsupportedError        this version of Airflow lacks a feature
    ├── UnexpectedAnswerError   not an answer of Airflow's API, or a field is missing
    ├── DagNotFoundError        the DAG does not exist (any more)
    ├── DagPausedError          the DAG is paused: a run would stay queued
    ├── DagBrokenError          the DAG's file has an import error: a run would fail, or be old
    ├── TriggersOffError        triggers are switched off here
    ├── LogicalDateTakenError   another run of the DAG has the logical date
    ├── PartitionMismatchError  a run of another partition has the logical date
    ├── RunNotStartedError      a trigger failed and left no run; may succeed later
    └── RunLostError            a DAG run was deleted, or did not end within its time-out

A message contains what happened, where, and what to do. That of an `AirflowError` is one line, and
that of a `DeclarationError` has a line for each problem. Messages contain no control characters but
line feeds and tabs, whatever an Airflow sends. `docs/errors.md` lists them.

Common arguments: `request` is a method and a path. `check` names the environment variables (or
keys) that hold the account. `detail` is Airflow's own message, empty if there is none. Other
arguments are parts of the sentence that the constructor composes.
"""

from __future__ import annotations

from collections.abc import Sequence

from federation_defs.redaction import clean_text


class FederationError(Exception):
    """The root of the errors that this package reports.

    A few internal exceptions do not derive from it. They are handled before they reach a user.
    """

    def __init__(self, message: str) -> None:
        super().__init__(clean_text(message))


class DeclarationError(FederationError):
    """One or more declarations are wrong.

    Args:
        problems: One sentence each, with the file, the key, what is wrong and the remedy.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        super().__init__(f"{count} in the declarations:\n" + "\n".join(f"- {p}" for p in problems))


class AirflowError(FederationError):
    """A problem with one Airflow instance.

    Args:
        message: What happened and what to do: the part of the sentence after the instance's name.
    """

    def __init__(self, instance: str, message: str) -> None:
        self.instance = instance
        self.message = clean_text(message).replace("\n", " ")
        super().__init__(f"Airflow '{instance}' {self.message}")


class DeclaredTwiceError(FederationError):
    """Two code locations of one Dagster would report each run, and start each DAG, twice."""

    def __init__(self, instance: str, code_location: str, other: str) -> None:
        super().__init__(
            f"Airflow '{instance}' is declared in the code locations '{other}' and "
            f"'{code_location}' of this Dagster. Only '{other}' observes it and runs its DAGs. "
            "Remove the other declaration. If it was moved, or the code location renamed, this "
            "passes within five minutes."
        )


class TickOutdatedError(FederationError):
    """A person switched a sensor off, or changed its cursor, during one of its ticks."""

    def __init__(self, sensor: str) -> None:
        super().__init__(
            f"The sensor '{sensor}' was switched off, or its cursor was changed, during this tick. "
            "The tick ends, requests nothing, and leaves the cursor as it is now. No action "
            "is needed."
        )


class ReloadFailedError(FederationError):
    """Dagster's webserver did not reload the code location after a refresh of the state."""

    def __init__(self, code_location: str, why: str) -> None:
        super().__init__(
            f"The code location '{code_location}' was not reloaded: {why}. The states are stored. "
            "Check FEDERATION_RELOAD_URL, or reload the code location in the UI."
        )


class OnlyIfError(FederationError):
    """An `only_if` function gave no answer.

    Args:
        function: Its name, as module:function.
        upstream: The DAG, as instance/dag_id, or the asset, whose event it was asked about.
        downstream: The DAG that it decides on, as instance/dag_id.
        why: What it did instead: the end of a sentence that begins with its name.
    """

    def __init__(self, function: str, *, upstream: str, downstream: str, why: str) -> None:
        instance, dag_id = downstream.split("/", 1)
        super().__init__(
            f"Airflow '{instance}' was not asked to run DAG '{dag_id}' for '{upstream}', because "
            f"`only_if` {function} {why}. Correct the function: after three failures in a row, it "
            "is not called again for the same event."
        )


class UnreachableError(AirflowError):
    """No usable answer, or a temporary error.

    Args:
        is_late: The answer exceeded a declared time-out. The request is not repeated.
        status: The HTTP status of a temporary error; None if there was no usable answer.
    """

    def __init__(
        self,
        instance: str,
        url: str,
        reason: str,
        *,
        is_late: bool = False,
        status: int | None = None,
    ) -> None:
        self.reason = reason
        self.is_late = is_late
        self.status = status
        if status is None:
            message = (
                f"gave no usable answer at {url} ({reason}). Is it running, and is its `url` right?"
            )
        else:
            remedy = "read the log of its web server (Airflow 2) or API server (Airflow 3)"
            remedy = _REMEDIES.get(status, remedy)
            message = f"answered with an error at {url} ({reason}). If it persists, {remedy}."
        super().__init__(instance, message)


_GATEWAY = "check whether the Airflow behind the gateway or proxy is running"
_REMEDIES = {
    429: "lower `http.max_requests_per_minute`",
    502: _GATEWAY,
    503: _GATEWAY,
    504: _GATEWAY,
}


class TlsError(AirflowError):
    def __init__(self, instance: str, url: str, reason: str) -> None:
        super().__init__(
            instance,
            f"can't be trusted at {url} ({reason}). Is `url` right, https and port included? If "
            "its certificate is from a proxy or a private authority, name that authority's PEM "
            "file in `tls.ca_bundle`; if it requires a client certificate, name that in "
            "`tls.client_cert`.",
        )


class CredentialError(AirflowError):
    """The source of the credentials failed. The reason holds no part of a credential."""

    def __init__(self, instance: str, reason: str, check: str) -> None:
        super().__init__(instance, f"got no request: the sign-in failed ({reason}). Check {check}.")


class MissingExtraError(AirflowError):
    def __init__(self, instance: str, package: str, extra: str) -> None:
        super().__init__(
            instance,
            f"is declared with `auth: {{type: {extra}}}`, which needs {package}. "
            f"Add the extra '{extra}' of federation-defs to the project.",
        )


class SignInRefusedError(AirflowError):
    def __init__(
        self, instance: str, request: str, status: int, check: str, remedy: str = ""
    ) -> None:
        message = f"refused {request} ({status}). Check {check}. {remedy}"
        super().__init__(instance, message.rstrip())


class PermissionMissingError(AirflowError):
    """A 403. `needed` is the missing permission, or empty if that is unknown."""

    def __init__(self, instance: str, request: str, needed: str, detail: str, check: str) -> None:
        remedy = f"The account lacks the permission {needed}".rstrip()
        remedy += ": give it a role that has it."
        if not detail:
            why = "Airflow 2 also answers 403 to a wrong password"  # 2.11, without a detail
            remedy = f"Check {check}: {why}. If the password is right: {remedy}"
        super().__init__(instance, f"forbids {request} (403{quote_detail(detail)}). {remedy}")


class RequestRefusedError(AirflowError):
    def __init__(self, instance: str, request: str, status: int, detail: str) -> None:
        super().__init__(
            instance,
            f"rejected {request} ({status}{quote_detail(detail)}). Change what Airflow objects to: "
            "the same request would be rejected again.",
        )


class UnsupportedError(AirflowError):
    def __init__(self, instance: str, version: str, features: str, since: str) -> None:
        super().__init__(
            instance,
            f"runs Airflow {version}, which has no {features}: they exist since Airflow {since}. "
            "Upgrade it, or declare something that does not need them.",
        )


class UnexpectedAnswerError(AirflowError):
    def __init__(self, instance: str, request: str, seen: str, remedy: str = "") -> None:
        remedy = remedy or "Is `url` an Airflow's address, or does a proxy answer in its place?"
        super().__init__(instance, f"answered {request} with {seen}. {remedy}")


class DagNotFoundError(AirflowError):
    def __init__(self, instance: str, dag_id: str, seen: str, hint: str = "") -> None:
        self.seen = seen
        super().__init__(
            instance,
            f"has no DAG '{dag_id}' ({seen}){hint or '.'} Restore its file, look for an import "
            "error, or remove it from the declarations.",
        )


class DagPausedError(AirflowError):
    def __init__(self, instance: str, dag_id: str, url: str, run_id: str | None = None) -> None:
        remedy = f"a run would stay queued. Unpause it at {url} and materialize the asset again."
        if run_id is not None:
            remedy = (
                f"run '{run_id}' stays queued, and Dagster no longer waits for it. Unpause the DAG "
                f"at {url}: the run then starts, and is reported when it ends."
            )
        super().__init__(instance, f"has DAG '{dag_id}' paused: {remedy}")


class DagBrokenError(AirflowError):
    def __init__(self, instance: str, dag_id: str, url: str, reason: str) -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(
            instance,
            f"can't import the file of DAG '{dag_id}'{why}. Fix it until {url} shows no error, "
            "and materialize the asset again.",
        )


class TriggersOffError(AirflowError):
    """Triggers are switched off here. `request` is the refused action, as it follows "to"."""

    def __init__(self, instance: str, request: str, reason: str) -> None:
        super().__init__(
            instance,
            f"was not asked to {request}, because {reason}. Set FEDERATION_TRIGGERS=on where DAGs "
            "may be run.",
        )


class LogicalDateTakenError(AirflowError):
    def __init__(self, instance: str, dag_id: str, run_id: str, detail: str) -> None:
        super().__init__(
            instance,
            f"did not start run '{run_id}' of DAG '{dag_id}': another run has its logical date "
            f"(409{quote_detail(detail)}). Clear that run instead.",
        )


class PartitionMismatchError(AirflowError):
    """The run that has the logical date of a partition belongs to another partition, or to none.

    Args:
        seen: To what it belongs, as the end of a sentence.
    """

    def __init__(self, instance: str, target: str, run_id: str, seen: str) -> None:
        super().__init__(
            instance,
            f"did not start a run of {target}: run '{run_id}' has its logical date, and belongs to "
            f"{seen}. If the DAG's schedule creates such runs, declare another `date` in "
            "`partitions`. If a person created it, delete it.",
        )


class RunNotStartedError(AirflowError):
    def __init__(self, instance: str, dag_id: str, run_id: str, reason: str) -> None:
        super().__init__(
            instance,
            f"did not start run '{run_id}' of DAG '{dag_id}' ({reason}), and shows no run of "
            "that id. Read the log of its web server or API server. If this Dagster run fails "
            "because of that, re-execute it: a run that appears late is adopted.",
        )


class RunLostError(AirflowError):
    """A DAG run was deleted, or was not seen to end within its `trigger.timeout`."""


RUN_ANEW = "Materialize the asset again for a new run."  # the remedy if a run was deleted


def quote_detail(detail: str) -> str:
    """Return Airflow's message as it follows a status: a colon and at most 300 characters."""
    return f": {detail[:300]}" if detail else ""
