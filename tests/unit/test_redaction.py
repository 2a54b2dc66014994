"""Secrets in a conf: hidden where Airflow 2.11 or 3.3 would hide them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from federation_defs.redaction import redact, redact_text

# What both versions' own maskers look for (`DEFAULT_SENSITIVE_FIELDS`); the last ones only 3.3's.
WORDS = [
    "access_token",
    "api_key",
    "apikey",
    "authorization",
    "keyfile_dict",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "proxies",
    "proxy",
    "secret",
    "service_account",
    "token",
    "access_key",
    "auth_header",
    "bearer",
    "connection_string",
    "dsn",
    "service_key",
    "webhook_url",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_value_is_hidden_under_a_key_that_airflow_takes_for_a_secrets(word: str) -> None:
    assert redact({word: "x", "rows": 5}) == {word: "***", "rows": 5}


@pytest.mark.parametrize(
    "key", ["DB_PASSWORD", "myApiKey", " Token ", "secrets", "x_access_token_y", "http_proxy_2"]
)
def test_a_key_may_hold_more_than_the_word_in_letters_of_any_case(key: str) -> None:
    assert redact({key: "x"}) == {key: "***"}


@pytest.mark.parametrize("key", ["api-key", "Private Key", "access.key", "service-account"])
def test_a_word_of_two_may_be_joined_by_any_sign(key: str) -> None:
    """3.3 takes `\\W+` for an underscore; 2.11 does not."""
    assert redact({key: "x"}) == {key: "***"}


@pytest.mark.parametrize("key", ["pass", "key", "user", "tok_en", "word", "prox"])
def test_a_key_that_holds_none_of_the_words_shows_its_value(key: str) -> None:
    assert redact({key: "x"}) == {key: "x"}


def test_what_is_nested_is_looked_through() -> None:
    conf = {"db": {"host": "h", "login": {"user": "u", "password": "p"}}, "n": [{"token": "t"}, 1]}
    assert redact(conf) == {
        "db": {"host": "h", "login": {"user": "u", "password": "***"}},
        "n": [{"token": "***"}, 1],
    }


def test_all_that_stands_below_a_secret_key_is_hidden_and_its_shape_kept() -> None:
    conf = {"secrets": {"a": "x", "list": ["y", {"b": "z"}, ["w"]]}, "passwords": ["p", "q"]}
    assert redact(conf) == {
        "secrets": {"a": "***", "list": ["***", {"b": "***"}, ["***"]]},
        "passwords": ["***", "***"],
    }


@pytest.mark.parametrize("value", [1234, 0, 1.5, True, False, "x", "***"])
def test_a_secret_may_be_a_number(value: Any) -> None:
    assert redact({"password": value}) == {"password": "***"}


@pytest.mark.parametrize("value", [None, [], {}])
def test_that_there_is_no_secret_shows(value: Any) -> None:
    assert redact({"password": value}) == {"password": value}


@pytest.mark.parametrize("value", ["token", 1, None, [1, "secret"], "password=x"])
def test_what_stands_under_no_secret_key_is_left_as_it_is(value: Any) -> None:
    assert redact({"rows": value}) == {"rows": value}


def test_a_list_is_looked_through_as_well() -> None:
    assert redact([{"token": "x"}, "y"]) == [{"token": "***"}, "y"]


def test_what_is_given_is_not_changed() -> None:
    conf: dict[str, Any] = {"a": {"token": "x"}}
    redact(conf)
    assert conf == {"a": {"token": "x"}}


def nest(levels: int, innermost: Any, *, in_lists: bool = False) -> Any:
    for _ in range(levels):
        innermost = [innermost] if in_lists else {"a": innermost}
    return innermost


@pytest.mark.parametrize("in_lists", [False, True])
def test_what_is_too_deep_to_look_through_does_not_show(*, in_lists: bool) -> None:
    masked = str(redact({"conf": nest(30, {"token": "s3cret", "rows": "many"}, in_lists=in_lists)}))
    assert "s3cret" not in masked
    assert "many" not in masked
    assert "***" in masked


def test_as_deep_as_airflow_looks_all_shows_but_secrets() -> None:
    conf = nest(5, {"token": "s3cret", "rows": "many"})
    assert redact(conf) == nest(5, {"token": "***", "rows": "many"})


def test_a_conf_of_any_depth_is_masked() -> None:
    assert "s3cret" not in str(redact(nest(900, "s3cret")))


ODD = '-----BEGIN KEY-----\nit\'s "clé" C:\\temp 🔑\n-----END'


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("no such user s3cret-word.", "no such user ***."),
        ("two\\nlines in 'two\\nlines'", "*** in '***'"),
        ("two lines", "***"),
        ("s3cret-word-and-more", "***"),
        ("nothing of it", "nothing of it"),
        (repr((json.dumps({"key": ODD}),)), """('{"key": "***"}',)"""),
        (json.dumps(json.dumps({"key": ODD})), '"{\\"key\\": \\"***\\"}"'),
        (repr({"key": ODD}), "{'key': '***'}"),
        (" ".join(ODD.split()), "***"),
    ],
)
def test_secrets_in_somebody_elses_words_are_hidden_in_whatever_form(
    text: str, hidden: str
) -> None:
    assert redact_text(text, {"s3cret-word", "s3cret-word-and-more", "two\nlines", ODD}) == hidden
