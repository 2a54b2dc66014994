"""Starts the demo's two Airflows, and Dagster beside them with `--with-dagster`.

Ctrl-C or SIGTERM ends all of it. Exit codes: 0 when asked to end, 1 when something failed,
2 when nothing was started: a port is taken, or the installation is not complete.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType

import psutil
from instance import AirflowInstance
from instances import build_instances
from processes import ProcessRunner, kill_processes
from ready import dagster_executable
from settings import REPOSITORY, SettingsError, read_settings

_READY = "ready"


class RefusedError(Exception):
    """The demo can't be started as things are; nothing was."""


class StepFailedError(Exception):
    """A step of an instance's preparation, or one of its components, failed."""

    def __init__(self, what: str, exit_code: int, log: Path) -> None:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        end = "".join(f"  | {line}\n" for line in lines)
        super().__init__(f"{what} ended with exit code {exit_code}. The end of {log}:\n{end}")


def refuse_incomplete_installation(instances: list[AirflowInstance], with_dagster: bool) -> None:
    """Nothing, if all that is to be started is installed.

    Raises:
        RefusedError: Something is not.
    """
    needed = [instance.programs / "airflow" for instance in instances]
    needed += [dagster_executable()] if with_dagster else []
    for executable in needed:
        if not executable.exists():
            raise RefusedError(f"There is no {executable}. Run 'make install'.")


def refuse_taken_ports(ports: dict[str, int]) -> None:
    """Nothing, if all of them are free.

    Args:
        ports: Name of what will listen -> port.

    Raises:
        RefusedError: One is taken, or meant for two.
    """
    for name, port in ports.items():
        remedy = f"Choose another with 'make demo {name.upper()}_PORT={_next_free(port)}'."
        if list(ports.values()).count(port) > 1:
            raise RefusedError(f"Port {port} is set for {name} and for another. {remedy}")
        if not _is_free(port):
            raise RefusedError(f"Port {port}, meant for {name}, is taken. {remedy}")


def prepare_all(instances: list[AirflowInstance]) -> None:
    """Returns when each has its database and account.

    Raises:
        StepFailedError: A step failed.
    """
    with ThreadPoolExecutor(len(instances)) as pool:
        try:
            done, _ = wait([pool.submit(prepare, one) for one in instances], None, FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            kill_processes(set(psutil.Process().children(recursive=True)))
            raise


def prepare(instance: AirflowInstance) -> None:
    """Returns when it has its database and account, at once if an earlier start made them."""
    instance.logs.mkdir(parents=True, exist_ok=True)
    instance.link_dags()
    if instance.is_prepared():
        return
    instance.drop_unfinished()
    log = instance.logs / "prepare.log"
    log.unlink(missing_ok=True)

    def run(command: list[str], text: str = "") -> None:
        _run_step(instance, command, text, log)

    _say(f"{instance.name}: preparing its database (Airflow {instance.version})")
    run(["airflow", "db", "migrate"])
    _say(f"{instance.name}: making the account '{instance.settings.username}'")
    instance.make_account(run)
    instance.mark_prepared()


def run_all(instances: list[AirflowInstance], with_dagster: bool) -> None:
    """Returns when asked to end, with all processes ended.

    Raises:
        StepFailedError: A component ended by itself.
        SystemExit: What waits for all to be ready failed, and has said why.
    """
    runner = ProcessRunner()
    logs: dict[str, Path] = {}
    for instance in instances:
        _say(f"{instance.name}: starting {', '.join(instance.components)}")
        for component, arguments in instance.components.items():
            name = f"{instance.name} {component}"
            logs[name] = instance.logs / f"{component}.log"
            command = shlex.join([str(instance.programs / "airflow"), *arguments])
            # To a file: a pipe to honcho would stay open, and the process count as running, for
            # as long as any task that outlives it.
            command = f"exec {command} >{shlex.quote(str(logs[name]))} 2>&1"
            runner.add_process(name, command, env=instance.environment(), cwd=instance.home)
    ready = [sys.executable, str(Path(__file__).with_name("ready.py"))]
    ready += ["--with-dagster"] if with_dagster else []
    runner.add_process(_READY, f"exec {shlex.join(ready)}", cwd=REPOSITORY)
    runner.run()
    for name, exit_code in runner.ended_first.items():
        if name == _READY:
            raise SystemExit(1)
        raise StepFailedError(f"{name}, not asked to end,", exit_code, logs[name])


def _run_step(instance: AirflowInstance, command: list[str], text: str, log: Path) -> None:
    with log.open("ab") as output:
        ended = subprocess.run(
            [instance.programs / command[0], *command[1:]],
            cwd=instance.home,
            env=instance.environment(),
            input=text.encode(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is ours to pass on
            check=False,
        )
    if ended.returncode != 0:
        step = f"{instance.name}: {' '.join(command)}"
        raise StepFailedError(step, ended.returncode, log)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As the servers do: connections of an earlier start that still linger don't count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _next_free(port: int) -> int:
    return next(other for other in range(port + 1000, 65536) if _is_free(other))


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _hang_up(_signal: int, _frame: FrameType | None) -> None:
    # All processes have sessions of their own: a closed terminal would leave them running.
    signal.raise_signal(signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--with-dagster", action="store_true", help="start Dagster too")
    with_dagster: bool = parser.parse_args().with_dagster
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _interrupt)
    signal.signal(signal.SIGHUP, _hang_up)
    try:
        demo = read_settings()
        instances = build_instances(demo)
        refuse_incomplete_installation(instances, with_dagster)
        ports = {one.name: one.settings.port for one in instances}
        refuse_taken_ports(ports | ({"dagster": demo.dagster_port} if with_dagster else {}))
        # Nobody else's business: password hashes and keys are in there.
        demo.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        prepare_all(instances)
        run_all(instances, with_dagster)
    except (SettingsError, RefusedError) as error:
        print(error, file=sys.stderr)
        return 2
    except StepFailedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    _say("Everything is ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
