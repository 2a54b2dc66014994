"""What can go wrong, by who can mend it.

FederationError
├── DeclarationError            a defs.yaml says something that can't hold
└── AirflowError                what one Airflow answered, or did not
    ├── UnreachableError        no answer, or none but "not now" (429, 5xx)
    ├── TlsError                no connection that can be trusted
    ├── CredentialError         nothing to sign in with: a file, a program, a cloud's account
    ├── MissingExtraError       what signs in there is not installed
    ├── SignInRefusedError      401: the account or its password
    ├── PermissionMissingError  403: the account may not do this (2.x: or its password)
    ├── RequestRefusedError     400, 422: Airflow understood, and won't
    ├── UnsupportedError        this version of Airflow has no such thing
    ├── UnexpectedAnswerError   an answer that is none of Airflow's, or lacks what we need
    ├── DagNotFoundError        the DAG is not there (any more)
    ├── DagPausedError          the DAG would leave a run queued
    ├── DagBrokenError          the DAG's file does not parse as it is now
    ├── LogicalDateTakenError   another run owns the logical date
    ├── RunNotStartedError      a trigger that failed there, and left no run behind
    └── RunLostError            a DAG run that was there is gone, or overstayed its time-out

Every message says what, where, what was seen and what to do, in one line; `docs/errors.md` has
them all.
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
        self.said = message
        super().__init__(f"Airflow '{instance}' {message}")


class UnreachableError(AirflowError):
    """No answer came, or none that helps: nothing listens there, the network is cut, it took too
    long, or a server said that it can't now. The only error that is worth waiting out.

    Args:
        is_late: It was given the time that is declared, and did not answer in it.
    """

    def __init__(self, instance: str, url: str, reason: str, *, is_late: bool = False) -> None:
        self.url = url
        self.reason = reason
        self.is_late = is_late
        super().__init__(
            instance,
            f"did not answer at {url} ({reason}). Is it running, and is its `url` right?",
        )


class TlsError(AirflowError):
    """No connection that can be trusted: a certificate, on either side, or no TLS at all there."""

    def __init__(self, instance: str, url: str, reason: str) -> None:
        super().__init__(
            instance,
            f"can't be trusted at {url} ({reason}). Is `url` right, https and port included? If a "
            "proxy or a company's own authority is in between, name its PEM file in "
            "`tls.ca_bundle`; if the instance wants a certificate of ours, in `tls.client_cert`.",
        )


class CredentialError(AirflowError):
    """There is nothing to sign in with: what should give it did not. The server was not asked.

    Args:
        reason: What was asked for it, and what it did; no part of the credential.
        check: The environment variables (or keys) that hold the account.
    """

    def __init__(self, instance: str, reason: str, check: str) -> None:
        super().__init__(instance, f"was not signed in to: {reason}. Check {check}.")


class MissingExtraError(AirflowError):
    """A way to sign in needs a package that is not installed."""

    def __init__(self, instance: str, sign_in: str, package: str, extra: str) -> None:
        super().__init__(
            instance,
            f"is declared with `auth: {{type: {sign_in}}}`, which needs {package}. Install it: "
            f"pip install 'federation-defs[{extra}]'.",
        )


class SignInRefusedError(AirflowError):
    """The account, or its password, was not accepted.

    Args:
        request: Method and path of what was asked.
        status: Of the answer.
        check: The environment variables (or keys) that hold the account.
        remedy: What to do besides, if more is known.
    """

    def __init__(
        self, instance: str, request: str, status: int, check: str, remedy: str = ""
    ) -> None:
        said = f"refused {request} ({status}). Check {check}. {remedy}"
        super().__init__(instance, said.rstrip())


class PermissionMissingError(AirflowError):
    """The account may not do this; or, as Airflow 2.11 tells neither apart, its password is wrong.

    Args:
        needed: The permission, as the end of "lacks the permission"; empty if it is not known.
        detail: Airflow's own words; 2.11 has none, for either.
        check: The environment variables (or keys) that hold the account.
    """

    def __init__(self, instance: str, request: str, needed: str, detail: str, check: str) -> None:
        lacks = f"The account lacks the permission {needed}".rstrip()
        remedy = f"{lacks}: give it a role that has it."
        if not detail:
            wrong = "Airflow 2 answers a wrong password so"
            remedy = f"Check {check}: {wrong}. If it is right: {remedy}"
        super().__init__(instance, f"forbids {request} (403{quote_detail(detail)}). {remedy}")


class RequestRefusedError(AirflowError):
    """Airflow understood what was asked, and won't do it as it stands: a conf that the DAG's
    params don't allow, a date, a key of a wrong form.

    Args:
        detail: Airflow's own words.
    """

    def __init__(self, instance: str, request: str, status: int, detail: str) -> None:
        self.detail = detail
        self._told = (request, status)
        super().__init__(
            instance,
            f"won't do {request} ({status}{quote_detail(detail)}). Change what it names: sent "
            "again, the same is refused again.",
        )

    def say(self, detail: str) -> RequestRefusedError:
        """The same error, with other words of Airflow's."""
        return RequestRefusedError(self.instance, *self._told, detail)


class UnsupportedError(AirflowError):
    """This version of Airflow has no such thing.

    Args:
        what: What was asked of it.
        since: The first version that has it.
    """

    def __init__(self, instance: str, version: str, what: str, since: str) -> None:
        super().__init__(
            instance,
            f"runs Airflow {version}, which has no {what}: {since} is the first that has. Upgrade "
            "it, or declare what does without.",
        )


class UnexpectedAnswerError(AirflowError):
    """An answer that is not Airflow's API, a status we can't act on, or a missing field."""

    def __init__(self, instance: str, request: str, seen: str, remedy: str = "") -> None:
        remedy = remedy or "Is `url` an Airflow's, and nothing in between that answers for it?"
        super().__init__(instance, f"answered {request} with {seen}. {remedy}")


class DagNotFoundError(AirflowError):
    """The instance has no such DAG, or none that it can still parse.

    Args:
        seen: What told so.
        hint: The nearest name that there is, as the end of a sentence.
    """

    def __init__(self, instance: str, dag_id: str, seen: str, hint: str = "") -> None:
        self.dag_id = dag_id
        self.seen = seen
        super().__init__(
            instance,
            f"has no DAG '{dag_id}' ({seen}){hint or '.'} Bring its file back, look for an import "
            "error, or take it out of the declarations.",
        )


class DagPausedError(AirflowError):
    """The DAG is paused: a run would stay queued until someone unpauses it.

    Args:
        run_id: The run that is queued there, if there is one.
    """

    def __init__(self, instance: str, dag_id: str, url: str, run_id: str | None = None) -> None:
        self.dag_id = dag_id
        remedy = f"a run would wait for ever. Unpause it at {url} and materialize the asset again."
        if run_id is not None:
            remedy = (
                f"run '{run_id}' stays queued, and is waited for no longer. Unpause it at {url}: "
                "then it runs, and is reported when it ends."
            )
        super().__init__(instance, f"has DAG '{dag_id}' paused: {remedy}")


class DagBrokenError(AirflowError):
    """The DAG's file has an import error: a run would be of the file as it was, or fail.

    Args:
        reason: The last line of what Airflow says about it.
    """

    def __init__(self, instance: str, dag_id: str, url: str, reason: str) -> None:
        self.dag_id = dag_id
        why = f" ({reason})" if reason else ""
        super().__init__(
            instance,
            f"can't import the file of DAG '{dag_id}'{why}. Mend it until {url} shows no error, "
            "and materialize the asset again.",
        )


class LogicalDateTakenError(AirflowError):
    """Another run of the DAG owns the logical date that a trigger asked for."""

    def __init__(self, instance: str, dag_id: str, run_id: str, detail: str) -> None:
        super().__init__(
            instance,
            f"did not start run '{run_id}' of DAG '{dag_id}': another run has its logical date "
            f"(409{quote_detail(detail)}). Clear that run instead.",
        )


class RunNotStartedError(AirflowError):
    """A trigger got no answer, or none that says anything sure, and there is no run of its id:
    while the instance does answer what else it is asked. Worth a few more tries.

    Args:
        reason: What became of the trigger.
        detail: Airflow's own words about it, if there are any.
    """

    def __init__(
        self, instance: str, dag_id: str, run_id: str, reason: str, detail: str = ""
    ) -> None:
        self.dag_id = dag_id
        self.detail = detail
        self._told = (run_id, reason)
        super().__init__(
            instance,
            f"did not start run '{run_id}' of DAG '{dag_id}' ({reason}{quote_detail(detail)}), and "
            "shows none of that id. Look into the log of its web server or API server, and mend "
            "what it names. If this Dagster run fails of it, execute that again: should the run "
            "come up late, it is adopted.",
        )

    def say(self, detail: str) -> RunNotStartedError:
        """The same error, with other words of Airflow's."""
        run_id, reason = self._told
        return RunNotStartedError(self.instance, self.dag_id, run_id, reason, detail)


class RunLostError(AirflowError):
    """A DAG run that we waited for is gone, or is still going past its time-out."""


def quote_detail(detail: str) -> str:
    """Airflow's own words, if there are any, as they follow a status: 300 letters at most."""
    return f": {detail[:300]}" if detail else ""
