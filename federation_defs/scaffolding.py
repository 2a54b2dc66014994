"""What `dg scaffold defs federation_defs.FederatedAirflow <name>` writes."""

from __future__ import annotations

import dagster as dg
from dagster.components import ScaffoldRequest
from typing_extensions import override

_DEFS_YAML = """\
type: {type}

attributes:
  name: {name}
  url: "{{{{ env.{prefix}_AIRFLOW_URL }}}}"
  auth:
    type: password  # Airflow 3; for Airflow 2: basic
    username: "{{{{ env.{prefix}_AIRFLOW_USERNAME }}}}"
    password: "{{{{ env.{prefix}_AIRFLOW_PASSWORD }}}}"
  # select:
  #   dag_ids: ["*"]
  # dags:
  #   a_dag_of_this_instance:
  #     depends_on: [another_instance/a_dag_of_it]
"""


class AirflowScaffolder(dg.Scaffolder):
    """Writes a defs.yaml to start from; the folder's name becomes the instance's."""

    @override
    def scaffold(self, request: ScaffoldRequest) -> None:
        name = request.target_path.name.replace("-", "_")
        request.target_path.mkdir(parents=True, exist_ok=True)
        text = _DEFS_YAML.format(type=request.type_name, name=name, prefix=name.upper())
        (request.target_path / "defs.yaml").write_text(text)
