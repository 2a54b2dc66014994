"""All that one Airflow can be asked and told, the same for both API versions."""

from __future__ import annotations

import requests

from federation_defs.airflow.api import follow_upgrade, is_absent
from federation_defs.airflow.assets import AssetQuestions
from federation_defs.airflow.dags import DagQuestions
from federation_defs.airflow.dialects import build_path
from federation_defs.airflow.parsing import parse_health
from federation_defs.airflow.records import Health, Permissions
from federation_defs.airflow.runs import RunQuestions
from federation_defs.airflow.tasks import TaskQuestions
from federation_defs.errors import DagNotFoundError, PermissionMissingError

# No request of this shape is ever carried out (400 or 422); a 403 comes before that.
_REFUSED = {"unknown_field": True}


class AirflowClient(DagQuestions, RunQuestions, TaskQuestions, AssetQuestions):
    """One Airflow instance. Safe to share between threads.

    Every method may raise an `AirflowError`: the instance is not reached, not signed in to, forbids
    it or answers with something else; what else a method raises is said there.
    """

    @follow_upgrade
    def fetch_health(self) -> Health:
        """How the instance's parts are doing, by their own account. Needs no sign-in."""
        response = self._get_open(self.dialect.health_path)
        self._check_dialect(self.dialect, response)
        return self._read(response, parse_health)

    @follow_upgrade
    def fetch_permissions(self, dag_id: str) -> Permissions:
        """What the account may do with a DAG and to Airflow assets; nothing is done.

        Airflow has no endpoint that tells (2.11, 3.3), but looks at the permission before it looks
        at what is sent: so each is asked for in a way that is refused in any case, and how it is
        refused tells.

        Raises:
            DagNotFoundError: There is no such DAG.
        """
        read = self._get(build_path("dags", dag_id))
        if is_absent(read):
            raise DagNotFoundError(self.instance, dag_id, "404")
        clear = build_path("dags", dag_id, "clearTaskInstances")
        events = f"{self.dialect.asset_path}/events"
        return Permissions(
            may_read=self._is_allowed(read),
            may_trigger=self._may_post(build_path("dags", dag_id, "dagRuns"), _REFUSED),
            may_clear=self._may_post(clear, _REFUSED),
            may_post_asset_events=self._may_post(events, self.dialect.refused_event),
        )

    def _may_post(self, path: str, body: object) -> bool:
        return self._is_allowed(self._send("POST", path, json=body))

    def _is_allowed(self, response: requests.Response) -> bool:
        if response.status_code in (200, 400, 404, 405, 422):
            # 405 is a 2.x from before there were such events: nobody may post them.
            return response.status_code != 405
        error = self.session.build_error(response)
        if isinstance(error, PermissionMissingError):
            return False
        raise error

    def build_dag_url(self, dag_id: str) -> str:
        """Where a person looks at a DAG."""
        return self.url + self.dialect.build_dag_page(dag_id)
