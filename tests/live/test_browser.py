"""What a person sees and clicks in Dagster's UI (1.13).

The tests find what they look for by its role and its visible text. What a page showed at the end of
a test, and what it wrote to its console, is in the test's temporary folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, WebError, expect

from tests.browser import TIMEOUT_MS, find_box, open_browser
from tests.live.federation import (
    BURST,
    PACED,
    Federation,
    set_duration,
    set_variable,
    trigger,
    utc_now,
    wait_for_state,
)
from tests.waiting import wait_for

FAILING = "load_payments"  # the other loads happen meanwhile (`test_dependencies.py`)


@pytest.fixture(scope="module")
def context(federation: Federation) -> Iterator[BrowserContext]:
    """The context of all tests: each new one would load and compile Dagster's UI again."""
    with open_browser() as browser:
        context = browser.new_context(
            base_url=federation.dagster.url, viewport={"width": 1400, "height": 1000}
        )
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        context.close()


@pytest.fixture
def page(context: BrowserContext, federation: Federation, tmp_path: Path) -> Iterator[Page]:
    """A page of a person who is not signed in anywhere and has set nothing in Dagster's UI."""
    messages = list[str]()

    def note_message(message: ConsoleMessage) -> None:
        messages.append(f"{message.type}: {message.text}")

    def note_error(error: WebError) -> None:
        messages.append(str(error.error))

    context.on("console", note_message)
    context.on("weberror", note_error)
    page = context.new_page()
    forget(page, federation.dagster.url)
    yield page
    for number, shown in enumerate(context.pages):
        shown.screenshot(path=tmp_path / f"page_{number}.png")
        messages.append(f"page_{number}.png shows {shown.url}")
    (tmp_path / "console.txt").write_text("\n".join(messages))
    sys.stdout.write(f"What the pages showed is in {tmp_path}.\n")  # told if the test failed
    for shown in context.pages:
        shown.close()
    context.remove_listener("console", note_message)
    context.remove_listener("weberror", note_error)


def forget(page: Page, url: str) -> None:
    """Delete all cookies and what an origin's pages have stored, but no program that is cached."""
    page.context.clear_cookies()
    devtools = page.context.new_cdp_session(page)
    stored = {"origin": url, "storageTypes": "indexeddb,local_storage"}
    devtools.send("Storage.clearDataForOrigin", stored)
    devtools.detach()


@pytest.fixture(scope="module")
def failed_run(federation: Federation) -> Iterator[str]:
    """The id of a run that fails while other tests look at other pages."""
    warehouse = federation.clients["warehouse"]
    set_variable(warehouse, f"{FAILING}__fail", "true")
    try:
        run_id = trigger(warehouse, FAILING)
        yield run_id
        wait_for_state(warehouse, FAILING, run_id, "failed")  # not before it has read the Variable
    finally:
        set_variable(warehouse, f"{FAILING}__fail", None)


@pytest.mark.usefixtures("failed_run")
def test_the_lineage_shows_both_airflows_and_the_edge_between_two_dags(page: Page) -> None:
    page.goto("/asset-groups")  # one box per Airflow
    for instance in ("warehouse", "metrics"):
        expect(find_in_graph(page, instance)).to_be_visible()
    page.goto("/assets/metrics/dag/customer_metrics")
    page.get_by_role("tab", name="Lineage").click()
    for instance in ("warehouse", "metrics"):
        expect(find_in_graph(page, instance)).to_be_visible()
    upstream = find_box(find_in_graph(page, "load_customers"))
    downstream = find_box(find_in_graph(page, "customer_metrics"))
    edge = find_box(page.locator("path[marker-end]"))
    assert upstream["x"] < edge["x"]
    assert edge["x"] + edge["width"] <= downstream["x"]
    assert upstream["y"] < edge["y"] < upstream["y"] + 200


def find_in_graph(page: Page, text: str) -> Locator:
    return page.locator("svg", has=page.locator("foreignObject")).get_by_text(text, exact=True)


def test_an_assets_page_shows_its_dag_its_last_run_and_plots(
    page: Page, federation: Federation
) -> None:
    since, warehouse = utc_now(), federation.clients["warehouse"]
    run_id = trigger(warehouse, BURST)
    run = wait_for_state(warehouse, BURST, run_id, "success")
    federation.wait_for_materialization("warehouse", BURST, run, since)

    page.goto(f"/assets/warehouse/dag/{BURST}")
    description = f"Materialized by each successful run of DAG {BURST} in Airflow warehouse."
    expect(page.get_by_role("paragraph").filter(has_text=description)).to_be_visible()
    rows = {
        "Run ID": run_id,
        "State": "success",
        "Run type": "manual",
        "Link to DAG": f"{federation.proxies['warehouse'].url}/dags/{BURST}/grid",
        "Schedule": "none",
    }
    for label, value in rows.items():
        expect(find_row(page, label)).to_contain_text(value)
    expect(find_row(page, "Duration (s)")).to_contain_text(re.compile(r"\d"))
    for label in ("Airflow", "Dag", "contract"):  # its kinds and its tag
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    page.get_by_role("button", name="Plots").click()
    for label in ("Duration (s)", "Lag (s)"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()


def find_row(page: Page, label: str) -> Locator:
    """Find the row of a table of metadata."""
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=label, exact=True))


def test_a_failed_check_is_red_and_says_why(
    page: Page, federation: Federation, failed_run: str
) -> None:
    warehouse = federation.clients["warehouse"]
    wait_for_state(warehouse, FAILING, failed_run, "failed")
    page.goto(f"/assets/warehouse/dag/{FAILING}?view=checks")
    message = page.get_by_text(f"Run {failed_run} failed. Failed tasks: load.", exact=True)
    expect(message).to_be_visible()
    # In the list of checks, and as the result.
    for text in page.get_by_text("Failed", exact=True).all():
        expect(text).to_be_visible()
    result = page.get_by_text("Failed", exact=True).last
    red, green, blue = re.findall(r"\d+", result.evaluate("it => getComputedStyle(it).color"))[:3]
    assert int(red) > int(green) + int(blue)

    find_row(page, "Log of load").get_by_text("[Show Markdown]").click()
    dialog = page.get_by_role("dialog")
    reason = f"because the Variable {FAILING}__fail is 'true'. Delete it."
    expect(dialog).to_contain_text(reason)
    dialog.get_by_role("button", name="Close").click()
    assert_link_opens_run(page, federation, "warehouse", failed_run)


def assert_link_opens_run(page: Page, federation: Federation, name: str, run_id: str) -> None:
    """Follow a link to a run, and sign in there, as a person does."""
    with page.expect_popup() as popup:
        find_row(page, "Link to run").get_by_role("link", name=run_id).click()
    airflow = popup.value
    airflow.get_by_label("Username").fill(
        federation.dagster.env[f"{name.upper()}_AIRFLOW_USERNAME"]
    )
    airflow.get_by_label("Password").fill(
        federation.dagster.env[f"{name.upper()}_AIRFLOW_PASSWORD"]
    )
    airflow.get_by_role("button", name="Sign in").click()
    expect(airflow.get_by_role("heading", name=run_id)).to_be_visible()


def test_a_click_materializes_and_shows_the_run_in_airflow(
    page: Page, federation: Federation
) -> None:
    set_duration(federation.clients["metrics"], 0)
    asset = f"/assets/metrics/dag/{PACED}"
    page.goto(asset)
    known = federation.dagster.fetch_runs(PACED)
    page.get_by_role("button", name="Materialize").first.click()

    def find_new() -> str | None:
        runs = federation.dagster.fetch_runs(PACED)
        return runs[0].run_id if len(runs) > len(known) else None

    run_id = wait_for(find_new, "the click has launched a run")
    page.goto("about:blank")  # drawing the page takes CPU time that the run needs
    assert federation.dagster.wait_for_run(run_id) == "SUCCESS"
    airflow_run_id = f"dagster__{run_id}"
    page.goto(asset)
    expect(find_row(page, "Run ID")).to_contain_text(airflow_run_id)
    assert_link_opens_run(page, federation, "metrics", airflow_run_id)


def test_each_sensor_has_a_switch(page: Page, federation: Federation) -> None:
    page.goto("/automation")
    names = ("observation", "automation", "events")
    switches = {f"warehouse__{name}": find_switch(page, f"warehouse__{name}") for name in names}
    for is_on in (False, True):
        for switch in switches.values():
            expect(switch).to_be_checked(checked=not is_on)
        wait_for(
            lambda is_on=is_on: switch_all(federation, switches, is_on=is_on),
            f"{', '.join(switches)} are {'on' if is_on else 'off'}",
            interval_s=1,
        )


def find_switch(page: Page, sensor: str) -> Locator:
    link = page.get_by_role("link", name=sensor)
    row = page.locator("div", has=link).filter(has=page.get_by_role("checkbox")).last
    return row.get_by_role("checkbox").nth(1)  # the first one selects the row


def switch_all(federation: Federation, switches: Mapping[str, Locator], *, is_on: bool) -> bool:
    """Click the switches of sensors that are not on, or off, yet. Return whether all are."""
    late = [sensor for sensor in switches if is_running(federation, sensor) != is_on]
    for sensor in late:
        click_again(switches[sensor], is_on=is_on)
    return not late


def click_again(switch: Locator, *, is_on: bool) -> None:
    """Click a switch that is not there yet: a click on a row that is just drawn anew is lost. It is
    disabled while a change is stored."""
    if switch.is_enabled() and switch.is_checked() != is_on:
        switch.locator("..").click()


def is_running(federation: Federation, sensor: str) -> bool:
    states = federation.event_log.all_instigator_state()
    return next(state.is_running for state in states if state.instigator_name == sensor)
