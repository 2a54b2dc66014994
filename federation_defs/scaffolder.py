"""The scaffolder of `dg scaffold defs federation_defs.FederatedAirflow`."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata

import dagster as dg
from dagster.components import ScaffoldRequest
from typing_extensions import override

from federation_defs.declaration.fields import find_variables

_DEFS_YAML = """\
type: {type}

attributes:
  name: "{name}"
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
_NEXT_STEPS = """\
Next:
1. Set {variables}, in the environment or in .env.
2. dg check yaml {path}
3. dg utils refresh-defs-state  # signs in, and reads the DAGs
4. dg check defs
5. dg list defs  # each DAG is an asset
"""


class AirflowScaffolder(dg.Scaffolder):
    """Writes a `defs.yaml` to start from. The instance is named after the folder."""

    @override
    def scaffold(self, request: ScaffoldRequest) -> None:
        folder = request.target_path
        ascii_name = unicodedata.normalize("NFKD", folder.name).encode("ascii", "ignore").decode()
        name = re.sub(r"\W", "_", ascii_name)[:50].strip("_") or "airflow"
        # The name of an environment variable does not begin with a digit.
        prefix = f"AIRFLOW_{name}" if name[0].isdigit() else name
        text = _DEFS_YAML.format(type=request.type_name, name=name, prefix=prefix.upper())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "defs.yaml").write_text(text)
        variables, path = ", ".join(find_variables(text)), shlex.quote(os.path.relpath(folder))
        print(_NEXT_STEPS.format(variables=variables, path=path))  # noqa: T201
