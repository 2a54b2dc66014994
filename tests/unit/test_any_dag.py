"""Whatever an Airflow says of a DAG, the definitions of its instance load."""

from __future__ import annotations

import os
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from hypothesis import example, given, settings
from hypothesis import strategies as st

from federation_defs.airflow.client import build_client
from federation_defs.execution import build_execution
from federation_defs.instance_defs import build_instance_defs
from federation_defs.naming import build_asset_key
from federation_defs.specs import build_specs
from tests.unit.build import build_dag_snapshot, build_declaration, build_snapshot

# All that a JSON text may hold: half of a surrogate pair, a NUL, line ends, thousands of letters.
TEXT = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["", " ", "\n", "\0", "\ud83d", "\u202e", "dagster/kind/airflow", "team:", "a@b.c", "x" * 3000]
)
DAGS = st.fixed_dictionaries(
    {},
    optional={
        "owners": st.lists(TEXT, max_size=3).map(tuple),
        "airflow_tags": st.lists(TEXT, max_size=3).map(tuple),
        "description": TEXT,
        "schedule": TEXT,
        "url": TEXT,
    },
)


def load(dags: dict[str, dict[str, Any]]) -> set[dg.AssetKey]:
    """Load an instance with these DAGs as a code server does, and return its asset keys."""
    declaration = build_declaration("sales")
    snapshot = build_snapshot(*(build_dag_snapshot(dag_id, **dag) for dag_id, dag in dags.items()))
    specs = build_specs(declaration, snapshot, set())
    defs = build_instance_defs(build_client(declaration, "`auth`"), declaration, specs)
    dg.Definitions.validate_loadable(defs)
    repository = defs.get_repository_def()
    dg.serialize_value(RepositorySnap.from_def(repository)).encode()
    return set(repository.asset_graph.get_all_asset_keys())


@settings(max_examples=int(os.environ.get("HISTORIES", "15")))
@given(st.dictionaries(TEXT, DAGS, max_size=4))
@example({"a": {"airflow_tags": ("",)}})
def test_any_text_about_a_dag_is_loaded(dags: dict[str, dict[str, Any]]) -> None:
    assert load(dags) == {build_asset_key("sales", dag_id) for dag_id in dags}


@pytest.mark.parametrize(
    "dag_ids", [["x", "x__dag_run"], ["x", "x__ready"], ["a.b", "a-b", "A.b"], ["conf", "class"]]
)
def test_dags_whose_names_are_alike_have_outputs_of_their_own(dag_ids: list[str]) -> None:
    declaration = build_declaration("sales", **{dag_id: ["sales/up"] for dag_id in dag_ids})
    specs = build_specs(declaration, None, set())
    client = build_client(declaration, "`auth`")
    built = build_execution(client, declaration.downstreams, specs)
    assert built.keys == {build_asset_key("sales", dag_id) for dag_id in dag_ids}
    # An asset and its checks `dag_run` and `ready` each.
    assert len({output.name for output in built.op.output_defs}) == 3 * len(dag_ids)
