"""The command `federation`.

`federation check PROJECT ...` checks the projects of all code locations of a deployment together,
as in CI: a project alone does not show what is wrong between projects.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import dagster as dg
from dotenv import dotenv_values
from pydantic import ValidationError

from federation_defs.component import FederatedAirflow
from federation_defs.declaration.fields import KEEP_TEMPLATES
from federation_defs.errors import DeclarationError
from federation_defs.threads import run_in_threads
from federation_defs.validation import Member, find_deep_chains, find_problems

# The processes of all projects are forked from one that has imported Dagster.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["federation_defs.command"])


def main(arguments: Sequence[str] | None = None, load_s: float = 300.0) -> int:
    """Run the command, and return its exit code: 1 if anything is wrong, 2 for wrong arguments.

    Args:
        load_s: How long the load of a project may take, in seconds.
    """
    parser = argparse.ArgumentParser(
        "federation", description="Tools for a federation of Airflows."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = (
        "Check the declarations of several projects, each a code location, as one federation. "
        "Neither an Airflow nor a secret is needed. Each DAG id that a `select` matches is "
        "therefore assumed to be that of a DAG."
    )
    check = commands.add_parser("check", help=about, description=about)
    check.add_argument(
        "projects", nargs="+", metavar="PROJECT", help="a folder with a dg.toml or pyproject.toml"
    )
    return _check(parser.parse_args(arguments).projects, load_s)


def _check(projects: Sequence[str], load_s: float) -> int:
    reads = [partial(_read_in_process, project, load_s) for project in projects]
    results = run_in_threads(reads, os.cpu_count() or 1)
    problems = [each for each in results if isinstance(each, str)]
    members = [member for each in results if not isinstance(each, str) for member in each]
    problems += find_problems(members, is_whole=not problems)
    for each in problems or find_deep_chains(members):
        print(each)  # noqa: T201
    downstreams = sum(len(member.declaration.downstreams) for member in members)
    print(  # noqa: T201
        f"Projects: {len(projects)}. Instances: {len(members)}. DAGs that depend on others: "
        f"{downstreams}. Problems: {len(problems)}."
    )
    return 1 if problems else 0


def _read_in_process(project: str, load_s: float) -> list[Member] | str:
    """Call `read_members` in a process of its own: two projects may have modules of the same name,
    and a project may end its process, or hang.

    Args:
        load_s: How long that may take, in seconds.
    """
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_send_members, args=(project, sender), daemon=True)
    process.start()
    sender.close()  # the pipe then ends with the process
    try:
        if receiver.poll(load_s):
            return receiver.recv()
        return f"{project}: it can't be loaded: loading takes more than {load_s:g} s"
    except EOFError:
        process.join()
        return f"{project}: it can't be loaded: loading ended the process ({process.exitcode})"
    finally:
        process.kill()
        process.join()


def _send_members(project: str, sender: Connection) -> None:
    sender.send(read_members(project))


def read_members(project: str) -> list[Member] | str:
    """Return the instances that a project declares, or why it can't be loaded.

    The templates in `dags` and `environment` are rendered. The variables of the project's `.env`
    override those of the process, as in Dagster (1.13). The variables of other templates, such as
    those of `auth`, need not be set.
    """
    path = Path(project).resolve()
    if not any((path / name).is_file() for name in ("dg.toml", "pyproject.toml")):
        return f"{project}: it is not a project: it has neither a dg.toml nor a pyproject.toml"
    settings = dotenv_values(path / ".env")
    os.environ |= {name: value for name, value in settings.items() if value is not None}
    sys.path[:0] = [str(path), str(path / "src")]
    KEEP_TEMPLATES.set(True)
    try:
        tree = dg.ComponentTree.for_project(path)
        folder = tree.defs_module_path
        if not {*folder.rglob("*.py"), *folder.rglob("*.yaml")} - {folder / "__init__.py"}:
            return f"{project}: there is no component in {folder}"
        components = tree.get_all_components(FederatedAirflow)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the project may run any code
        return f"{project}: it can't be loaded: {_describe(error, path)}"
    members = [component.member for component in components]
    return [
        Member(os.path.join(project, each.source), each.declaration, project) for each in members
    ]


def _describe(error: BaseException, project: Path) -> str:
    """Return an error as text. Messages of errors that are neither ours nor Dagster's may hold a
    secret; for those, return the type and the line of the project that raised it."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    own = (each for each in causes if isinstance(each, DeclarationError | ValidationError))
    why = next(own, causes[-1])
    if isinstance(why, DeclarationError | ValidationError | dg.DagsterError | ImportError):
        return f"{type(why).__name__}: {why}"
    frames = traceback.extract_tb(why.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(why, SyntaxError):
        places = [(str(why.filename), why.lineno)]
    elif mark := getattr(why, "problem_mark", None):  # of YAML
        places = [(mark.name, mark.line + 1)]
    inside = [place for place in places if Path(place[0]).is_relative_to(project)]
    file, line = (inside or places)[-1]
    return f"{type(why).__name__} at {file}:{line}"


if __name__ == "__main__":
    sys.exit(main())
