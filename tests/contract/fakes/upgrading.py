"""An Airflow that is upgraded, or taken back, while a client that knows the other API asks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from werkzeug import Response

from federation_defs.airflow.client import AirflowClient
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.contract import add_contract_dags
from tests.contract.fakes.faults import Act
from tests.contract.worlds import connect_by

OTHER = {"v1": "v2", "v2": "v1"}
RUN = ("write_numbers", "mine")  # over, and failed


@dataclass(frozen=True)
class Upgraded:
    """An Airflow whose token holds through an upgrade, and a client that has asked it before."""

    server: FakeAirflow
    client: AirflowClient

    def connect(self, **declared: Any) -> AirflowClient:
        """Another client, which has asked nothing yet."""
        return connect_by_token(self.server, **declared)

    def upgrade(self) -> None:
        """To the other API, be it up or down."""
        self.server.api = OTHER[self.server.api]

    def upgrade_after(self, act: Act) -> Response:
        response = act()
        self.upgrade()
        return response


def connect_by_token(server: FakeAirflow, **declared: Any) -> AirflowClient:
    return connect_by(server.url, {"type": "token", "token": server.token}, **declared)


@contextmanager
def start_upgradable(api: str) -> Iterator[Upgraded]:
    """With the contract's DAGs, pages of two, and a client that has asked for the version only."""
    with FakeAirflow(api) as server:
        server.takes_tokens = True
        add_contract_dags(server.database, "v2")
        server.database.finish_run(server.database.start_run(*RUN), "failed")
        server.database.add_event(server.database.assets[0])
        for endpoints in server.all_endpoints.values():
            endpoints.page_limit = 2
        client = connect_by_token(server)
        client.fetch_version()
        yield Upgraded(server, client)
