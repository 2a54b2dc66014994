"""Declarations of connections: parsing, and the JSON schema for editors."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.declaration.fields import render_templates

BASE: dict[str, Any] = {"name": "sales", "url": "https://sales.example.com"}
SIGN_INS: list[dict[str, Any]] = [
    {"type": "basic", "username": "me", "password": "s3cret"},
    {"type": "password", "username": "me", "password": "s3cret"},
    {"type": "token", "token": "s3cret"},
    {"type": "token", "token_file": "/run/secrets/token"},
    {"type": "token", "token_command": ["vault", "read", "-field=token", "secret/airflow"]},
    {"type": "mwaa", "environment": "sales"},
    {"type": "mwaa", "environment": "sales", "region": "eu-west-1", "profile": "data"},
    {"type": "composer"},
    {"type": "composer", "credentials_file": "/run/secrets/key.json"},
    {"type": "none"},
]
VALIDATOR = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())


@pytest.mark.parametrize("auth", SIGN_INS, ids=lambda auth: "-".join(auth))
def test_every_sign_in_can_be_declared_and_its_repr_has_no_secret(auth: dict[str, Any]) -> None:
    declared = InstanceDeclaration.model_validate({**BASE, "auth": auth})
    assert declared.auth.type == auth["type"]
    assert "s3cret" not in repr(declared)
    assert list(VALIDATOR.iter_errors({**BASE, "auth": auth})) == []


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"type": "token"}, "exactly one of token, token_file and token_command"),
        ({"type": "token", "token": "a", "token_file": "b"}, "exactly one of"),
        ({"type": "token", "token_command": []}, "at least 1 item"),
        ({"type": "token", "tokn": "s3cret"}, "unknown key 'tokn'; did you mean 'token'?"),
        ({"type": "mwaa"}, "Field required"),
        ({"type": "kerberos"}, "'basic', 'password', 'token', 'mwaa', 'composer', 'none'"),
    ],
)
def test_an_invalid_sign_in_is_refused_with_a_remedy_and_without_a_secret(
    auth: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        InstanceDeclaration.model_validate({**BASE, "auth": auth})
    assert message in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("airflow.example.com", "write a web address"),
        ("ftp://airflow.example.com", "write a web address"),
        ("https://me:s3cret@airflow.example.com", "belong in `auth`"),
        ("https://me:s3cret/x@airflow.example.com", "belong in `auth`"),
        ("https://airflow.example.com:s3cret", "write a web address"),
        ("https://airflow.example.com/home?tags=a", "end it with the path"),
        ("https://airflow.example.com:port", "write a web address"),
        ("https://[::1", "write a web address"),
        ("https://airflow..example.com", "write a web address"),
        (f"https://{'a' * 64}.example.com", "write a web address"),
        ("https://airflow.example.com/a b", "remove white space and control characters"),
        ("https://airflow.exa\tmple.com", "remove white space and control characters"),
        ("https://\u202eairflow.example.com", "remove white space and control characters"),
    ],
)
def test_an_invalid_url_is_refused_without_quoting_it(url: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        InstanceDeclaration.model_validate({**BASE, "url": url, "auth": {"type": "none"}})
    assert message in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "https://[::1]:8080/sales",
        "https://süd.example.com",
        "https://airflow_web.internal.",
        f"https://{'a' * 63}.example.com",
    ],
)
def test_a_web_address_is_taken_without_white_space_around_it(url: str) -> None:
    raw = {**BASE, "url": f" {url}\t\n", "auth": {"type": "none"}}
    assert InstanceDeclaration.model_validate(raw).url == url


@pytest.mark.parametrize(
    "more",
    [
        {"http": {"max_connections": 0}},
        {"http": {"max_requests_per_minute": 1.5}},
        {"http": {"max_requests_per_minute": 10**400}},
        {"http": {"read_timeout": "never"}},
        {"http": {"retries": 5}},
        {"tls": {"verify": "perhaps"}},
        {"tls": {"client_key": "/key.pem"}},
    ],
    ids=str,
)
def test_an_invalid_connection_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(more))):
        InstanceDeclaration.model_validate({**BASE, **more, "auth": {"type": "none"}})


def test_templates_may_replace_numbers_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALES_VERIFY", "false")
    monkeypatch.setenv("SALES_CONNECTIONS", "3")
    raw = {
        **BASE,
        "auth": {"type": "none"},
        "tls": {"verify": "{{ env.SALES_VERIFY }}"},
        "http": {"max_connections": "{{ env.SALES_CONNECTIONS }}", "read_timeout": "1m"},
    }
    assert list(VALIDATOR.iter_errors(raw)) == []
    env = {"SALES_VERIFY": "false", "SALES_CONNECTIONS": "3"}
    declared = parse_declaration(render_templates(raw, {"env": env}, "defs.yaml"), "defs.yaml")
    assert (declared.tls.verify, declared.http.max_connections) == (False, 3)
    assert declared.http.read_timeout == 60
