"""Measures fleets of Airflows, ours and dagster-airlift's functions, beside what is aimed at.

`make bench-fleet` measures four sizes, and their parts: M2 and L2 are one of the two deployments,
M3 one of the three, and XL4 one of the four, that a fleet is split into if one Dagster daemon can't
serve it. Each has two cores of its own, and costs add up. All of it is real but the Airflows, which
are one process that answers as Airflow does (`airflows.py`). Our fleets are Airflow 3. Airlift's,
which can't read that, are Airflow 2. Ours runs with the settings of `deployment/dagster.yaml`, and
airlift's with Dagster's defaults and the sensors of its tutorial. Sizes from L on are kept in
PostgreSQL, behind PgBouncer.

- worker: CPU seconds and memory (PSS, which counts shared memory once) of a run worker, at the
  moment in which its trigger arrives at the Airflow. The run is launched by hand, in a deployment
  without a daemon, so that nothing else happens. Airlift's steps are processes of their own, which
  count too. The contender "floor" is the smallest Dagster run that triggers a DAG, without our code
  and a client library (`smallest_worker.py`).
- server: CPU seconds and memory of a code server, from its start until it has told all that it has,
  as to a webserver. Ours has its state on disk. Airlift's reads the Airflows.
- idle: CPU seconds a minute of code server, daemon, webserver, run workers, PostgreSQL and
  PgBouncer while nothing ends, after every instance was polled twice, and Dagster's daemon has
  stored of each asset how fresh it is; and in that time, the longest time between two polls of an
  instance, between two ticks of a sensor that decides by conditions when its DAGs run, and from the
  end of a tick to the next one of a sensor that decides by events, as a tick reads them every few
  seconds (from two on S and M to six on L). The floor has sensors that do nothing, with the same
  intervals, or of ten seconds where ours tick as rarely: it is what they cost in Dagster itself.
- latency: seconds from the end of an upstream run to the trigger of its downstream DAG. Runs of
  upstream DAGs end one after the other at a fixed rate. Downstream runs take 2 seconds. An end
  without a trigger two minutes after the last end counts as infinite.

`worker` and `server` are medians. Beside each figure is what else the machine was busy with: load
average, and the cores that went to other processes and were stolen by the host. Above 0.3 cores,
the figure has to be measured again.

`make` and `serve` are for profiling: they write a project of a fleet, with its state, and serve its
Airflows.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import dagster as dg
import requests

from tests.bench.fleet.airflows import FleetOfAirflows
from tests.bench.fleet.deployment import FailedError
from tests.bench.fleet.measures import (
    Contender,
    Figure,
    measure_idle,
    measure_latency,
    measure_server,
    measure_worker,
    running,
)
from tests.bench.fleet.pooler import start_pooler
from tests.bench.fleet.sizes import SIZES, build_environment, refresh_state
from tests.contract.postgres import start_postgres
from tests.processes import end_on_signals

PORT = 8791
CONTENDERS = ("ours", "floor", "airlift")
# How Dagster's processes, and the requests to them, end when a fleet is too large.
FAILURES = (FailedError, AssertionError, dg.DagsterError, requests.RequestException)
TITLES = {
    "worker": "run worker until its trigger",
    "server": "code server from state",
    "idle": "idle, all processes",
    "intervals": "longest intervals while idle",
    "latency": "upstream end to trigger",
}
MEASURES = ("worker", "server", "idle", "latency")
# What is aimed at, by measure and size.
TARGETS = {
    "worker": {"S": "1.3 s, 125 MB", "M": "1.6 s, 130 MB", "L": "3 s, 180 MB", "XL": "4 s, 200 MB"},
    "server": {"S": "2 s", "M": "4 s", "L": "15 s", "XL": "20 s"},
    "idle": {"S": "6 s", "M": "12 s", "L": "45 s", "XL": "60 s"},
    "intervals": {"S": "6 s"}
    | dict.fromkeys(("M", "M2", "M3"), "10 s")
    | dict.fromkeys(("L", "L2"), "20 s")
    | dict.fromkeys(("XL", "XL4"), "30 s"),
    "latency": {"S": "p95 10 s"}
    | dict.fromkeys(("M", "M2", "M3"), "p95 15 s")
    | dict.fromkeys(("L", "L2", "XL", "XL4"), "p95 60 s"),
}


class Table:
    """Prints figures as they are found, and remembers those to measure again."""

    def __init__(self) -> None:
        self.to_repeat: list[str] = []

    def show(self, size: str, contender: str, measure: str, figure: Figure) -> None:
        target = TARGETS[measure].get(size) if contender == "ours" else None
        aimed = f"   (at most {target})" if target else ""
        line = f"  {TITLES[measure]:<28}  {contender:<7}  {figure.text}{aimed}   [{figure.load}]"
        print(line, flush=True)
        if figure.load.is_too_high:
            self.to_repeat.append(f"{size} {contender} {measure}")

    def show_failure(self, contender: str, measure: str, error: Exception) -> None:
        why = str(error).strip()[-400:]
        print(f"  {TITLES[measure]:<28}  {contender:<7}  failed: {why}", flush=True)


def measure(options: argparse.Namespace) -> None:
    folder, table = Path(tempfile.mkdtemp(prefix="bench-fleet-")), Table()
    try:
        with ExitStack() as stack:
            server = None
            for fleet in (SIZES[size] for size in options.sizes):
                print(f"\n{fleet.name}: {fleet}", flush=True)
                if fleet.uses_postgres and server is None:
                    server = stack.enter_context(start_postgres())
                    if not options.without_pooler:
                        server = stack.enter_context(start_pooler(server))
                storage = server if fleet.uses_postgres else None
                for name in options.contenders:
                    own = folder / f"{fleet.name}-{name}"
                    with closing(Contender(name, fleet, own, storage)) as contender:
                        measure_contender(contender, table, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if table.to_repeat:
        print(f"\nMeasure again, as others were busy: {', '.join(table.to_repeat)}")


def measure_contender(contender: Contender, table: Table, options: argparse.Namespace) -> None:
    size, name = contender.fleet.name, contender.name
    starts = {"worker": measure_worker, "server": measure_server}
    if name == "floor":
        del starts["server"]
    for kind in [kind for kind in starts if kind in options.only]:
        try:
            table.show(size, name, kind, starts[kind](contender, options.rounds))
        except FAILURES as error:
            table.show_failure(name, kind, error)
    kinds = [kind for kind in ("idle", "latency") if kind in options.only]
    if name == "floor":
        kinds = [kind for kind in kinds if kind == "idle"]
    if not kinds:
        return
    try:
        with running(contender) as deployment:
            if "idle" in kinds:
                cost, intervals = measure_idle(contender, deployment, options.idle_minutes * 60)
                table.show(size, name, "idle", cost)
                table.show(size, name, "intervals", intervals)
            if "latency" in kinds:
                latency = measure_latency(contender, options.minutes * 60)
                table.show(size, name, "latency", latency)
    except FAILURES as error:
        table.show_failure(name, kinds[0], error)


def make(options: argparse.Namespace) -> None:
    fleet, folder = SIZES[options.size], Path(options.folder)
    fleet.write_project(folder)
    with FleetOfAirflows(fleet, "v2", options.port) as airflows:
        refresh_state(folder, airflows.url)
        variables = build_environment(airflows.url).items()
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables))


def serve(options: argparse.Namespace) -> None:
    airflows = FleetOfAirflows(SIZES[options.size], options.api, options.port)
    with airflows, suppress(KeyboardInterrupt):
        print(airflows.url, flush=True)
        airflows.set_rate(options.ends)
        airflows.wait()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(act=measure)
    names = parse_names(SIZES)
    sizes = ["S", "M", "M2", "M3", "L", "L2", "XL", "XL4"]
    parser.add_argument("--sizes", type=names, default=sizes)
    parser.add_argument("--only", type=parse_names(MEASURES), default=MEASURES)
    parser.add_argument("--contenders", type=parse_names(CONTENDERS), default=CONTENDERS)
    parser.add_argument(
        "--without-pooler", action="store_true", help="L and XL: PostgreSQL without PgBouncer"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of worker and server")
    parser.add_argument("--idle-minutes", type=float, default=2)
    parser.add_argument("--minutes", type=float, default=5, help="of ends, for the latency")
    commands = parser.add_subparsers(title="for profiling")
    make_parser = commands.add_parser("make", help="write a project with its state")
    make_parser.add_argument("--folder", required=True, help="is created")
    make_parser.set_defaults(act=make)
    serve_parser = commands.add_parser("serve", help="serve the Airflows until Ctrl-C")
    serve_parser.add_argument("--api", choices=["v1", "v2"], default="v2")
    serve_parser.add_argument("--ends", type=float, default=0, help="of upstream runs per second")
    serve_parser.set_defaults(act=serve)
    for command in (make_parser, serve_parser):
        command.add_argument("--size", choices=SIZES, required=True)
        command.add_argument("--port", type=int, default=PORT)
    return parser


def parse_names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return names

    return parse


def main() -> None:
    end_on_signals()
    options = build_parser().parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
