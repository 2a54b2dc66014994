"""Masks the secrets of confs, and removes characters that act on a terminal or a page.

A value of a conf is secret if its key, or a key above it, has a sensitive name. This is the rule of
Airflow's own UI.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

# The words of sensitive keys: `DEFAULT_SENSITIVE_FIELDS` of Airflow 2.11 and of 3.3.
_SENSITIVE = re.compile(
    "access_key|access_token|api_key|apikey|auth_header|authorization|bearer|connection_string|dsn|"
    "keyfile_dict|passphrase|passwd|password|private_key|proxies|proxy|secret|service_account|"
    "service_key|token|webhook_url"
)

# Escape sequences of a terminal: CSI (colors, cursor), strings (titles, links), and all others.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]"
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control characters, and those that reverse or hide what stands beside them, or are invisible.
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 can't encode

_MASK = "***"
_MAX_DEPTH = 8  # levels; deeper values are masked here, while Airflow 2.11 shows those below 5
_MIN_LENGTH = 4  # shorter strings and numbers occur in any text by chance
_MIN_DIGITS = 6
# The characters that JSON, a Python repr and HTML do not escape.
_UNESCAPED = set(string.ascii_letters + string.digits + string.punctuation) - set("\"'\\&<>")
_OMITTED = "omitted, because it may quote a secret of the conf; see Airflow's log"


def clean_text(text: str) -> str:
    """Return a text without escape sequences, control characters other than line feed and tab, and
    characters that are invisible or change the direction of writing.

    Every line end becomes a line feed. Half of a surrogate pair, which JSON can hold, becomes
    "\ufffd".
    """
    if text.isprintable():
        return text
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text))
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def redact(value: Any, *, is_secret: bool = False, depth: int = _MAX_DEPTH) -> Any:
    """Return the value with `***` for every text, number and boolean under a sensitive key. All
    other texts are cleaned by `clean_text`.

    Args:
        is_secret: Whether the value itself is under a sensitive key.
        depth: The number of levels to search. Deeper objects and lists become `***`.
    """
    if isinstance(value, Mapping | list) and depth == 0:
        return _MASK
    if isinstance(value, Mapping):
        return {
            clean_text(str(key)): redact(
                item, is_secret=is_secret or _is_sensitive(key), depth=depth - 1
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [redact(item, is_secret=is_secret, depth=depth - 1) for item in value]
    if is_secret and value is not None:
        return _MASK
    return clean_text(value) if isinstance(value, str) else value


def has_secrets(value: Any, *, is_secret: bool = False) -> bool:
    """Return whether a JSON value has more than None or "" under a sensitive key, at any depth."""
    if isinstance(value, Mapping):
        return any(
            has_secrets(item, is_secret=is_secret or _is_sensitive(key))
            for key, item in value.items()
        )
    if isinstance(value, list):
        return any(has_secrets(item, is_secret=is_secret) for item in value)
    return is_secret and value not in (None, "")


def redact_text(text: str, conf: Any) -> str:
    """Return a message about a conf with `***` for each secret of the conf.

    Quoting may change a secret that contains white space, quotes, backslashes, `&<>` or non-ASCII
    characters. The whole text is omitted if a part of such a secret is left in it, or if no part is
    long enough to search for.

    Strings of fewer than 4 characters and numbers of fewer than 6 digits are not replaced, because
    they may match a word or a date. A secret that the message truncates is not found.

    Args:
        text: A message of Airflow, or of a user's function.
        conf: The conf, or the body of a request that holds one.
    """
    if not text:
        return text
    for secret in sorted(_find_secrets(conf), key=len, reverse=True):
        text = text.replace(secret, _MASK)
        parts = "".join(char if char in _UNESCAPED else " " for char in secret).split()
        parts = [part for part in parts if len(part) >= _MIN_LENGTH]
        if not parts or any(part in text for part in parts):
            return _OMITTED
    return text


def _find_secrets(value: Any, *, is_secret: bool = False) -> Iterator[str]:
    """Yield the strings and numbers under sensitive keys that are long enough to search for."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _find_secrets(item, is_secret=is_secret or _is_sensitive(key))
    elif isinstance(value, list):
        for item in value:
            yield from _find_secrets(item, is_secret=is_secret)
    elif is_secret and isinstance(value, str) and len(value) >= _MIN_LENGTH:
        yield value
    elif is_secret and isinstance(value, int | float) and len(str(value)) >= _MIN_DIGITS:
        yield str(value)


def _is_sensitive(key: Any) -> bool:
    name = re.sub(r"\W+", "_", str(key).strip().lower())  # like 3.3: "api-key" is sensitive too
    return _SENSITIVE.search(name) is not None
