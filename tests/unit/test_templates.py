from __future__ import annotations

import traceback
from typing import Any

import pytest
from dagster.components import ResolutionContext
from pydantic import SecretStr

from federation_defs.declaration.fields import find_variables, render_templates
from federation_defs.errors import DeclarationError

SCOPE = ResolutionContext.default().scope


def render(raw: dict[str, Any]) -> Any:
    return render_templates(raw, SCOPE, "defs/metrics/defs.yaml")


@pytest.mark.parametrize("password", ["1_000", "None", "0x10", "[1]", "pa ss", "{{ x }}", "é"])
def test_a_password_is_not_changed_whatever_it_looks_like(
    monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", password)
    raw = {"auth": {"password": SecretStr("{{ env.SOME_PASSWORD }}")}}
    assert render(raw) == {"auth": {"password": password}}


def test_templates_are_rendered_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_HOST", "h")
    raw = {"a": ["http://{{ env.SOME_HOST }}/x", 5], "b": {"c": "{{ env('UNSET_X', 'd') }}"}}
    assert render(raw) == {"a": ["http://h/x", 5], "b": {"c": "d"}}


def test_all_variables_that_are_not_set_are_named_with_file_and_key() -> None:
    with pytest.raises(DeclarationError) as refused:
        render({"url": "{{ env.UNSET_A }}", "auth": {"password": "{{ env.UNSET_B }}"}})
    assert refused.value.problems == (
        "defs/metrics/defs.yaml: url: set the environment variable UNSET_A.",
        "defs/metrics/defs.yaml: auth.password: set the environment variable UNSET_B.",
    )


def test_a_template_that_fails_is_named_with_file_and_key() -> None:
    with pytest.raises(DeclarationError, match=r"defs\.yaml: url: the template fails .*'nothing'"):
        render({"url": "{{ nothing.of_this }}"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ {}[env.SOME_TOKEN].x }}",
        "{{ [][env.SOME_TOKEN] + 1 }}",
        "{{ env.SOME_TOKEN | tojson(5, 6) }}",
        "{{ 'x'.encode(env.SOME_TOKEN) }}",
        "s3cret-word {{ s3cret-word s3cret-word }}",
        "{{ '' }}{% s3cret-word %}",
    ],
)
def test_a_template_that_fails_quotes_no_secret(
    monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cret-word")
    with pytest.raises(DeclarationError, match="the template fails") as refused:
        render({"auth": {"token": SecretStr(template)}})
    assert "s3cret-word" not in "".join(traceback.format_exception(refused.value))


def test_the_environment_variables_of_templates_are_found() -> None:
    raw = {"username": "{{ env.A_USER }}", "password": SecretStr("{{ env('A_PASSWORD') }}")}
    assert find_variables(raw) == ["A_USER", "A_PASSWORD"]
