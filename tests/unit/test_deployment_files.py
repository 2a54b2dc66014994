"""What `deployment/` has for Dagster's Helm chart, beside its dagster.yaml and dagster-k8s.

The chart itself is on no package index. What it makes of values is repeated here as far as it says
where a value goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.definitions.declarative_automation.automation_condition_evaluator import (
    AUTOMATION_TICK_SETTLE_SECONDS_ENV_VAR,
)
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job

from federation_defs.timing import Timing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployment"
VALUES: Mapping[str, Any] = yaml.safe_load((FOLDER / "helm-values.yaml").read_text())
SETTINGS: Mapping[str, Any] = yaml.safe_load((FOLDER / "dagster.yaml").read_text())
INSTANCE: Mapping[str, Any] = VALUES["additionalInstanceConfig"]
LAUNCHER: Mapping[str, Any] = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
TEAMS: list[Mapping[str, Any]] = VALUES["dagster-user-deployments"]["deployments"]


def test_the_daemon_waits_until_an_update_is_stored_before_it_evaluates_conditions() -> None:
    """`tests/contract/test_settling.py` shows what is lost otherwise."""
    file = (FOLDER / "Dockerfile").read_text()
    (settle_s,) = re.findall(rf"^ENV {AUTOMATION_TICK_SETTLE_SECONDS_ENV_VAR}=(.+)$", file, re.M)
    assert 0 < float(settle_s) < 1


def to_snake_case(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def test_kubernetes_has_the_same_settings_as_the_demo() -> None:
    own = {"defs_state_storage"}
    # A pod starts later than a process, as its image may have to be pulled.
    monitoring = {**SETTINGS["run_monitoring"], "start_timeout_seconds": 300}
    assert {key: INSTANCE[key] for key in INSTANCE.keys() - own} == {
        key: SETTINGS[key] for key in SETTINGS.keys() - {"telemetry"}
    } | {"run_monitoring": monitoring}
    assert VALUES["telemetry"] == SETTINGS["telemetry"]


def test_a_pod_may_stop_its_dag_runs_until_dagster_takes_the_run_for_canceled() -> None:
    grace_s = LAUNCHER["runK8sConfig"]["podSpecConfig"]["terminationGracePeriodSeconds"]
    assert grace_s == INSTANCE["run_monitoring"]["cancel_timeout_seconds"]
    assert grace_s > Timing().cancel_s


def test_what_the_chart_would_write_too_is_turned_off() -> None:
    """Dagster reads only one of two settings with the same key."""
    daemon = VALUES["dagsterDaemon"]
    for name in ("runCoordinator", "runMonitoring", "runRetries"):
        assert daemon[name] == {"enabled": False}
    assert daemon["sensors"] == {"useThreads": False}


def test_dagster_accepts_the_settings(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(dict(INSTANCE)))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_settings("sensors") == SETTINGS["sensors"]
        assert instance.run_retries_enabled
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_user_code_failure_retries * queue.user_code_failure_retry_delay == 600


@pytest.mark.parametrize("team", TEAMS, ids=lambda team: team["name"])
def test_a_run_worker_of_each_team_is_a_job_that_kubernetes_knows(team: Mapping[str, Any]) -> None:
    raw = {to_snake_case(key): value for key, value in LAUNCHER["runK8sConfig"].items()}
    settings = {
        "image_pull_policy": LAUNCHER["imagePullPolicy"],
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        "service_account_name": "dagster",
        "run_k8s_config": raw,
    }
    config_type = resolve_to_config_type(K8sRunLauncher.config_type())
    processed = process_config(config_type, settings)  # pyright: ignore[reportArgumentType]
    assert processed.success, processed.errors

    image = team["image"]
    context = K8sContainerContext.create_from_config(
        {
            "k8s": {
                "env": team["env"],
                "env_secrets": [secret["name"] for secret in team["envSecrets"]],
                "image_pull_policy": image["pullPolicy"],
                "resources": team["resources"],
                "run_k8s_config": raw,
            }
        }
    )
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image=f"{image['repository']}:{image['tag']}",
            dagster_home="/opt/dagster/dagster_home",
            instance_config_map="dagster-instance",
        ),
        args=[],
        job_name="run",
        user_defined_k8s_config=context.run_k8s_config,
    )
    assert job.spec
    pod = job.spec.template.spec
    (container,) = pod.containers
    assert {env.name for env in container.env} >= {each["name"] for each in team["env"]}
    assert container.resources.limits == team["resources"]["limits"]
    assert pod.termination_grace_period_seconds == 60
    # Those of the code server, which the chart does not hand on.
    of_pod, of_container = pod.security_context, container.security_context
    assert of_pod.run_as_non_root is team["podSecurityContext"]["runAsNonRoot"]
    assert of_pod.run_as_user == team["podSecurityContext"]["runAsUser"]
    assert of_container.allow_privilege_escalation is False


def test_a_team_has_the_variables_and_the_module_of_its_own_project() -> None:
    for team in TEAMS:
        names = {each["name"] for each in team["env"]}
        assert f"{team['name'].upper()}_AIRFLOW_URL" in names
        assert not [name for name in names if name.endswith(("PASSWORD", "TOKEN"))]
        assert team["codeServerArgs"] == ["--module-name", f"{team['name']}_team.definitions"]


def test_no_secret_of_the_demo_is_sent_to_docker() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", ".demo", ".git"} <= set(ignored)
