"""`docs/declaration.md` has all keys with their defaults, all variables, and all names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter

from federation_defs import naming
from federation_defs.declaration import InstanceDeclaration
from federation_defs.declaration.fields import Declaration

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "declaration.md").read_text()


def find_model(annotation: Any) -> type[BaseModel] | None:
    """Return the declaration that a field holds, or a list or a dict of them."""
    if isinstance(annotation, type) and issubclass(annotation, Declaration):
        return annotation
    return next(filter(None, map(find_model, get_args(annotation))), None)


def find_differences(model: type[BaseModel], shown: dict[str, Any]) -> list[str]:
    """Return the keys that the page lacks or does not show as they are."""
    found = [*(model.model_fields.keys() ^ shown.keys())]
    for name, field in model.model_fields.items():
        value, inner = shown.get(name), find_model(field.annotation)
        if name == "dags":
            (value,) = shown[name].values()
        elif isinstance(value, list) and inner:
            (value,) = value
        if name == "auth":  # docs/connecting.md has its kinds
            continue
        if inner and isinstance(value, dict):
            found += find_differences(inner, value)
        elif field.is_required() or (field.default is None and value is not None):
            said = "required" if field.is_required() else r"none|required|either"
            found += [] if re.search(rf"\b{name}: .*# .*({said})", PAGE) else [name]
        else:
            parsed = TypeAdapter(field.rebuild_annotation()).validate_python(value)
            found += [] if parsed == field.get_default(call_default_factory=True) else [name]
    return found


def test_the_page_has_every_key_with_its_default() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert find_differences(InstanceDeclaration, yaml.safe_load(text)["attributes"]) == []


def test_the_page_has_every_variable() -> None:
    code = "".join(path.read_text() for path in (ROOT / "federation_defs").rglob("*.py"))
    variables = r"\bFEDERATION_[A-Z_]+\b"
    assert set(re.findall(variables, PAGE)) == set(re.findall(variables, code))


def test_the_page_has_every_check_and_job() -> None:
    names = [
        value for name, value in vars(naming).items() if name.endswith(("CHECK_NAME", "JOB_NAME"))
    ]
    assert len(names) > 5
    assert not [name for name in names if f"`{name}`" not in PAGE]
