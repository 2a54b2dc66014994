"""Dagster's entry point: the federation of the instances under `defs/`."""

from pathlib import Path

import dagster as dg

from federation_defs.loading import load_federation


@dg.definitions
def defs() -> dg.Definitions:
    return load_federation(Path(__file__).parent)
