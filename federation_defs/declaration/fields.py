"""What all declared things are made of: values that may be templates, keys refused by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from federation_defs.declaration.templates import is_template

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Templated:
    """Marks a field that is not text: besides its own type it takes a template, as it stands.

    (Dagster's own way to admit templates makes every field a union with `str`, which turns a typo
    two levels down into "not valid under any of the given schemas".)
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def keep_template(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if is_template(value) else validate(value)

        return core_schema.no_info_wrap_validator_function(keep_template, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        own = handler(schema)
        return {"anyOf": [own, {"type": "string", "pattern": r"\{\{"}]}


class _WithUnits:
    """Marks a number of seconds: it may be written with a unit, as "30s", "5m", "24h" or "7d"."""

    _PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*$"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": self._PATTERN}]}

    def _read(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.match(self._PATTERN, value)
        if match is None:
            raise ValueError("write a number and a unit: 30s, 5m, 24h, 7d")
        return float(match[1]) * _UNITS_S[match[2] or "s"]


Duration = Annotated[float, Field(gt=0), _WithUnits(), _Templated()]
Number = Annotated[float, Field(gt=0), _Templated()]
Count = Annotated[int, Field(gt=0), _Templated()]
Switch = Annotated[bool, _Templated()]


class Declaration(BaseModel):
    """What all declared things have in common: unknown keys are errors, values don't change."""

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
    """The nearest right name as the end of a sentence; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
