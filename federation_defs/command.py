"""The command `federation`.

`federation check PROJECT ...` checks the projects of all code locations of a deployment together,
as in CI: each project alone can't see what is wrong between them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from pydantic import ValidationError

from federation_defs.component import FederatedAirflow
from federation_defs.declaration.fields import KEEP_TEMPLATES
from federation_defs.errors import DeclarationError
from federation_defs.validation import Member, find_deep_chains, find_problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 1 if anything is wrong, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        "federation", description="Tools for a federation of Airflows."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = (
        "Check the declarations of several projects, a code location each, as one federation. "
        "Neither an Airflow nor a secret is needed."
    )
    check = commands.add_parser("check", help=about, description=about)
    check.add_argument(
        "projects", nargs="+", metavar="PROJECT", help="a folder with a pyproject.toml"
    )
    return _check(parser.parse_args(arguments).projects)


def _check(projects: Sequence[str]) -> int:
    # Each in a process of its own: two projects may have modules of the same name.
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(min(len(projects), os.cpu_count() or 1), maxtasksperchild=1) as pool:
        results = pool.map(read_members, projects, chunksize=1)
    problems = [each for each in results if isinstance(each, str)]
    members = [member for each in results if not isinstance(each, str) for member in each]
    if not problems:
        problems = find_problems(members, is_whole=True)
    for each in problems or find_deep_chains(members):
        print(each)  # noqa: T201
    downstreams = sum(len(member.declaration.downstreams) for member in members)
    print(  # noqa: T201
        f"Projects: {len(projects)}. Instances: {len(members)}. DAGs that depend on others: "
        f"{downstreams}. Problems: {len(problems)}."
    )
    return 1 if problems else 0


def read_members(project: str) -> list[Member] | str:
    """Return the instances that a project declares, or why it can't be loaded.

    The templates in `dags` and `environment` are rendered. Of others, such as those of `auth`, the
    variables need not be set.
    """
    path = Path(project).resolve()
    sys.path[:0] = [str(path), str(path / "src")]
    KEEP_TEMPLATES.set(True)
    try:
        components = dg.ComponentTree.for_project(path).get_all_components(FederatedAirflow)
    except Exception as error:  # noqa: BLE001 - the project may run any code
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        told = (each for each in causes if isinstance(each, DeclarationError | ValidationError))
        why = next(told, causes[-1])
        return f"{project}: it can't be loaded: {type(why).__name__}: {why}"
    members = [component.member for component in components]
    return [
        Member(os.path.join(project, each.source), each.declaration, project) for each in members
    ]


if __name__ == "__main__":
    sys.exit(main())
