"""The errors of this package, by what they are about.

FederationError
├── DeclarationError            a defs.yaml, or a variable that is read beside it, is wrong
├── DeclaredTwiceError          two code locations declare an instance
├── TickOutdatedError           a sensor was changed during a tick of it
├── ReloadFailedError           Dagster's webserver did not reload the code location
├── OnlyIfError                 an `only_if` function gave no answer
└── AirflowError                a problem with one Airflow instance
    ├── UnreachableError        no answer, or a temporary error (429, 5xx): may pass by itself
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
    └── RunLostError            a DAG run was deleted, or exceeded its time-out

Every message says in one line what happened, where, and what to do, and holds no control character,
whatever an Airflow sends. `docs/errors.md` lists them.

Common arguments: `request` is a method and a path; `check` names the environment variables (or
keys) that hold the account; `detail` is what Airflow itself says, empty if it says nothing. Others
are parts of the message, and are written so that they fit into it.
"""

from __future__ import annotations

from collections.abc import Sequence

from federation_defs.redaction import clean_text


class FederationError(Exception):
    """The root of all errors that this package raises on purpose."""

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
        message: What happened and what to do, as it follows the instance's name.
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
    """A person has switched a sensor off, or changed its cursor, during a tick of it."""

    def __init__(self, sensor: str) -> None:
        super().__init__(
            f"The sensor '{sensor}' was switched off, or its cursor was changed, during this tick. "
            "The tick ends, requests nothing, and leaves the cursor as it is now. Nothing is to be "
            "done."
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
        upstream: The DAG, as instance/dag_id, or asset of which it was asked.
        downstream: The DAG that it decides on, as instance/dag_id.
        why: What it did instead.
    """

    def __init__(self, function: str, *, upstream: str, downstream: str, why: str) -> None:
        instance, dag_id = downstream.split("/", 1)
        super().__init__(
            f"Airflow '{instance}' was not asked to run DAG '{dag_id}' for '{upstream}', because "
            f"`only_if` {function} {why}. Correct it: after three failures it is not asked again "
            "about the same event."
        )


class UnreachableError(AirflowError):
    """No answer, or a temporary error.

    Args:
        is_late: The answer exceeded a declared time-out. The request is not repeated.
        status: Of a temporary error.
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
            message = f"did not answer at {url} ({reason}). Is it running, and is its `url` right?"
        else:
            remedy = "look into the log of its web server (Airflow 2) or API server (Airflow 3)"
            remedy = _REMEDIES.get(status, remedy)
            message = f"answered with an error at {url} ({reason}). If it persists, {remedy}."
        super().__init__(instance, message)


_GATEWAY = "look whether the Airflow behind its gateway or proxy is running"
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
        super().__init__(instance, f"was not signed in to: {reason}. Check {check}.")


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
            why = "Airflow 2 answers a wrong password so"  # 2.11, and without a detail
            remedy = f"Check {check}: {why}. If it is right: {remedy}"
        super().__init__(instance, f"forbids {request} (403{quote_detail(detail)}). {remedy}")


class RequestRefusedError(AirflowError):
    def __init__(self, instance: str, request: str, status: int, detail: str) -> None:
        super().__init__(
            instance,
            f"rejected {request} ({status}{quote_detail(detail)}). Change what it names: the same "
            "request would be rejected again.",
        )


class UnsupportedError(AirflowError):
    def __init__(self, instance: str, version: str, features: str, since: str) -> None:
        super().__init__(
            instance,
            f"runs Airflow {version}, which has no {features}: {since} is the first that has. "
            "Upgrade it, or declare something that does not need them.",
        )


class UnexpectedAnswerError(AirflowError):
    def __init__(self, instance: str, request: str, seen: str, remedy: str = "") -> None:
        remedy = remedy or "Is `url` the address of an Airflow, with no proxy that answers for it?"
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
        remedy = f"a run would wait for ever. Unpause it at {url} and materialize the asset again."
        if run_id is not None:
            remedy = (
                f"run '{run_id}' stays queued, and is waited for no longer. Unpause it at {url}: "
                "then it runs, and is reported when it ends."
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
    """Nothing may be changed here. `request` is what was asked for, as it follows "to"."""

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
            f"{seen}. Delete that run; or declare another `date` in `partitions`, if the DAG's "
            "schedule creates such runs.",
        )


class RunNotStartedError(AirflowError):
    def __init__(self, instance: str, dag_id: str, run_id: str, reason: str) -> None:
        super().__init__(
            instance,
            f"did not start run '{run_id}' of DAG '{dag_id}' ({reason}), and has no run of that "
            "id. Look into the log of its web server or API server. If this Dagster run fails "
            "because of it, re-execute that: a run that appears late is adopted.",
        )


class RunLostError(AirflowError):
    """A DAG run that we waited for was deleted, or exceeded its time-out."""


RUN_ANEW = "Materialize the asset again for a new run."  # of a run that was deleted


def quote_detail(detail: str) -> str:
    """Return Airflow's own words as they follow a status: at most 300 characters."""
    return f": {detail[:300]}" if detail else ""
