"""Secrets in a run's conf, hidden as Airflow hides them in its own UI."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

# A key that holds one of these words has a secret for a value (`DEFAULT_SENSITIVE_FIELDS` of
# Airflow 2.11's and 3.3's secrets masker, whichever has more).
_SENSITIVE = (
    "access_key",
    "access_token",
    "api_key",
    "apikey",
    "auth_header",
    "authorization",
    "bearer",
    "connection_string",
    "dsn",
    "keyfile_dict",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "proxies",
    "proxy",
    "secret",
    "service_account",
    "service_key",
    "token",
    "webhook_url",
)

_MASK = "***"

# 2.11 looks no deeper than 5, and shows what is there; we show nothing that we did not look at.
_DEPTH = 8


def redact(value: Any, *, is_secret: bool = False, depth: int = _DEPTH) -> Any:
    """The same value, with what stands under a sensitive key replaced by `***`.

    Args:
        is_secret: It stands under such a key itself.
    """
    if isinstance(value, Mapping | list) and depth == 0:
        return _MASK
    if isinstance(value, Mapping):
        return {
            key: redact(inner, is_secret=is_secret or _is_sensitive(key), depth=depth - 1)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [redact(inner, is_secret=is_secret, depth=depth - 1) for inner in value]
    return _MASK if is_secret and value is not None else value


def find_secrets(value: Any, *, is_secret: bool = False) -> set[str]:
    """The texts that stand under sensitive keys, however deep."""
    if isinstance(value, Mapping):
        inner = ((is_secret or _is_sensitive(key), one) for key, one in value.items())
    elif isinstance(value, list):
        inner = ((is_secret, one) for one in value)
    else:
        return {str(value)} if is_secret and value not in (None, "") else set()
    return {text for secret, one in inner for text in find_secrets(one, is_secret=secret)}


def redact_text(text: str, secrets: Collection[str]) -> str:
    """A text of somebody else's without these secrets, in whatever form it quotes them."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(_build_pattern(secret), _MASK, text)
    return text


def _build_pattern(secret: str) -> str:
    """Matches a text however often it was quoted by Python or as JSON, and whatever became of its
    white space."""
    return "".join(
        r"(?:\s|\\+[nrt])+" if part.isspace() else "".join(map(_build_letter, part))
        for part in re.split(r"(\s+)", secret)
    )


def _build_letter(letter: str) -> str:
    if letter == "\\":
        return r"\\+"
    if letter.isascii():
        return r"\\*" + re.escape(letter)
    codes = json.dumps(letter)[1:-1].replace("\\", r"\\+")
    return f"(?:{re.escape(letter)}|{codes}|\\\\+(?:x|u|U)0*{ord(letter):x})"


def _is_sensitive(key: Any) -> bool:
    name = re.sub(r"\W+", "_", str(key).strip().lower())  # as 3.3: "api-key" is one too
    return any(word in name for word in _SENSITIVE)
