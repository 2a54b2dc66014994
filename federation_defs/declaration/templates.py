"""Render the templates in a declaration, as text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from pydantic import SecretStr

from federation_defs.errors import DeclarationError

# `env.NAME` has no default; `env("NAME", default)` has one.
_ENV_ATTRIBUTE = re.compile(r"\benv\.([A-Za-z_]\w*)")
_ENV = re.compile(r"\benv(?:\.|\(\s*['\"])([A-Za-z_]\w*)")


def render_templates(raw: Mapping[str, Any], scope: Mapping[str, Any], source: str) -> Any:
    """Return the declaration with every template rendered as text.

    (Dagster's own rendering evaluates the result as a Python literal: the password `1_000` would
    become the number 1000.)

    Args:
        raw: The declared keys and values.
        scope: What templates may use: `env` and the component's template variables.
        source: The declaring file, for messages.

    Raises:
        DeclarationError: Environment variables are not set (all are named), or a template fails.
    """
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701 - this is not HTML
    problems: list[str] = []

    def render(value: Any, path: tuple[str, ...] = ()) -> Any:
        if isinstance(value, Mapping):
            return {key: render(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [render(item, (*path, str(index))) for index, item in enumerate(value)]
        text = _reveal(value)
        if not is_template(text):
            return text
        where = f"{source}: {'.'.join(path)}"
        if unset := [name for name in _ENV_ATTRIBUTE.findall(text) if name not in os.environ]:
            problems.append(f"{where}: set the environment variable {' and '.join(unset)}.")
            return text
        try:
            return jinja.from_string(text).render(**scope)
        except Exception as error:  # a template may call anything
            problem = f"{where}: the template fails ({type(error).__name__}: {error})."
            raise DeclarationError([problem]) from error

    rendered = render(raw)
    if problems:
        raise DeclarationError(problems)
    return rendered


def find_variables(raw: Any) -> list[str]:
    """Return the environment variables that the templates in a value use, in order."""
    if isinstance(raw, Mapping):
        return find_variables(list(raw.values()))
    if isinstance(raw, list):
        return [name for value in raw for name in find_variables(value)]
    text = _reveal(raw)
    return _ENV.findall(text) if is_template(text) else []


def is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def _reveal(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
