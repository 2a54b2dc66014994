"""The benchmarks can be started. `make soak` runs them."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

BENCHMARKS = ["automation", "client", "execute", "federating", "latency", "observe"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_describes_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"tests.bench.{name}").main()
    assert ended.value.code == 0
    assert "options:" in capsys.readouterr().out
