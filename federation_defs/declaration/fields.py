"""The base class and the field types of all declarations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from federation_defs.declaration.templates import is_template

_DURATION_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*$"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

T = TypeVar("T")


class _OrText:
    """Allows text that matches a pattern in a field's JSON schema."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": self._pattern}]}


def _keep_template(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return value if is_template(value) else validate(value)


def _parse_duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.match(_DURATION_PATTERN, value)
    if match is None:
        raise ValueError("write a number and a unit: 30s, 5m, 24h, 7d")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


# Dagster's own way to allow templates makes every field a union with `str`, which turns a typo two
# levels down into "not valid under any of the given schemas".
_Templated = Annotated[T, WrapValidator(_keep_template), _OrText(r"\{\{")]
_Positive = Annotated[float, Field(gt=0)]

Duration = _Templated[
    Annotated[_Positive, BeforeValidator(_parse_duration), _OrText(_DURATION_PATTERN)]
]
Number = _Templated[_Positive]
Count = _Templated[Annotated[int, Field(gt=0)]]
Switch = _Templated[bool]


def check_text(check: Callable[[str], object]) -> AfterValidator:
    """Return a validator that calls `check`, which may raise a ValueError, on text other than a
    template."""

    def validate(value: str | None) -> str | None:
        if value is not None and not is_template(value):
            check(value)
        return value

    return AfterValidator(validate)


class Declaration(BaseModel):
    """The base of all declarations. They are immutable, and unknown keys are errors."""

    # An input in an error would show passwords.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            problems = [
                f"unknown key '{key}'{suggest(str(key), cls.model_fields)}"
                for key in value
                if key not in cls.model_fields
            ]
            if problems:
                raise ValueError("; ".join(problems))
        return value


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean '…'?" with the most similar known name; empty if none is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{similar[0]}'?" if similar else ""
