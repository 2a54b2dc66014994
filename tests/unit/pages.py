"""The declarations that pages of documentation show, and the refusals that they show after them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jsonschema
import yaml

from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.errors import DeclarationError
from federation_defs.validation import Member, find_deep_chains, find_problems
from tests.unit.build import CONNECTION

SCHEMA = jsonschema.Draft202012Validator(InstanceDeclaration.model_json_schema())


class Block(NamedTuple):
    """A block of YAML, and the refusal that the page shows after it; empty if it is accepted."""

    text: str
    refusal: str

    def __str__(self) -> str:
        return self.text.partition("\ndags:\n")[2].split("\n")[0].strip()


def find_blocks(page: str) -> list[Block]:
    return [
        Block(*found)
        for found in re.findall(
            r"^```yaml\n(.*?)^```\n(?:\n```\n(.*?)^```$)?", page, re.MULTILINE | re.DOTALL
        )
    ]


def read_block(text: str) -> dict[str, dict[str, Any]]:
    """Return the attributes of each instance in a block, and of those that it only names."""
    instances: dict[str, dict[str, Any]] = {}
    for part in text.split("\n---\n"):
        file = re.match(r"# defs/(\w+)/defs\.yaml\n", part)
        instances[file[1] if file else "sales"] = yaml.safe_load(part)
    for name in re.findall(r"\b(\w+)/load_\w+", text):
        if name != "warehose":
            instances.setdefault(name, {})
    return {name: {"name": name, **CONNECTION, **values} for name, values in instances.items()}


def find_all_problems(instances: dict[str, dict[str, Any]]) -> list[str]:
    """Return all that a load says of these instances."""
    members, problems = list[Member](), list[str]()
    for name, values in instances.items():
        source = f"defs/{name}/defs.yaml"
        try:
            members.append(Member(source, parse_declaration(values, source)))
        except DeclarationError as error:
            problems += error.problems
    problems += find_problems(members)
    return problems or list(find_deep_chains(members))


def check_block(block: Block) -> None:
    """Check that declarations are accepted, or refused as the page says."""
    instances = read_block(block.text)
    problems = find_all_problems(instances)
    assert "".join(f"{problem}\n" for problem in problems) == block.refusal
    if not problems:
        for values in instances.values():
            assert list(SCHEMA.iter_errors(values)) == []
