"""Ways to sign in that a cloud has: each needs a package that comes as an extra."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import requests

from federation_defs.airflow.auth import Credential, NotSignedInError, RenewableAuth, build_bearer
from federation_defs.airflow.http import NoAuth, Transport

_AWS_TIMEOUT_S = 10

_YOUNG_S = 60.0

_GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class MwaaAuth(RenewableAuth):
    """Amazon MWAA: an IAM identity's web login token, traded at the web server for a session.

    The session ends after some hours, or when the environment is updated; then it signs in again.
    (`InvokeRestApi`, the other way in, gives no answer of more than 6 MB or 10 s.)

    Args:
        transport: To the environment's web server.
        environment: Its name.
        region: Of AWS; None as boto3 finds it. So is `profile`.
    """

    # Airflow 3's login first: the token is good for both, and the other's path is 404.
    _LOGINS = (("/pluginsv2/aws_mwaa/login", "_token"), ("/aws_mwaa/login", "session"))

    def __init__(
        self, transport: Transport, environment: str, region: str | None, profile: str | None
    ) -> None:
        super().__init__()
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
                raise NotSignedInError("no session, for now", response)
            value = response.cookies.get(cookie)
            statuses.append(str(response.status_code))
            if response.status_code < 400 and value:
                self._signed_in_at = time.monotonic()
                # Airflow 3's cookie is a token as others are, and 2's a session of the web pages.
                is_token = cookie == "_token"
                return (
                    build_bearer(value) if is_token else Credential(("Cookie", f"session={value}"))
                )
        said = f"the login at {self._transport.url} gave no session ({' and '.join(statuses)})"
        raise NotSignedInError(said)

    def _is_refusal(self, response: requests.Response) -> bool:
        """A session that ended is 401, 403 or a way to the login page; right after a login, a 403
        is a missing permission."""
        if super()._is_refusal(response):
            return True
        is_young = time.monotonic() - self._signed_in_at < _YOUNG_S
        if response.status_code == 403 or response.is_redirect:
            return not is_young
        return False

    def _fetch_login_token(self) -> str:
        import boto3  # the extra: only who signs in there needs it, and pays for its import
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        config = Config(connect_timeout=_AWS_TIMEOUT_S, read_timeout=_AWS_TIMEOUT_S)
        name = self._environment
        try:
            aws = boto3.Session(region_name=self._region, profile_name=self._profile)
            answer = aws.client("mwaa", config=config).create_web_login_token(Name=name)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "no code")
            said = f"AWS refused CreateWebLoginToken for the MWAA environment {name} ({code})"
            raise NotSignedInError(said) from error
        except BotoCoreError as error:
            said = f"AWS was not asked for the MWAA environment {name} ({type(error).__name__})"
            raise NotSignedInError(said) from error
        host = answer["WebServerHostname"]
        # The token must not go to a host that is not the environment's own.
        if host != urlsplit(self._transport.url).hostname:
            said = f"the MWAA environment {name} is at {host}, and `url` is {self._transport.url}"
            raise NotSignedInError(said)
        return answer["WebToken"]


class ComposerAuth(RenewableAuth):
    """Cloud Composer: the access token of a Google account, renewed before it ends.

    Args:
        credentials_file: A service account's key; None for the application default credentials.
    """

    def __init__(self, credentials_file: str | None) -> None:
        super().__init__()
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
            # Of Google's own words only what a refusal is called: the rest may quote a key.
            said = str(error.args[0]) if isinstance(error, RefreshError) else type(error).__name__
            source = self._file or "the application default credentials"
            said = f"Google gave no access token for {source} ({' '.join(said.split())[:200]})"
            raise NotSignedInError(said) from error
        due_at = None
        if self._google.expiry is not None:  # UTC, though it does not say so
            expires = self._google.expiry.replace(tzinfo=timezone.utc)
            life_s = (expires - datetime.now(timezone.utc)).total_seconds()
            due_at = time.monotonic() + life_s * 0.9
        return Credential(("Authorization", f"Bearer {self._google.token}"), due_at)

    def _load(self) -> Any:
        if self._file is None:
            from google.auth import default

            return default(scopes=[_GOOGLE_SCOPE])[0]
        from google.oauth2.service_account import Credentials

        return Credentials.from_service_account_file(self._file, scopes=[_GOOGLE_SCOPE])
