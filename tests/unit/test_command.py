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


def test_all_that_is_wrong_between_projects_is_said_at_once(
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
