"""A headless Chromium: for the tests of Dagster's UI, and for the README's picture of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, FloatRect, Locator, expect, sync_playwright

from tests.waiting import wait_for

TIMEOUT_MS = 60_000  # of each step, for a machine that is eight times overloaded


class MissingChromiumError(Exception):
    def __init__(self) -> None:
        super().__init__(
            "No program `chromium` or `google-chrome` is on the PATH. On Debian, run "
            "`make install-chromium` as root. Playwright's own browsers are not used."
        )


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser that reaches this machine only.

    Raises:
        MissingChromiumError: There is none.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise MissingChromiumError
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        # Playwright's own arguments turn off the sandbox, updates and background requests.
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


def find_box(node: Locator) -> FloatRect:
    """Return where a node is, once it has stopped moving."""
    boxes: list[FloatRect | None] = [None]

    def stands_still() -> FloatRect | None:
        boxes.append(node.bounding_box(timeout=TIMEOUT_MS))
        return boxes[-1] if boxes[-1] == boxes[-2] else None

    return wait_for(stands_still, f"{node} stands still", TIMEOUT_MS / 1000)
