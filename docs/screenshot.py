"""Takes the README's screenshot of the running demo's lineage graph, in a headless Chromium.

apt-get install chromium
make demo          # in one terminal
make trigger       # in another; wait until customer_metrics is green
make screenshot
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from dotenv import dotenv_values
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
SCREENSHOT = ROOT / "docs" / "lineage.png"


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
        page = browser.new_page(viewport={"width": 1400, "height": 1180})
        page.goto(f"http://127.0.0.1:{port}/asset-groups")
        for instance in ("warehouse", "metrics"):
            label = page.get_by_text(instance, exact=True).locator("visible=true")
            label.nth(1).wait_for(timeout=60_000)  # the first is in the list beside the graph
        page.keyboard.press("Alt+E")  # the graph opens with one box per Airflow
        for dag_id in ("load_customers", "customer_metrics"):
            page.get_by_text(dag_id, exact=True).first.wait_for(timeout=60_000)
        page.wait_for_function("!document.body.innerText.includes('Loading')", timeout=60_000)
        page.screenshot(path=SCREENSHOT)
        browser.close()
    print(f"wrote {SCREENSHOT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
