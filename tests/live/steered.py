"""DAGs that follow others in every way that can be declared. Their names begin with `react_`.

The DAGs that they follow begin with `steered`: each run of these does what its conf says
(`tests/contract/dags/warehouse/steered.py`).
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from tests.live.dagster_dev import declare_dags

STEERED, LONG, OFTEN, LATE = "steered", "steered_long", "steered_often", "steered_never"
REPORT = dg.AssetKey(["steered_report"])

# An instance has the DAGs that it selects or names, whatever another code location depends on.
DECLARED = {
    "warehouse": """
        steered: {}
        steered_often: {}
        steered_long: {max_duration: 5s}
        steered_never:
          deadline: {cron: "*/2 * * * *", within: 1m}
        react_back:
          depends_on: [metrics/react_all]
    """,
    "metrics": """
        react_failure:
          depends_on: [{dag: warehouse/steered, state: failure}]
          trigger: {pass_upstream: true}
        react_slow:
          depends_on: [{dag: warehouse/steered_long, state: slow}]
          trigger: {pass_upstream: true}
        react_late:
          depends_on: [{dag: warehouse/steered_never, state: late}]
          trigger: {runs: each, pass_upstream: true}
        react_each:
          depends_on: [warehouse/steered_often]
          trigger: {runs: each, at_once: 1, pass_upstream: true, conf: {declared: 1}}
        react_ignore:
          depends_on: [{dag: warehouse/steered, state: failure}]
          trigger: {runs: each, reruns: ignore}
        react_date:
          depends_on: [{dag: warehouse/steered, state: failure}]
          trigger: {runs: each, reruns: rerun, logical_date: upstream}
        react_if:
          depends_on: [{dag: warehouse/steered, state: finished}]
          trigger: {runs: each, only_if: "steering:is_wanted"}
        react_all:
          depends_on: [warehouse/steered, warehouse/steered_often]
          trigger: {when: all}
        react_asset:
          depends_on: [{asset: [steered_report]}]
    """,
}
DECIDER = """\
from federation_defs import Decision, Run, Skip, UpstreamEvent


def is_wanted(event: UpstreamEvent) -> Decision:
    if event.conf.get("skip"):
        return Skip("its conf says so")
    return Run(conf={"asked_about": [event.state, event.run_id]})
"""
# A Dagster asset between two DAGs.
ASSETS = """\
import dagster as dg


@dg.asset(
    deps=[dg.AssetKey(["warehouse", "dag", "steered_long"])],
    automation_condition=dg.AutomationCondition.eager(),
)
def steered_report() -> None: ...


sensor = dg.AutomationConditionSensorDefinition(
    "steered_automation",
    target=[steered_report],
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=1,
)
"""


def declare_steered_dags(project: Path) -> None:
    """Add the DAGs, an `only_if` function and a Dagster asset to a project."""
    declare_dags(project, DECLARED)
    (project / "federation_defs" / "defs" / "steered.py").write_text(ASSETS)
    (project / "steering.py").write_text(DECIDER)
