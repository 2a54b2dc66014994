"""Secrets in a conf are redacted where Airflow 2.11 or 3.3 would redact them."""

from __future__ import annotations

import html
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation_defs.errors import DeclarationError, UnreachableError
from federation_defs.redaction import clean_text, redact, redact_text

# `DEFAULT_SENSITIVE_FIELDS` of both versions; the last seven are only in 3.3.
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
def test_a_value_is_masked_under_each_of_airflows_sensitive_keys(word: str) -> None:
    assert redact({word: "x", "rows": 5}) == {word: "***", "rows": 5}


@pytest.mark.parametrize(
    "key", ["DB_PASSWORD", "myApiKey", " Token ", "secrets", "x_access_token_y", "http_proxy_2"]
)
def test_a_sensitive_key_may_contain_more_than_the_word_in_any_case(key: str) -> None:
    assert redact({key: "x"}) == {key: "***"}


@pytest.mark.parametrize("key", ["api-key", "Private Key", "access.key", "service-account"])
def test_the_parts_of_a_sensitive_word_may_be_joined_by_any_sign(key: str) -> None:
    """Airflow 3.3 treats `\\W+` as an underscore; 2.11 does not."""
    assert redact({key: "x"}) == {key: "***"}


@pytest.mark.parametrize("key", ["pass", "key", "user", "tok_en", "word", "prox"])
def test_a_value_under_another_key_is_not_masked(key: str) -> None:
    assert redact({key: "x"}) == {key: "x"}


def test_nested_values_are_masked() -> None:
    conf = {"db": {"host": "h", "login": {"user": "u", "password": "p"}}, "n": [{"token": "t"}, 1]}
    assert redact(conf) == {
        "db": {"host": "h", "login": {"user": "u", "password": "***"}},
        "n": [{"token": "***"}, 1],
    }


def test_everything_below_a_sensitive_key_is_masked_and_keeps_its_shape() -> None:
    conf = {"secrets": {"a": "x", "list": ["y", {"b": "z"}, ["w"]]}, "passwords": ["p", "q"]}
    assert redact(conf) == {
        "secrets": {"a": "***", "list": ["***", {"b": "***"}, ["***"]]},
        "passwords": ["***", "***"],
    }


@pytest.mark.parametrize("value", [1234, 0, 1.5, True, False, "x", "***"])
def test_a_secret_of_any_type_is_masked(value: Any) -> None:
    assert redact({"password": value}) == {"password": "***"}


@pytest.mark.parametrize("value", [None, [], {}])
def test_an_empty_value_is_not_masked(value: Any) -> None:
    assert redact({"password": value}) == {"password": value}


@pytest.mark.parametrize("value", ["token", 1, None, [1, "secret"], "password=x"])
def test_values_under_no_sensitive_key_are_not_changed(value: Any) -> None:
    assert redact({"rows": value}) == {"rows": value}


def test_a_list_is_redacted_too() -> None:
    assert redact([{"token": "x"}, "y"]) == [{"token": "***"}, "y"]


def test_the_given_conf_is_not_changed() -> None:
    conf: dict[str, Any] = {"a": {"token": "x"}}
    redact(conf)
    assert conf == {"a": {"token": "x"}}


def nest(levels: int, innermost: Any, *, in_lists: bool = False) -> Any:
    for _ in range(levels):
        innermost = [innermost] if in_lists else {"a": innermost}
    return innermost


@pytest.mark.parametrize("in_lists", [False, True])
def test_values_that_are_nested_too_deep_are_masked(*, in_lists: bool) -> None:
    masked = str(redact({"conf": nest(30, {"token": "s3cret", "rows": "many"}, in_lists=in_lists)}))
    assert "s3cret" not in masked
    assert "many" not in masked
    assert "***" in masked


def test_as_deep_as_airflow_searches_only_secrets_are_masked() -> None:
    conf = nest(5, {"token": "s3cret", "rows": "many"})
    assert redact(conf) == nest(5, {"token": "***", "rows": "many"})


def test_a_conf_of_any_depth_is_redacted() -> None:
    assert "s3cret" not in str(redact(nest(900, "s3cret")))


CONF = {
    "rows": "s3cret",
    "token": "s3cret-word",
    "tokens": ["s3cret-word-and-more", 20260101, "abc", True, None],
    "max_tokens": 5,
    "login": {"password": "pa'ss=word"},
}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("no such user s3cret-word.", "no such user ***."),
        ("s3cret-word-and-more", "***"),
        (json.dumps(json.dumps(["s3cret-word"])), '"[\\"***\\"]"'),
        ("{'token': 's3cret-word', 'rows': 's3cret'}", "{'token': '***', 'rows': 's3cret'}"),
        ("nothing secret", "nothing secret"),
        ("on 2026-01-05 (20260101) abc True None", "on 2026-01-05 (***) abc True None"),
    ],
)
def test_a_secret_string_in_a_text_is_replaced(text: str, redacted: str) -> None:
    assert redact_text(text, CONF) == redacted


ODD_SECRETS = [
    "two\nlines",
    "white  space",
    "C:\\temp",
    "it's-a-word",
    'say "word"',
    "clé-1234",
    "postgresql://me:a&b@host/db",
    '-----BEGIN KEY-----\nit\'s "clé" C:\\temp 🔑\n-----END',
]


@pytest.mark.parametrize("secret", ODD_SECRETS)
def test_a_text_that_quotes_a_secret_in_another_form_is_omitted(secret: str) -> None:
    quoted = [
        repr(secret),
        json.dumps(secret),
        json.dumps(json.dumps({"key": secret})),
        repr((json.dumps({"key": secret}),)),
        html.escape(secret),
        " ".join(secret.split()),
    ]
    for text in [*quoted, secret]:
        redacted = redact_text(text, {"password": secret})
        if secret in text:
            assert redacted == text.replace(secret, "***")
        else:
            assert redacted.startswith("omitted, because")


def test_a_text_that_does_not_quote_a_secret_is_kept() -> None:
    conf = {"password": "two\nlines", "private_key": ODD_SECRETS[-1]}
    text = "Invalid input for param day: None is not of type 'string'"
    assert redact_text(text, conf) == text


def test_a_text_is_omitted_if_a_secret_could_not_be_found_in_it() -> None:
    assert redact_text("any text", {"password": "ключ"}).startswith("omitted, because")


def test_long_numbers_are_masked_in_a_text_and_short_ones_are_not() -> None:
    conf = {"token": 987654321012, "max_tokens": 5}
    text = "token: 987654321012 is not of type 'string'; on 2025-05-05"
    assert redact_text(text, conf) == "token: *** is not of type 'string'; on 2025-05-05"


def test_an_empty_text_stays_empty() -> None:
    assert redact_text("", {"password": "pä€ß"}) == ""


BIDIRECTIONAL = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
# Any text of JSON, with more of what acts on a terminal than chance would give.
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters()),
        st.sampled_from(
            ["\x1b[31m", "\x1b]8;;http://x\x07", "\x1b", "[", "\x9b1m", "\r\n", "\u202e"]
        ),
    )
).map("".join)


@given(TEXTS)
def test_a_clean_text_has_no_character_that_acts(text: str) -> None:
    cleaned = clean_text(text)
    acting = [
        char
        for char in cleaned
        if (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t")
        or unicodedata.bidirectional(char) in BIDIRECTIONAL
    ]
    assert acting == []
    assert clean_text(cleaned) == cleaned
    cleaned.encode()


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_other_texts_are_kept_as_they_are(text: str) -> None:
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[1;31mfailed\x1b[0m", "failed"),
        ("\x9b31mfailed\x9bm", "failed"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;no end of it\nnext", "0;no end of it\nnext"),
        ("\x1b\x1b[0m[31m", "[31m"),
        ("10 %\r20 %\r\ndone", "10 %\n20 %\ndone"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("a\0b\x08c\td", "abc\td"),
        ("a\xadb\u180ec\ufff9d\ufffbe\U000e0001f\U000e007fg", "abcdefg"),
        ("half \ud83d of a duck", "half \ufffd of a duck"),
        ("größe 数 🦆 👩‍🔬", "größe 数 🦆 👩‍🔬"),
    ],
)
def test_escape_sequences_and_control_characters_are_removed(text: str, expected: str) -> None:
    assert clean_text(text) == expected


def test_a_conf_is_shown_without_control_characters() -> None:
    assert redact({"a\x1b[1mb": ["c\u202ed", 1]}) == {"ab": ["cd", 1]}


@given(TEXTS)
def test_no_error_text_has_a_character_that_acts(text: str) -> None:
    for error in (UnreachableError("sales", "http://x", text), DeclarationError([text])):
        assert clean_text(str(error)) == str(error)
    assert "\n" not in str(UnreachableError("sales", "http://x", text))
