"""Measures fleets of Airflows."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench.fleet.airflows import FleetOfAirflows
from tests.bench.fleet.sizes import SIZES, build_environment, refresh_state
from tests.processes import end_on_signals

PORT = 8791


def make(options: argparse.Namespace) -> None:
    """Write a project whose Airflows are served at a port later."""
    fleet, folder = SIZES[options.size], Path(options.folder)
    fleet.write_project(folder)
    with FleetOfAirflows(fleet, "v2", options.port) as airflows:
        refresh_state(folder, airflows.url)
        variables = build_environment(airflows.url).items()
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables))


def serve(options: argparse.Namespace) -> None:
    with FleetOfAirflows(SIZES[options.size], options.api, options.port) as airflows:
        print(airflows.url, flush=True)
        airflows.set_rate(options.ends)
        airflows.wait()


def main() -> None:
    end_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers()
    make_parser = commands.add_parser("make", help="write a project with its state")
    make_parser.add_argument("--folder", required=True, help="is created")
    make_parser.set_defaults(act=make)
    serve_parser = commands.add_parser("serve", help="serve the Airflows until Ctrl-C")
    serve_parser.add_argument("--api", choices=["v1", "v2"], default="v2")
    serve_parser.add_argument("--ends", type=float, default=0.0, help="of upstream runs per second")
    serve_parser.set_defaults(act=serve)
    for command in (make_parser, serve_parser):
        command.add_argument("--size", choices=SIZES, required=True)
        command.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
