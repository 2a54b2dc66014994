"""Ways to sign in at cloud providers. Each needs a package that is installed as an extra."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import requests

from federation_defs.airflow.auth import Credential, NotSignedInError, RenewableAuth, build_bearer
from federation_defs.airflow.http import NoAuth, Transport, read_cookie

_AWS_TIMEOUT_S = 10
# Within this time after a login, a 403 is a missing permission, not an expired session.
_FRESH_LOGIN_S = 60.0
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class MwaaAuth(RenewableAuth):
    """Amazon MWAA: the web login token of an IAM identity, exchanged for a session.

    The session ends after some hours, or when the environment is updated. Then a new one is
    started. (`InvokeRestApi`, the alternative, limits answers to 6 MB and 10 s.)

    Args:
        environment: The MWAA environment's name.
        region, profile: Of AWS; None for those that boto3 finds.
    """

    # The login of Airflow 3 is tried first. Airflow 2 answers it with 404, which leaves the token
    # valid.
    _LOGINS = (("/pluginsv2/aws_mwaa/login", "_token"), ("/aws_mwaa/login", "session"))

    def __init__(
        self, transport: Transport, environment: str, region: str | None, profile: str | None
    ) -> None:
        super().__init__(transport.timing.monotonic)
        self._transport = transport
        self._environment = environment
        self._region, self._profile = region, profile
        self._signed_in_at = 0.0

    def _fetch(self) -> Credential:
        token = self._fetch_login_token()
        statuses = []
        for path, cookie in self._LOGINS:
            response = self._transport.send(
                "POST", path, auth=NoAuth(), is_repeatable=False, data={"token": token}
            )
            if response.status_code == 429 or response.status_code >= 500:
                raise NotSignedInError("no session for now", response)
            value = read_cookie(response, cookie)
            statuses.append(str(response.status_code))
            if response.status_code < 400 and value:
                self._signed_in_at = self._monotonic()
                if cookie == "_token":  # a bearer token like any other
                    return build_bearer(value)
                return Credential(("Cookie", f"session={value}"))
        reason = f"the login at {self._transport.url} gave no session ({' and '.join(statuses)})"
        raise NotSignedInError(reason)

    def _is_refusal(self, response: requests.Response) -> bool:
        """Return whether the session ended: a 401, or some time after the login also a 403 or a
        redirect to the login page."""
        if super()._is_refusal(response):
            return True
        is_fresh = self._monotonic() - self._signed_in_at < _FRESH_LOGIN_S
        return (response.status_code == 403 or response.is_redirect) and not is_fresh

    def _fetch_login_token(self) -> str:
        import boto3  # part of an extra, and slow to import
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        config = Config(connect_timeout=_AWS_TIMEOUT_S, read_timeout=_AWS_TIMEOUT_S)
        name = self._environment
        try:
            aws = boto3.Session(region_name=self._region, profile_name=self._profile)
            answer = aws.client("mwaa", config=config).create_web_login_token(Name=name)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "no code")
            reason = f"AWS refused CreateWebLoginToken for the MWAA environment {name} ({code})"
            raise NotSignedInError(reason) from error
        except BotoCoreError as error:
            reason = f"AWS gave no login for the MWAA environment {name} ({type(error).__name__})"
            raise NotSignedInError(reason) from error
        host = answer["WebServerHostname"]
        # The token must not go to another host.
        if host != urlsplit(self._transport.url).hostname:
            reason = f"the MWAA environment {name} is at {host}, and `url` is {self._transport.url}"
            raise NotSignedInError(reason)
        return answer["WebToken"]


class ComposerAuth(RenewableAuth):
    """Cloud Composer: the access token of a Google account, renewed before it expires.

    Args:
        credentials_file: A service account's key; None for the application default credentials.
    """

    def __init__(self, credentials_file: str | None, monotonic: Callable[[], float]) -> None:
        super().__init__(monotonic)
        self._file = credentials_file
        self._google: Any = None

    def _fetch(self) -> Credential:
        from google.auth.exceptions import GoogleAuthError, RefreshError
        from google.auth.transport.requests import Request

        try:
            if self._google is None:
                self._google = self._load()
            self._google.refresh(Request())
        except (GoogleAuthError, OSError, ValueError, TypeError, AttributeError) as error:
            # Of a refusal, only its name: the rest of the message may quote a key.
            name = str(error.args[0]) if isinstance(error, RefreshError) else type(error).__name__
            source = self._file or "the application default credentials"
            reason = f"Google gave no access token for {source} ({' '.join(name.split())[:200]})"
            raise NotSignedInError(reason) from error
        lifetime_s = math.inf
        if self._google.expiry is not None:  # naive, in UTC
            expires = self._google.expiry.replace(tzinfo=timezone.utc)
            lifetime_s = (expires - datetime.now(timezone.utc)).total_seconds()
        return Credential(("Authorization", f"Bearer {self._google.token}"), lifetime_s)

    def _load(self) -> Any:
        if self._file is None:
            from google.auth import default

            return default(scopes=[_GOOGLE_SCOPE])[0]
        from google.oauth2.service_account import Credentials

        return Credentials.from_service_account_file(self._file, scopes=[_GOOGLE_SCOPE])
