"""`docs/time.md` shows declarations that are accepted or refused as it says, and which partitions
belong together."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from federation_defs.declaration import PartitionsDeclaration, parse_declaration
from federation_defs.partition_mapping import PartitionMapping, build_mappings
from federation_defs.partitions import Partitioning
from tests.unit.build import build_run
from tests.unit.pages import Block, check_block, find_blocks, read_block

PAGE = (Path(__file__).parents[2] / "docs" / "time.md").read_text()
BLOCKS = find_blocks(PAGE)
MAPPED = re.findall(r"^```yaml\n([^`]*)^```\n\n```text\n([^`]*)^```$", PAGE, re.MULTILINE)
DATED = re.findall(
    r"^\| .* \| (2026-\S+) \| (2026-\S+) \| (2026-\S+) \| `(\w+)` \| (2026-\S+) \|$",
    PAGE,
    re.MULTILINE,
)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_declarations_are_accepted_or_refused_as_the_page_says(block: Block) -> None:
    check_block(block)


def build_mapping(text: str) -> PartitionMapping:
    """Build the mapping of the one DAG in a block that has partitions and depends on another."""
    instances = {name: parse_declaration(values, name) for name, values in read_block(text).items()}
    dags = [dag for instance in instances.values() for dag in instance.downstreams.values()]
    ((mapping,),) = [build_mappings(dag, instances) for dag in dags]
    return mapping


@pytest.mark.parametrize(("text", "shown"), MAPPED)
def test_partitions_belong_together_as_the_page_says(text: str, shown: str) -> None:
    mapping, now = build_mapping(text), datetime.now(timezone.utc)
    for line in shown.splitlines():
        upstream, _, downstream = line.partition(" ──▶ ")
        if mapping.upstream is None:
            moment = datetime.fromisoformat(upstream).replace(tzinfo=timezone.utc)
            assert mapping.find_updated(None, moment) == [downstream]
            continue
        keys, count = mapping.find_needed(downstream)
        listed = " … ".join(dict.fromkeys([keys[0], keys[-1]]))
        assert f"{listed} ({count})" == upstream
        assert downstream in mapping.find_updated(keys[-1], now)


@pytest.mark.parametrize(("logical_date", "start", "end", "date", "partition"), DATED)
def test_a_run_belongs_to_the_partition_that_the_page_says(
    logical_date: str, start: str, end: str, date: str, partition: str
) -> None:
    dates = [datetime.fromisoformat(f"{day}T00:00+00:00") for day in (logical_date, start, end)]
    names = ("logical_date", "data_interval_start", "data_interval_end")
    run = build_run("any", "any", **dict(zip(names, dates, strict=True)))
    declared = {"cron": "@daily", "start": "2025-12-01", "date": date}
    partitioning = Partitioning(PartitionsDeclaration.model_validate(declared))
    assert partitioning.find_partition(run).key == partition


def test_the_page_shows_mappings_dates_refusals_and_every_key() -> None:
    assert (len(MAPPED), len(DATED)) == (7, 4)
    assert [bool(block.refusal) for block in BLOCKS].count(True) == 2
    keys = {*PartitionsDeclaration.model_fields, "granularity", "window", "at_once"}
    assert not {key for key in keys if not re.search(rf"\b{key}: ", PAGE)}
