"""The definitions of this code location."""

from pathlib import Path

import dagster as dg

from federation_defs import load_federation


@dg.definitions
def defs() -> dg.Definitions:
    return load_federation(Path(__file__).parent)
