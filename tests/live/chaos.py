"""What chaos tests share: how much of it, chance that can be repeated, and figures."""

from __future__ import annotations

import os
import random
import time

# `make soak` sets more of each.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
THREADS = min(20, 8 * ROUNDS)  # that trigger the same runs; each request costs a password hash
CONCURRENT_TRIGGERS = int(os.environ.get("CHAOS_BURST", "3"))


def make_random() -> random.Random:
    """Return a random generator with a printed seed. Set CHAOS_SEED to repeat a run."""
    seed = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 1_000_000)
    report(f"CHAOS_SEED={seed}")
    return random.Random(seed)  # noqa: S311 - no secrets are made of it


def report(figures: str) -> None:
    """Print figures, which `make soak` shows."""
    print(f"\n{figures}", end="", flush=True)  # noqa: T201
