"""Templates in a declaration, rendered as text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from pydantic import SecretStr

from federation_defs.errors import DeclarationError

# `env.NAME` is nothing when it is not set; `env("NAME", default)` has its own way out.
_ENV_ATTRIBUTE = re.compile(r"\benv\.([A-Za-z_]\w*)")

_ENV = re.compile(r"\benv(?:\.|\(\s*['\"])([A-Za-z_]\w*)")


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
    renderer = _Renderer(scope, source)
    rendered = renderer.render(raw, ())
    if renderer.problems:
        raise DeclarationError(renderer.problems)
    return rendered


def find_variables(raw: Any) -> list[str]:
    """The environment variables that the templates in a value read, in order of appearance."""
    if isinstance(raw, Mapping):
        return [name for value in raw.values() for name in find_variables(value)]
    text = _text(raw)
    return _ENV.findall(text) if is_template(text) else []


def is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


class _Renderer:
    """One walk through a declaration; variables that are missing are collected in `problems`."""

    def __init__(self, scope: Mapping[str, Any], source: str) -> None:
        self.problems: list[str] = []
        self._scope = scope
        self._source = source
        # What comes out is no HTML.
        self._jinja = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701

    def render(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return {key: self.render(inner, (*path, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.render(inner, (*path, str(index))) for index, inner in enumerate(value)]
        text = _text(value)
        return self._render_text(text, ".".join(path)) if is_template(text) else text

    def _render_text(self, text: str, key: str) -> str:
        unset = [name for name in _ENV_ATTRIBUTE.findall(text) if name not in os.environ]
        if unset:
            names = " and ".join(unset)
            self.problems.append(f"{self._source}: {key}: set the environment variable {names}.")
            return text
        try:
            return self._jinja.from_string(text).render(**self._scope)
        except Exception as error:  # a template may call anything
            said = f"the template fails ({type(error).__name__}: {error})."
            raise DeclarationError([f"{self._source}: {key}: {said}"]) from error


def _text(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
