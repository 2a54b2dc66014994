"""Whether two answers could be told apart: statuses, kinds of content, fields and their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from requests import Response


def compare(real: Response, fake: Response) -> list[str]:
    """In what two answers differ."""
    kinds = [response.headers["Content-Type"].partition(";")[0] for response in (real, fake)]
    if (real.status_code, kinds[0]) != (fake.status_code, kinds[1]):
        return [f"{real.status_code} {kinds[0]}, and {fake.status_code} {kinds[1]} by the fake"]
    if "json" not in kinds[0]:
        return []
    return find_differences(describe(real.json()), describe(fake.json()))


def describe(content: Any) -> Any:
    """The fields of an answer and their kinds; of a list, those of its first entry."""
    if isinstance(content, Mapping):
        return {name: describe(value) for name, value in content.items()}
    if isinstance(content, list):
        return [describe(entry) for entry in content[:1]]
    return type(content).__name__


def find_differences(real: Any, fake: Any, at: str = "answer") -> list[str]:
    """What a reader of both could tell them apart by. Null and an empty list are of any kind."""
    if "NoneType" in (real, fake) or [] in (real, fake):
        return []
    if isinstance(real, dict) and isinstance(fake, dict) and not at.endswith(("conf", "fields")):
        missing = [f"{at}.{name} is not in the fake's" for name in real.keys() - fake.keys()]
        extra = [f"{at}.{name} is only in the fake's" for name in fake.keys() - real.keys()]
        common = real.keys() & fake.keys()
        deeper = [find_differences(real[name], fake[name], f"{at}.{name}") for name in common]
        return [*missing, *extra, *chain.from_iterable(deeper)]
    if isinstance(real, list) and isinstance(fake, list):
        return find_differences(real[0], fake[0], f"{at}[0]")
    return [] if type(real) is type(fake) else [f"{at} is {real}, and {fake} in the fake's"]
