"""Logs of any length and content, read as they come."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from werkzeug import Response

from federation_defs.airflow.models import TaskInstance
from federation_defs.airflow.runs import MAX_LOG_BYTES
from federation_defs.errors import UnreachableError
from federation_defs.outcome import LOG_TAIL_LINES, Outcome, add_log_tails
from tests.contract.clients import (
    SHORT_TIMEOUTS,
    SIGN_INS,
    ProxiedAirflow,
    call_within,
    check_all_faults,
    declare_client,
)
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.fault_proxy import Fault as Broken
from tests.contract.fakes.fault_proxy import close, reset, stall
from tests.contract.fakes.faults import Fault, answer

LOG = asks("GET", ".*/logs/1")
TASK = TaskInstance("load", -1, "failed", 1)
TYPES = {"v1": "text/plain", "v2": "application/x-ndjson"}


@pytest.fixture
def failed(airflow: Airflow) -> Airflow:
    """A fake Airflow with a failed run, and a client for a machine that is slow."""
    airflow.database.add_dag("a")
    airflow.database.finish_run(airflow.database.start_run("a", "mine"), "failed")
    http = {"read_timeout": 120, "answer_timeout": 500, "max_connections": 1}
    client = declare_client(airflow.server.url, SIGN_INS[airflow.server.api], http=http)
    client.fetch_version()
    return Airflow(airflow.server, client)


def send(airflow: Airflow, lines: Iterable[str]) -> None:
    """Let the next log have these lines, which are made while they are sent."""
    api = airflow.server.api

    def build() -> Iterator[bytes]:
        for line in lines:
            text = line if api == "v1" else json.dumps({"event": line, "level": "info"})
            yield f"{text}\n".encode()

    airflow.server.fail_next(LOG, lambda _: Response(build(), content_type=TYPES[api]))


def read_tail(airflow: Airflow) -> str:
    """Return what is shown of the log of the failed task."""
    run = airflow.client.fetch_run("a", "mine")
    assert run is not None
    outcome = Outcome(run, is_success=False, tasks=[TASK])
    return add_log_tails(airflow.client, outcome).log_tails["load"]


def test_the_end_of_a_log_of_fifty_megabytes_takes_little_memory(failed: Airflow) -> None:
    line = "0123456789" * 1000
    count = 50_000_000 // len(line)
    send(failed, (f"{line} {number}" for number in range(count)))
    tracemalloc.start()
    try:
        shown = call_within(300, lambda: read_tail(failed))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shown.splitlines()[-2].endswith(f"0123456789 {count - 1}")
    assert peak < 5_000_000, f"{peak / 1e6:.0f} MB"


def test_only_the_last_lines_are_shown(failed: Airflow) -> None:
    send(failed, (f"line {number}" for number in range(1000)))
    lines = [f"line {number}" for number in range(1000 - LOG_TAIL_LINES, 1000)]
    assert read_tail(failed).splitlines() == ["```", *lines, "```"]


def test_a_log_without_an_end_is_left_and_says_so(failed: Airflow) -> None:
    line = "0123456789" * 50_000

    def go_on() -> Iterator[str]:
        while True:
            yield line

    send(failed, go_on())
    shown = call_within(300, lambda: read_tail(failed))
    assert shown.splitlines()[-2] == "… (longer than 64 MB: read the rest in Airflow)"
    assert len(shown) < 10_000
    assert MAX_LOG_BYTES == 64_000_000
    assert len(failed.client.fetch_dags()) == 1


def test_a_line_without_an_end_is_read_in_parts(failed: Airflow) -> None:
    send(failed, ["x" * 10_000_000])
    log = failed.client.fetch_log("a", "mine", TASK, 5000)
    assert len(log) == 5000
    assert "xxxxxxxx" in log


def test_a_log_is_cut_to_the_characters_that_are_asked_for(failed: Airflow) -> None:
    for at_most in (1, 5, 6, 7, 11, 12, 13, 100):
        send(failed, ["first", "second"])
        assert failed.client.fetch_log("a", "mine", TASK, at_most) == "first\nsecond"[-at_most:]


def test_what_acts_on_a_terminal_is_not_in_what_is_shown(failed: Airflow) -> None:
    send(failed, ["\x1b[31mred\x1b[0m", "right\u202eleft", "10 %\r20 %"])
    assert read_tail(failed) == "```\nred\nrightleft\n10 %\n20 %\n```"


def test_a_fence_in_a_log_does_not_end_the_block(failed: Airflow) -> None:
    send(failed, ["before", "````", "![](http://x.example/track.png)"])
    assert read_tail(failed) == "`````\nbefore\n````\n![](http://x.example/track.png)\n`````"


def test_an_error_in_place_of_a_log_is_no_markdown(failed: Airflow) -> None:
    failed.server.fail_next(LOG, answer(403, {"detail": "[x](http://x.example)"}))
    begin, error, end = read_tail(failed).splitlines()
    assert (begin, end) == ("```", "```")
    assert "[x](http://x.example)" in error


def test_lines_of_airflow_3_may_be_plain_text_or_any_json(airflow_v2: Airflow) -> None:
    """3.0 has plain lines for tasks that 2.x ran."""
    airflow_v2.database.add_dag("a")
    airflow_v2.database.finish_run(airflow_v2.database.start_run("a", "mine"), "failed")
    error = {"exc_type": "ValueError", "exc_value": "no rows", "frames": [5]}
    lines = [
        "plain",
        "[1, 2]",
        "5",
        '{"event": "half',
        "[" * 100_000,
        "{}",
        json.dumps({"event": 5, "error_detail": 5}),
        json.dumps({"event": "failed", "error_detail": [error, None, {"exc_type": 5}]}),
    ]
    text = "\n".join(lines)
    airflow_v2.server.fail_next(LOG, lambda _: Response(text, content_type=TYPES["v2"]))
    log = airflow_v2.client.fetch_log("a", "mine", TASK)
    read = ["plain", "[1, 2]", "5", '{"event": "half', "[" * 100_000, "", "5", "failed"]
    assert log.split("\n") == [*read, "ValueError: no rows"]


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_log_that_breaks_off_is_an_error_and_leaves_the_connection(api: str) -> None:
    faults = {"closed": close(50, in_body=True), "reset": reset(50, in_body=True)}
    faults["stalled"] = stall(50, in_body=True)

    def check(proxied: ProxiedAirflow, fault: Broken) -> None:
        database = proxied.server.database
        run = database.finish_run(database.start_run("load_customers", "mine"), "failed")
        run.tasks[-1].log = ["0123456789"] * 1000
        for _ in range(2):
            proxied.proxy.fail_next(fault, "GET .*/logs/1")
            with pytest.raises(UnreachableError):
                proxied.client.fetch_log("load_customers", "mine", TASK)
        log = proxied.client.fetch_log("load_customers", "mine", TASK)
        assert log.count("0123456789") == 1000

    check_all_faults(faults, check, api, max_connections=1, **SHORT_TIMEOUTS)


@pytest.mark.parametrize("fault", [answer(500, {"detail": "no"}), answer(503, "<h1>busy</h1>")])
def test_a_log_that_is_refused_at_first_is_asked_for_again(failed: Airflow, fault: Fault) -> None:
    failed.server.fail_next(LOG, fault, times=2)
    assert "could not read" in failed.client.fetch_log("a", "mine", TASK)
