"""`federation check`: the projects of several code locations, looked at together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from federation_defs.command import main
from tests.unit.project import Project

AUTH = {"type": "password", "username": "{{ env.NOT_SET }}", "password": "{{ env.NOT_SET }}"}


def build(folder: Path, name: str, instance: str, dags: dict[str, Any], **more: Any) -> str:
    project = Project(folder / name, "team")  # modules of the same name
    project.declare(instance, "{{ env.NOT_SET_EITHER }}", AUTH, {"dags": dags, **more})
    return str(project.path)


def depend(on: Any) -> dict[str, Any]:
    return {"depends_on": [on]}


def check(capsys: pytest.CaptureFixture[str], *projects: str) -> tuple[int, str]:
    code = main(["check", *projects])
    return code, capsys.readouterr().out


def test_projects_that_fit_together_pass_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = build(tmp_path, "core", "warehouse", {"load": {}})
    dags = {"report": depend("warehouse/load")}
    sales = build(tmp_path, "sales", "metrics", dags, elsewhere=["warehouse"])
    assert check(capsys, core, sales) == (
        0,
        "Projects: 2. Instances: 2. DAGs that depend on others: 1. Problems: 0.\n",
    )


def test_all_that_is_wrong_between_projects_is_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = {"dag": "warehouse/load", "state": "late"}
    core = build(
        tmp_path,
        "core",
        "warehouse",
        {"load": depend("metrics/report")},
        elsewhere=["metrics"],
        environment="production",
    )
    dags = {"report": depend("warehouse/load"), "alarm": depend(late)}
    sales = build(
        tmp_path, "sales", "metrics", dags, elsewhere=["warehouse", "finanz"], environment="test"
    )
    finance = build(tmp_path, "finance", "warehouse", {"close": depend("metrics/report")})
    code, said = check(capsys, core, sales, finance)
    assert code == 1
    where = f"{sales}/team/defs/metrics/defs.yaml"
    for expected in (
        f"{finance}/team/defs/warehouse/defs.yaml: name: 'warehouse' is the name of {core}/",
        f"{where}: elsewhere: no project declares 'finanz'",
        "'metrics' is declared in another code location, in ",
        "there is a cycle: ",
        "belongs to the environment 'test', and warehouse to 'production'",
        "has no `deadline`, and so is never late",
    ):
        assert expected in said, said
    assert said.splitlines()[-1].endswith("Problems: 6.")


def test_projects_that_can_not_be_loaded_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = build(tmp_path, "core", "warehouse", {"load": {"depend_on": []}})
    # What does not say how to connect is no secret, and is needed.
    sales = build(tmp_path, "sales", "metrics", {"report": depend("{{ env.NOT_SET }}/load")})
    code, said = check(capsys, core, sales)
    assert code == 1
    assert f"{core}: it can't be loaded: " in said
    assert "unknown key 'depend_on'; did you mean 'depends_on'?" in said
    assert f"{sales}: it can't be loaded: " in said
    assert "set the environment variable NOT_SET." in said


def write(folder: Path, name: str, code: str) -> str:
    project = Project(folder / name, "team")
    project.declare(name)
    (project.defs / "own.py").write_text(code)
    return str(project.path)


def test_what_a_project_does_when_it_is_loaded_hides_neither_the_others_nor_shows_a_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = build(tmp_path, "core", "warehouse", {"load": {}}, select={"dag_ids": ["load_*"]})
    dags = {"report": depend("warehouse/laod"), "other": depend("elsewhere/dag")}
    more = {"elsewhere": ["warehouse", "elsewhere"], "environment": "{{ env.ENVIRONMENT }}"}
    sales = build(tmp_path, "sales", "metrics", dags, **more)
    (tmp_path / "sales" / ".env").write_text("ENVIRONMENT=test")
    broken = [
        write(tmp_path, "ended", "import os\nos._exit(3)"),
        write(tmp_path, "left", "import sys\nsys.exit('hunter2')"),
        write(tmp_path, "away", "import os\nraise OSError('no user:hunter2@database')"),
        write(tmp_path, "syntax", "\ndef ("),
    ]
    empty = Project(tmp_path / "empty", "team")
    inner = str(empty.path / "team")
    code, said = check(capsys, core, sales, *broken, str(empty.path), inner)
    ended, left, away, syntax = broken
    where = f"{sales}/team/defs/metrics/defs.yaml: dags.report.depends_on"
    there = f"{core}/team/defs/warehouse/defs.yaml"
    assert (code, said.splitlines()) == (
        1,
        [
            f"{ended}: it can't be loaded: loading ended the process (3)",
            f"{left}: it can't be loaded: SystemExit at {left}/team/defs/own.py:2",
            f"{away}: it can't be loaded: OSError at {away}/team/defs/own.py:2",
            f"{syntax}: it can't be loaded: SyntaxError at {syntax}/team/defs/own.py:2",
            f"{empty.path}: there is no component in {empty.defs}",
            f"{inner}: it is not a project: it has neither a dg.toml nor a pyproject.toml",
            f"{where}: {there} neither declares nor selects 'laod'; did you mean 'load'?",
            "Projects: 8. Instances: 2. DAGs that depend on others: 2. Problems: 7.",
        ],
    )


def test_a_project_that_hangs_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hanging = write(tmp_path, "hanging", "import time\ntime.sleep(600)")
    assert main(["check", hanging], load_s=0.1) == 1
    shown = capsys.readouterr().out
    assert f"{hanging}: it can't be loaded: loading takes more than 0.1 s" in shown
