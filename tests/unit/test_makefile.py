from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_settings_of_the_demo_are_for_their_owner_only(tmp_path: Path) -> None:
    """They hold passwords."""
    for name in ("Makefile", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["make", "--directory", tmp_path, ".env"], check=True, timeout=60)  # noqa: S607
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".env").read_text() == (ROOT / ".env.example").read_text()
