"""Takes the README's screenshot of the running demo's lineage graph, in a headless Chromium.

apt-get install chromium
make demo          # in one terminal
make trigger       # in another; also DAG=load_products, DAG=load_sales, DAG=load_orders FAIL=1
make screenshot    # when the DAGs have ended
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from dotenv import dotenv_values
from playwright.sync_api import FloatRect, Page, sync_playwright

ROOT = Path(__file__).parents[1]
SCREENSHOT = ROOT / "docs" / "lineage.png"
WIDTH, HEIGHT = 1000, 1600
ENDS = ("customer_metrics", "load_sales", "export_ca…_metrics")  # of the graph


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no chromium. On Debian: apt-get install chromium")
    port = os.environ.get("DAGSTER_PORT") or dotenv_values(ROOT / ".env")["DAGSTER_PORT"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"http://127.0.0.1:{port}/asset-groups")
        for instance in ("warehouse", "metrics"):
            label = page.get_by_text(instance, exact=True).locator("visible=true")
            label.nth(1).wait_for(timeout=60_000)  # the first is in the list beside the graph
        page.get_by_text("Hide navigation").click()
        page.keyboard.press("Alt+E")  # the graph opens with one box per Airflow
        page.get_by_text("load_customers", exact=True).first.wait_for(timeout=60_000)
        page.mouse.move(WIDTH * 0.7, HEIGHT / 2)
        page.keyboard.down("Control")
        page.mouse.wheel(0, 450)  # farther away, nodes show their names only
        page.keyboard.up("Control")
        page.mouse.dblclick(WIDTH - 40, HEIGHT / 2)  # as large as the whole graph can be
        page.mouse.move(5, HEIGHT / 2)  # no edge is highlighted
        boxes = [find_box(page, name) for name in ENDS]
        page.wait_for_function("!document.body.innerText.includes('Loading')", timeout=60_000)
        left = min(box["x"] for box in boxes) - 30
        right = max(box["x"] + box["width"] for box in boxes) + 30
        top = min(box["y"] for box in boxes) - 90
        bottom = max(box["y"] + box["height"] for box in boxes) + 30
        clip = FloatRect(x=left, y=top, width=right - left, height=bottom - top)
        page.screenshot(path=SCREENSHOT, clip=clip)
        browser.close()
    print(f"wrote {SCREENSHOT.relative_to(ROOT)}")


def find_box(page: Page, name: str) -> FloatRect:
    """Return where a node is, once it has stopped moving."""
    node, deadline = page.get_by_text(name, exact=True).last, time.monotonic() + 60
    before, box = None, node.bounding_box()
    while before != box or box is None:
        if time.monotonic() > deadline:
            sys.exit(f"{name} is not shown, or does not stand still.")
        page.wait_for_timeout(1000)
        before, box = box, node.bounding_box()
    return box


if __name__ == "__main__":
    main()
