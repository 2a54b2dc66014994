"""A DAG's dependencies in words, for its description in the UI."""

from __future__ import annotations

from collections.abc import Sequence

from federation_defs.declaration.dag import DagDeclaration
from federation_defs.declaration.dependency import DependencyDeclaration

_NAMED = 10  # upstreams
_STATES = {
    "success": "succeeded",
    "failure": "failed",
    "finished": "ended",
    "late": "missed its deadline",
    "slow": "exceeded its max_duration",
}
_RERUNS = {
    "follow": "",
    "ignore": " An upstream run that is cleared and ends again starts no other run.",
    "rerun": " When an upstream run is cleared and ends again, the run that it led to is cleared "
    "and run again.",
}


def describe_trigger(dag: DagDeclaration) -> str:
    """Say when Dagster runs a DAG; empty if it does not."""
    if not dag.depends_on:
        return ""
    trigger = dag.trigger
    what = _list(dag.depends_on, "and" if trigger.when == "all" else "or")
    runs, several = "Runs", f", {trigger.at_once if trigger.at_once > 1 else 'one'} at a time"
    if dag.partitions is not None:
        runs, what = "Runs a partition", f"{what} for it"
    if trigger.runs == "each":
        said = f"{runs} once for each time that {what}, in that order{several}"
    elif trigger.when == "all" and len(dag.depends_on) > 1:
        said = f"{runs} when {what}, all since its last run"
    else:
        said = f"{runs} when {what}"
    if dag.partitions is not None and trigger.runs == "latest":
        said += several
    condition = f", if {trigger.only_if} says so" if trigger.only_if else ""
    return f"{said}{condition}.{_describe_granularity(dag)}{_RERUNS[trigger.reruns]}"


def _describe_granularity(dag: DagDeclaration) -> str:
    if dag.granularity == "all":
        return ""
    needed = {"last": "the last one", "any": "any one"}.get(str(dag.granularity), dag.granularity)
    return f" Of an upstream's partitions in its time it needs {needed}."


def _list(dependencies: Sequence[DependencyDeclaration], link: str) -> str:
    """Return clauses such as "a/x or b/y has succeeded or c/z has failed"."""
    by_state: dict[str, list[str]] = {}
    for each in dependencies:
        verb = "was materialized" if each.dag is None else f"has {_STATES[each.state]}"
        by_state.setdefault(verb, []).append(each.name)
    clauses = []
    for verb, names in by_state.items():
        shown = names[:_NAMED]
        if len(names) > _NAMED:
            shown.append(f"{len(names) - _NAMED} more")
        is_plural = link == "and" and len(names) > 1
        plural = verb.replace("has ", "have ", 1).replace("was ", "were ", 1)
        clauses.append(f"{f' {link} '.join(shown)} {plural if is_plural else verb}")
    return f" {link} ".join(clauses)
