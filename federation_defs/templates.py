"""Templates in a declaration, rendered as text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from pydantic import SecretStr

from federation_defs.errors import DeclarationError


def render_templates(raw: Mapping[str, Any], scope: Mapping[str, Any], source: str) -> Any:
    """The declaration with every template rendered, as text that its types then read.

    (Dagster's own rendering reads the result as a Python literal: the password `1_000` would
    become the number 1000, and `None` nothing.)

    Args:
        raw: Keys and values as declared.
        scope: What templates may use: `env` and the component's template variables.
        source: The declaring file, for messages.

    Raises:
        DeclarationError: Templates that can't be rendered, all of them.
    """
    problems: list[str] = []
    rendered = _render(raw, jinja2.Environment(undefined=jinja2.StrictUndefined), scope, (), problems)
    if problems:
        raise DeclarationError([f"{source}: {problem}" for problem in problems])
    return rendered


def find_variables(raw: Any) -> list[str]:
    """The environment variables that the templates in a value read, in order of appearance."""
    if isinstance(raw, Mapping):
        return [name for value in raw.values() for name in find_variables(value)]
    text = _text(raw)
    if not isinstance(text, str) or "{{" not in text:
        return []
    return re.findall(r"\benv(?:\.|\(\s*['\"])([A-Za-z_][A-Za-z0-9_]*)", text)


def _render(
    value: Any,
    jinja: jinja2.Environment,
    scope: Mapping[str, Any],
    path: tuple[str, ...],
    problems: list[str],
) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _render(inner, jinja, scope, (*path, str(key)), problems)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _render(inner, jinja, scope, (*path, str(index)), problems)
            for index, inner in enumerate(value)
        ]
    text = _text(value)
    if not isinstance(text, str) or "{{" not in text:
        return text
    unset = [name for name in re.findall(r"\benv\.(\w+)", text) if name not in os.environ]
    if unset:
        names = " and ".join(unset)
        problems.append(f"{'.'.join(path)}: set the environment variable {names}.")
        return text
    try:
        return jinja.from_string(text).render(**scope)
    except Exception as error:  # whatever a template's own functions raise
        problems.append(f"{'.'.join(path)}: the template fails ({type(error).__name__}: {error}).")
        return text


def _text(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
