"""A process that has imported `dg`, and runs each command in a fork: importing it takes seconds.

Each line of its input is a command, each line of its output how one ended, both as JSON. Only the
forks import the package.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click
import dagster.components  # noqa: F401 - all that a command imports, but for the package
from dagster_dg_cli.cli import cli, main


def serve() -> None:
    cli.list_commands(click.Context(cli))  # imports the commands
    for line in sys.stdin:
        with TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                become(json.loads(line), output.fileno())
                sys.exit(main())
            _, status = os.waitpid(child, 0)
            output.seek(0)
            ended = {
                "returncode": os.waitstatus_to_exitcode(status),
                "output": output.read().decode(),
            }
        print(json.dumps(ended), flush=True)  # noqa: T201 - to the process that asked


def become(command: dict[str, Any], output: int) -> None:
    """Make this process what a shell would start.

    Args:
        command: Its `argv`, `cwd` and `env`.
        output: The descriptor of standard output and error.
    """
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    sys.argv = command["argv"]
    sys.path[:1] = [str(Path(sys.argv[0]).parent), *os.environ["PYTHONPATH"].split(os.pathsep)]


if __name__ == "__main__":
    serve()
