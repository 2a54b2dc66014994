from __future__ import annotations

import re

import dagster as dg
import pytest
from dagster._core.definitions.utils import DISALLOWED_NAMES, is_valid_name
from hypothesis import example, given
from hypothesis import strategies as st

from federation_defs.naming import (
    CHECK_NAME,
    build_asset_key,
    build_check_output_name,
    build_dag_id,
    build_output_names,
    build_owner,
    build_run_id,
    build_tag_key,
    parse_root_run_id,
)


def test_an_asset_key_contains_the_unchanged_dag_id() -> None:
    assert build_asset_key("metrics", "a-b.c") == dg.AssetKey(["metrics", "dag", "a-b.c"])


def test_an_asset_key_of_another_instance_has_no_dag_id() -> None:
    assert build_dag_id("metrics", build_asset_key("metrics", "x")) == "x"
    assert build_dag_id("metrics", build_asset_key("warehouse", "x")) is None
    assert build_dag_id("metrics", dg.AssetKey(["metrics", "dag", "x", "task", "y"])) is None


def test_a_run_id_contains_its_dagster_run() -> None:
    assert parse_root_run_id(build_run_id("abc")) == "abc"
    assert parse_root_run_id("manual__2026-01-01T00:00:00+00:00") is None


KEYS = [
    "2025-02-03",
    "2025-02-03-13:00",
    "03/02/2025",
    "a b",
    "a__b",
    "größe",
    "50%",
    "~",
    "+1",
    "",
]


@pytest.mark.parametrize("number", [1, 2, 10])
@pytest.mark.parametrize("partition", [None, *KEYS])
def test_a_run_id_with_any_partition_and_number_contains_its_dagster_run(
    partition: str | None, number: int
) -> None:
    root = "0f9a2e0c-61d5-4a0e-a8f7-1b2c3d4e5f60"
    run_id = build_run_id(root, partition, number)
    assert parse_root_run_id(run_id) == root
    assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run_id)  # what Airflow 3 allows


def test_run_ids_of_different_partitions_and_numbers_differ() -> None:
    pairs = [(key, number) for key in (None, *KEYS) for number in (1, 2, 3)]
    assert len({build_run_id("abc", *pair) for pair in pairs}) == len(pairs)


def test_a_run_id_is_readable() -> None:
    assert build_run_id("abc") == "dagster__abc"
    assert build_run_id("abc", "2025-02-03") == "dagster__abc__2025-02-03"
    assert build_run_id("abc", number=2) == "dagster__abc__retry_2"


@pytest.mark.parametrize(
    "run_id", ["", "dagster", "dagster_abc", "scheduled__dagster__abc", "Dagster__abc"]
)
def test_a_run_id_of_another_trigger_contains_no_dagster_run(run_id: str) -> None:
    assert parse_root_run_id(run_id) is None


# Ids that become equal as Dagster's names, or that Dagster refuses.
DAG_IDS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=6),
    st.from_regex(r"(a|A)[.\-_]?(b|__dag_run|__2)?(__dag_run)?", fullmatch=True),
    st.sampled_from(["x", "x__dag_run", "x__dag_run__2", "X", *sorted(DISALLOWED_NAMES)]),
)


@given(st.sets(DAG_IDS, max_size=12))
@example({"x", "x__dag_run"})
@example({"conf", "a.b", "a-b", "a_b", "größe", ""})
def test_output_names_of_any_dags_and_their_checks_are_valid_and_unique(dag_ids: set[str]) -> None:
    names = build_output_names(dag_ids)
    assert names.keys() == dag_ids
    checks = (build_check_output_name(name, CHECK_NAME) for name in names.values())
    outputs = [*names.values(), *checks]
    assert len(set(outputs)) == len(outputs)
    assert all(map(is_valid_name, outputs))


def test_an_output_is_named_as_its_dag_where_dagster_allows_it() -> None:
    assert build_output_names(["load.orders", "sales"]) == {
        "load.orders": "load_orders",
        "sales": "sales",
    }


@pytest.mark.parametrize(
    ("airflow_owner", "owner"),
    [
        ("ann@example.com", "ann@example.com"),
        ("ann@example.photography", "team:ann@example.photography"),
        ("data eng", "team:data eng"),
    ],
)
def test_an_owner_is_an_address_or_a_team_that_dagster_accepts(
    airflow_owner: str, owner: str
) -> None:
    assert build_owner(airflow_owner) == owner
    dg.AssetSpec("x", owners=[owner])


def test_a_tag_becomes_a_key_that_dagster_accepts() -> None:
    key = build_tag_key("team: sales/eu" + "x" * 100)
    assert key.startswith("team__sales_eu")
    dg.AssetSpec("x", tags={key: ""})
