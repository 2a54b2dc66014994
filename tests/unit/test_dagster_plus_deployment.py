"""The files in `deployment/dagster_plus`, as far as Dagster's own packages check them.

No Dagster+ takes part.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dagster_cloud_cli.config.models import load_dagster_cloud_yaml
from dagster_dg_cli.cli import create_dg_cli
from dagster_dg_cli.cli.utils import create_temp_dagster_cloud_yaml_file
from dagster_dg_core.context import DgContext
from dagster_k8s.container_context import K8sContainerContext

from federation_defs.declaration.fields import find_variables

ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "deployment" / "dagster_plus"
WORKFLOW = DEPLOYMENT / "dagster-plus-deploy.yml"
PROJECTS = ["headquarters", "plant"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dagster_cloud.yaml that `dg` makes of the workspace, and sends to Dagster+."""
    context = DgContext.for_workspace_or_project_environment(DEPLOYMENT, {})
    return Path(
        create_temp_dagster_cloud_yaml_file(context, str(tmp_path_factory.mktemp("session")))
    )


def read_variables(project: str) -> set[str]:
    (declared,) = (DEPLOYMENT / "projects" / project).glob("*/defs/*/defs.yaml")
    return set(find_variables(yaml.safe_load(declared.read_text())))


def test_each_code_location_is_served_by_the_agent_of_its_network(config: Path) -> None:
    locations = load_dagster_cloud_yaml(config.read_text()).locations
    queues = {location.location_name: location.agent_queue for location in locations}
    assert queues == {name: name for name in PROJECTS}
    for location in locations:
        assert location.build
        assert location.build.registry == "ghcr.io/acme/federation"


def test_dagster_clouds_own_check_accepts_the_configuration(config: Path) -> None:
    options = ["--project-dir", config.parent, "--dagster-cloud-connect-check=skip"]
    checked = subprocess.run(
        [Path(sys.executable).with_name("dagster-cloud"), "ci", "check", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Passed: 1" in checked.stdout


@pytest.mark.parametrize("project", PROJECTS)
def test_the_container_context_is_one_of_dagster_k8s(project: str) -> None:
    path = DEPLOYMENT / "projects" / project / "container_context.yaml"
    context = K8sContainerContext.create_from_config(yaml.safe_load(path.read_text()))
    for config in (context.run_k8s_config, context.server_k8s_config):
        (secret,) = config.container_config["env_from"]
        assert secret["secret_ref"]["name"].endswith("-airflow")
        assert config.container_config["resources"]["limits"]


@pytest.mark.parametrize("project", PROJECTS)
def test_the_secret_of_a_code_location_has_all_variables_of_its_declarations(project: str) -> None:
    said = (DEPLOYMENT / "projects" / project / "container_context.yaml").read_text()
    variables = read_variables(project)
    assert variables
    assert set(re.findall(r"\b[A-Z]+_AIRFLOW_[A-Z]+\b", said)) == variables


def test_the_step_that_refreshes_states_has_all_variables_of_the_declarations() -> None:
    (step,) = (step for step in read_steps() if step.get("name") == "Refresh defs state")
    used = set[str]().union(*map(read_variables, PROJECTS))
    assert step["env"] == {name: f"${{{{ secrets.{name} }}}}" for name in used}


def test_no_two_steps_of_the_workflow_have_the_same_id() -> None:
    ids = [step["id"] for step in read_steps() if "id" in step]
    assert len(ids) == len(set(ids))


def test_the_workflow_calls_commands_of_dg_with_options_that_they_have() -> None:
    commands = [
        step["with"]["command"] for step in read_steps() if "/dg-cli@" in step.get("uses", "")
    ]
    assert [command.split()[2] for command in commands] == [
        "refresh-defs-state",
        *["set-build-output"] * len(PROJECTS),
        "finish",
    ]
    for command in commands:
        check_command(shlex.split(re.sub(r"\$\{\{.*?\}\}", ".", command)))


def check_command(arguments: list[str]) -> None:
    """Let click parse a command of dg.

    Raises:
        click.ClickException: There is no such command or option.
    """
    command: Any = create_dg_cli()
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
        assert command, name
    command.make_context(command.name, arguments)


def read_steps() -> list[dict[str, Any]]:
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    return job["steps"]
