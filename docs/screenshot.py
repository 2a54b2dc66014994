"""Takes the README's screenshot of the running demo's lineage graph, in a headless Chromium.

make install-chromium  # as root, on Debian
make demo              # in one terminal
make trigger           # in another; also DAG=load_products, DAG=load_sales, DAG=load_orders FAIL=1
make screenshot        # when the DAGs have ended
"""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import dotenv_values
from playwright.sync_api import FloatRect

from tests.browser import TIMEOUT_MS, find_box, open_browser

ROOT = Path(__file__).parents[1]
SCREENSHOT = ROOT / "docs" / "lineage.png"
WIDTH, HEIGHT = 1000, 1600
ENDS = ("customer_metrics", "load_sales", "export_ca…_metrics")  # of the graph


def main() -> None:
    port = os.environ.get("DAGSTER_PORT") or dotenv_values(ROOT / ".env")["DAGSTER_PORT"]
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"http://127.0.0.1:{port}/asset-groups")
        for instance in ("warehouse", "metrics"):
            label = page.get_by_text(instance, exact=True).locator("visible=true")
            label.nth(1).wait_for(timeout=TIMEOUT_MS)  # the first is in the list beside the graph
        page.get_by_text("Hide navigation").click()
        page.keyboard.press("Alt+E")  # the graph opens with one box per Airflow
        page.get_by_text("load_customers", exact=True).first.wait_for(timeout=TIMEOUT_MS)
        page.mouse.move(WIDTH * 0.7, HEIGHT / 2)
        page.keyboard.down("Control")
        page.mouse.wheel(0, 450)  # farther away, nodes show their names only
        page.keyboard.up("Control")
        page.mouse.dblclick(WIDTH - 40, HEIGHT / 2)  # as large as the whole graph can be
        page.mouse.move(5, HEIGHT / 2)  # no edge is highlighted
        boxes = [find_box(page.get_by_text(name, exact=True).last) for name in ENDS]
        page.wait_for_function("!document.body.innerText.includes('Loading')", timeout=TIMEOUT_MS)
        left = min(box["x"] for box in boxes) - 30
        right = max(box["x"] + box["width"] for box in boxes) + 30
        top = min(box["y"] for box in boxes) - 90
        bottom = max(box["y"] + box["height"] for box in boxes) + 30
        clip = FloatRect(x=left, y=top, width=right - left, height=bottom - top)
        page.screenshot(path=SCREENSHOT, clip=clip)
    print(f"wrote {SCREENSHOT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
