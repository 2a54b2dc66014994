"""The package as a library, without the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from tests.conftest import ROOT


def test_the_wheel_contains_the_library_and_not_the_demo(tmp_path: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")  # set by `uv run`
    assert uv
    build = [uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "federation_defs/component.py" in names
    assert "federation_defs/py.typed" in names
    assert "federation_defs/definitions.py" not in names
    assert not [name for name in names if name.startswith("federation_defs/defs/")]
