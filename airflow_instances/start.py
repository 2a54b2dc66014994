"""Start the demo's two Airflows, and Dagster too: with `--dagster dev` as `dagster dev`, with
`--dagster production` as a deployment.

Ctrl-C or SIGTERM stops everything. Exit codes: 0 when stopped, 1 when something failed, 2 when
nothing was started because a port is in use or the installation is incomplete.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType

import psutil
from instances import AirflowInstance, build_instances
from processes import ProcessRunner, kill_processes
from readiness import DAGSTER_KINDS, dagster_executable
from settings import REPOSITORY, SettingsError, check_ports, read_settings

_READINESS = "readiness"


class CannotStartError(Exception):
    """The demo can't be started. Nothing was started."""


class ProcessFailedError(Exception):
    """A step of an instance's preparation, or one of its components, failed."""

    def __init__(self, process: str, exit_code: int, log: Path) -> None:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        end = "".join(f"  | {line}\n" for line in lines)
        super().__init__(f"{process} ended with exit code {exit_code}. The end of {log}:\n{end}")


def check_installation(instances: list[AirflowInstance], dagster_kind: str | None) -> None:
    """Check that everything that will be started is installed.

    Raises:
        CannotStartError: An executable is missing.
    """
    executables = [instance.programs / "airflow" for instance in instances]
    executables += [dagster_executable()] if dagster_kind else []
    for executable in executables:
        if not executable.exists():
            raise CannotStartError(f"There is no {executable}. Run 'make install'.")


def prepare_all(instances: list[AirflowInstance]) -> None:
    """Prepare all instances in parallel.

    Raises:
        ProcessFailedError: A step failed.
    """
    with ThreadPoolExecutor(len(instances)) as pool:
        try:
            preparations = [pool.submit(prepare, instance) for instance in instances]
            done, _ = wait(preparations, None, FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            kill_processes(set(psutil.Process().children(recursive=True)))
            raise


def prepare(instance: AirflowInstance) -> None:
    """Create the instance's database and account, unless an earlier start did."""
    instance.logs.mkdir(parents=True, exist_ok=True)
    instance.link_dags()
    if instance.is_prepared():
        return
    instance.remove_incomplete_database()
    log = instance.logs / "prepare.log"
    log.unlink(missing_ok=True)

    def run(command: list[str], text: str = "") -> None:
        _run_step(instance, command, text, log)

    _print(f"{instance.name}: preparing its database (Airflow {instance.version})")
    run(["airflow", "db", "migrate"])
    _print(f"{instance.name}: creating the account '{instance.settings.username}'")
    instance.create_account(run)
    instance.mark_prepared()


def run_all(instances: list[AirflowInstance], dagster_kind: str | None) -> None:
    """Run all processes until asked to stop. Return when they have ended.

    Raises:
        ProcessFailedError: A component ended by itself.
        SystemExit: `readiness.py` failed, and has printed why.
    """
    runner = ProcessRunner()
    logs: dict[str, Path] = {}
    for instance in instances:
        _print(f"{instance.name}: starting {', '.join(instance.components)}")
        for component, arguments in instance.components.items():
            name = f"{instance.name} {component}"
            logs[name] = instance.logs / f"{component}.log"
            command = shlex.join([str(instance.programs / "airflow"), *arguments])
            # To a file: a task that outlives the process would keep a pipe to honcho open, and
            # honcho would take the process for running.
            command = f"exec {command} >{shlex.quote(str(logs[name]))} 2>&1"
            runner.add_process(name, command, env=instance.environment(), cwd=instance.home)
    readiness = [sys.executable, str(Path(__file__).with_name("readiness.py"))]
    readiness += ["--dagster", dagster_kind] if dagster_kind else []
    runner.add_process(_READINESS, f"exec {shlex.join(readiness)}", cwd=REPOSITORY)
    runner.run()
    for name, exit_code in runner.exited.items():
        if name == _READINESS:
            raise SystemExit(1)
        raise ProcessFailedError(name, exit_code, logs[name])


def _run_step(instance: AirflowInstance, command: list[str], text: str, log: Path) -> None:
    with log.open("ab") as output:
        finished = subprocess.run(
            [instance.programs / command[0], *command[1:]],
            cwd=instance.home,
            env=instance.environment(),
            input=text.encode(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must reach only this process, which stops the step
            check=False,
        )
    if finished.returncode != 0:
        step = f"{instance.name}: {' '.join(command)}"
        raise ProcessFailedError(step, finished.returncode, log)


def _print(line: str) -> None:
    print(line, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # All processes have their own sessions, so a closed terminal would leave them running.
    signal.raise_signal(signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dagster", choices=DAGSTER_KINDS, help="start Dagster too")
    dagster_kind: str | None = parser.parse_args().dagster
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _interrupt)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        demo = read_settings()
        instances = build_instances(demo)
        check_installation(instances, dagster_kind)
        ports = {instance.name: instance.settings.port for instance in instances}
        ports |= {"dagster": demo.dagster_port} if dagster_kind else {}
        check_ports(ports, "demo-production" if dagster_kind == "production" else "demo")
        # Not readable for other users: it holds password hashes and keys.
        demo.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        prepare_all(instances)
        run_all(instances, dagster_kind)
    except (SettingsError, CannotStartError) as error:
        print(error, file=sys.stderr)
        return 2
    except ProcessFailedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    _print("Everything has stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
