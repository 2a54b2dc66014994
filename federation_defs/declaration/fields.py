"""The base class and the field types of all declarations, and the templates in their texts."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, TypeVar
from zoneinfo import available_timezones

import jinja2
import jinja2.meta
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from federation_defs.errors import DeclarationError

_DURATION_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*$"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 3650 * 86400  # dates are computed with it
_ALWAYS_RENDERED = ("environment", "dags")
# `env.NAME` has no default; `env("NAME", default)` has one.
_ENV_ATTRIBUTE = re.compile(r"\benv\.([A-Za-z_]\w*)")
_ENV = re.compile(r"\benv(?:\.|\(\s*['\"])([A-Za-z_]\w*)")

T = TypeVar("T")


@dataclass(frozen=True)
class _OrText:
    """Adds text that matches a pattern to what a field's JSON schema allows."""

    pattern: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": self.pattern}]}


def _keep_template(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return value if is_template(value) else validate(value)


def _parse_duration(value: Any, *, shortest_s: float) -> Any:
    seconds = value
    if isinstance(value, str | bool):
        match = re.match(_DURATION_PATTERN, str(value))
        if match is None:
            raise ValueError("write a number and a unit: 30s, 5m, 24h, 7d")
        seconds = float(match[1]) * _UNITS_S[match[2] or "s"]
    if isinstance(seconds, int | float) and not shortest_s <= seconds <= _LONGEST_S:
        raise ValueError(f"{value} is out of range: write a time from {shortest_s}s to 3650d")
    return seconds


# Dagster's own way to allow templates makes every field a union with `str`, which turns a typo two
# levels down into "not valid under any of the given schemas".
Templated = Annotated[T, WrapValidator(_keep_template)]
_OrTemplate = Annotated[Templated[T], _OrText(r"\{\{")]

# A time in seconds, or a text with a unit. The bounds in `Field` are for the JSON schema.
Duration = _OrTemplate[
    Annotated[
        float,
        Field(ge=0.001, le=_LONGEST_S),
        BeforeValidator(partial(_parse_duration, shortest_s=0.001)),
        _OrText(_DURATION_PATTERN),
    ]
]
Interval = _OrTemplate[
    Annotated[
        float,
        Field(ge=1, le=_LONGEST_S),
        BeforeValidator(partial(_parse_duration, shortest_s=1)),
        _OrText(_DURATION_PATTERN),
    ]
]
Count = _OrTemplate[Annotated[int, Field(gt=0, le=1_000_000)]]
Switch = _OrTemplate[bool]


class Declaration(BaseModel):
    """The base of all declarations. They are immutable, and unknown keys are errors."""

    # An input in an error would show passwords.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        known = cls.model_fields
        unknown = [key for key in value if key not in known] if isinstance(value, Mapping) else []
        if unknown:
            hints = [f"unknown key '{key}'{suggest(str(key), known)}" for key in unknown]
            raise ValueError("; ".join(hints))
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # For "anyOf", a validator reports only that nothing fits, not which key inside is wrong.
        written = handler(schema)
        for key in handler.resolve_ref_schema(written)["properties"].values():
            match key.get("anyOf"):
                case [{"$ref": _} as declaration, {"type": "null"}]:
                    del key["anyOf"]
                    key |= {"if": {"not": {"type": "null"}}, "then": declaration}
        return written


def check_timezone(name: str) -> str:
    """Return the name of a time zone, or refuse it."""
    if name not in find_timezones():
        raise ValueError(f"no such time zone{suggest(name, find_timezones())}")
    return name


find_timezones = cache(available_timezones)  # a call reads the disk for 4 ms


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean '…'?" with the most similar known name; empty if none is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{similar[0]}'?" if similar else ""


# Whether templates whose variables are not set are kept as text. In `environment` and `dags`, they
# are errors nevertheless.
KEEP_TEMPLATES: ContextVar[bool] = ContextVar("KEEP_TEMPLATES", default=False)


def render_templates(raw: Mapping[str, Any], scope: Mapping[str, Any], source: str) -> Any:
    """Return the declaration with every template rendered as text.

    (Dagster's own rendering evaluates the result as a Python literal: the password `1_000` would
    become the number 1000.)

    Args:
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
        unset = find_unset_variables(text)
        if unset and KEEP_TEMPLATES.get() and path[0] not in _ALWAYS_RENDERED:
            return text
        if unset:
            problems.append(f"{where}: set the environment variable {' and '.join(unset)}.")
            return text
        try:
            return jinja.from_string(text).render(**scope)
        except Exception as error:  # noqa: BLE001 - a template may call anything
            reason = type(error).__name__
            if isinstance(error, jinja2.UndefinedError):
                used = jinja2.meta.find_undeclared_variables(jinja.parse(text))
                unknown = sorted(used - {*scope, *jinja.globals})
                reason += "".join(f"; unknown name '{name}'" for name in unknown)
            # Without the error's message, which may quote a secret.
            raise DeclarationError([f"{where}: the template fails ({reason})."]) from None

    rendered = render(raw)
    if problems:
        raise DeclarationError(problems)
    return rendered


def find_unset_variables(raw: Any) -> list[str]:
    """Return the environment variables that templates use as `env.NAME` and that are not set, in
    order."""
    return [name for name in _find_in_templates(_ENV_ATTRIBUTE, raw) if name not in os.environ]


def find_variables(raw: Any) -> list[str]:
    """Return the environment variables that the templates in a value use, in order."""
    return _find_in_templates(_ENV, raw)


def _find_in_templates(pattern: re.Pattern[str], raw: Any) -> list[str]:
    if isinstance(raw, Mapping | list):
        values = raw.values() if isinstance(raw, Mapping) else raw
        return [name for value in values for name in _find_in_templates(pattern, value)]
    text = _reveal(raw)
    return pattern.findall(text) if is_template(text) else []


def is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def _reveal(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
