"""DAGs as the client reads them, from Airflows of both APIs, fake and real."""

from __future__ import annotations

import pytest

from federation_defs.airflow.models import Dag, DagImportError
from federation_defs.errors import DagNotFoundError
from tests.contract.conftest import Airflow
from tests.contract.worlds import FOLDERS, FakeWorld, World, pausing
from tests.waiting import wait_for


def test_a_dag_is_in_the_list_as_it_is_on_its_own(fake_world: FakeWorld) -> None:
    listed = [dag for dag in fake_world.client.fetch_dags() if dag.dag_id == fake_world.dag_id]
    assert listed == [fake_world.client.fetch_dag(fake_world.dag_id)]


def test_a_dag_has_its_fields(world: World) -> None:
    dag = world.client.fetch_dag("described")
    assert dag.description == "Prüft, was ein Airflow von einer DAG erzählt."
    assert (dag.schedule, dag.owners) == ("0 3 29 2 *", ("zoë",))
    assert set(dag.tags) == {"contract", "größe"}
    assert (dag.is_paused, dag.is_present, dag.has_import_errors) == (False, True, False)


def test_a_paused_dag_is_recognized(world: World) -> None:
    with pausing(world):
        is_paused = world.client.fetch_dag(world.dag_id).is_paused
    assert (is_paused, world.client.fetch_dag(world.dag_id).is_paused) == (True, False)


def test_dags_are_listed_by_a_part_of_their_id_in_capitals_or_not(world: World) -> None:
    dags = world.client.fetch_dags(id_pattern="E_NUMBERS")
    assert [dag.dag_id for dag in dags] == ["write_numbers"]


def test_a_part_of_an_id_is_a_pattern(world: World) -> None:
    """As SQL has them, by both."""
    (dag,) = world.client.fetch_dags(id_pattern="wr_te%bers")
    assert dag.dag_id == "write_numbers"
    assert world.client.fetch_dags(id_pattern="wr_te_bers") == []


def test_dags_are_listed_by_any_of_some_tags(world: World) -> None:
    dags = world.client.fetch_dags(tags=["größe", "nobody_has_it"])
    assert [dag.dag_id for dag in dags] == ["described"]
    both = world.client.fetch_dags(id_pattern="numbers", tags=["größe", "contract"])
    assert {dag.dag_id for dag in both} == {"read_numbers", "write_numbers"}


def test_an_unknown_dag_is_not_found(fake_world: FakeWorld) -> None:
    with pytest.raises(DagNotFoundError, match="has no DAG 'nobody_knows_it'"):
        fake_world.client.fetch_dag("nobody_knows_it")


def test_a_dag_whose_file_has_gone_is_not_found(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers", is_present=False)
    with pytest.raises(DagNotFoundError, match="its file has gone"):
        airflow.client.fetch_dag("load_customers")
    assert airflow.client.fetch_dags() == []


def test_a_partitioned_dag_is_recognized(world_v2: World) -> None:
    partitioned = {dag.dag_id for dag in world_v2.client.fetch_dags() if dag.is_partitioned}
    assert partitioned & {"partitioned", "described", "dated"} == {"partitioned"}


def fetch_contract_dags(world: World) -> list[Dag]:
    dag_ids = ("described", "read_numbers", "write_numbers")
    return [world.client.fetch_dag(dag_id) for dag_id in dag_ids]


def test_the_sources_of_several_dags_are_the_texts_of_their_files(world: World) -> None:
    folder = FOLDERS["warehouse" if world.api == "v1" else "metrics"]
    assert world.client.fetch_dag_sources(fetch_contract_dags(world)) == {
        "described": (folder / "described.py").read_text(),
        "read_numbers": (folder / "assets.py").read_text(),
        "write_numbers": (folder / "assets.py").read_text(),
    }


def test_sources_are_fetched_for_any_iterable_of_dags(fake_world: FakeWorld) -> None:
    dags = fetch_contract_dags(fake_world)
    assert set(fake_world.client.fetch_dag_sources(dag for dag in dags)) == {
        "described",
        "read_numbers",
        "write_numbers",
    }


def test_a_file_with_several_dags_is_asked_for_once(fake_world: FakeWorld) -> None:
    dags = fetch_contract_dags(fake_world)
    assert len(fake_world.client.fetch_dag_sources(dags)) == 3
    assert fake_world.server.count("GET", "/dagSources/.*") == 2


def test_a_deleted_source_is_left_out(fake_world: FakeWorld) -> None:
    dags = fetch_contract_dags(fake_world)
    del fake_world.database.dags["described"]
    assert set(fake_world.client.fetch_dag_sources(dags)) == {"read_numbers", "write_numbers"}


def test_an_import_error_has_its_traceback(world: World) -> None:
    def find_error() -> DagImportError | None:
        errors = world.client.fetch_import_errors()
        return next((error for error in errors if error.file.endswith("broken.py")), None)

    # Airflow makes the row anew each time it reads the file.
    error = wait_for(find_error, "an import error of broken.py", timeout_s=30)
    assert "RuntimeError: bröken on purpose" in error.stack_trace


def test_an_asset_has_its_fields(world: World) -> None:
    uri = "x-contract://lake/numbers"
    (asset,) = [asset for asset in world.client.fetch_assets() if asset.uri == uri]
    assert asset.extra == {"owner": "Zoë"}
    assert asset.producing_tasks == (("write_numbers", "write"),)
    assert asset.scheduled_dag_ids == ("read_numbers",)


def test_all_assets_are_listed_by_a_server_with_small_pages(airflow: Airflow) -> None:
    uris = [f"s3://lake/{number:02}" for number in range(35)]
    for uri in uris:
        airflow.database.add_asset(uri)
    airflow.server.endpoints.page_limit = 10
    assert [asset.uri for asset in airflow.client.fetch_assets()] == uris
