"""The cursor of observation: how it advances, and what of it is kept in Dagster."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

from federation_defs.observation.cursor import (
    Batch,
    Cursor,
    EvaluatedDeadlines,
    advance,
    build_fingerprint,
)
from tests.unit.build import build_run

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
LATER = NOON + timedelta(minutes=1)
FIRST, SECOND = build_run("a", "first"), build_run("a", "second")


def test_the_cursor_advances_when_all_runs_are_settled_or_deferred() -> None:
    batch = Batch([FIRST, SECOND], LATER)
    cursor = advance(Cursor(NOON), batch, deferred={SECOND.key}, settled=[FIRST])
    assert cursor == Cursor(LATER, frozenset({build_fingerprint(FIRST)}), (SECOND.key,))


def test_the_cursor_stays_while_a_run_is_left() -> None:
    cursor = advance(Cursor(NOON), Batch([FIRST, SECOND], LATER), deferred=(), settled=[FIRST])
    assert cursor == Cursor(NOON, frozenset({build_fingerprint(FIRST)}))


def test_runs_that_a_poll_does_not_find_any_more_are_forgotten() -> None:
    seen = frozenset({build_fingerprint(FIRST), build_fingerprint(SECOND)})
    cursor = advance(Cursor(NOON, seen), Batch([SECOND], LATER), deferred=(), settled=[])
    assert cursor == Cursor(LATER, frozenset({build_fingerprint(SECOND)}))


def test_deferred_runs_are_kept_and_do_not_hold_up_the_cursor() -> None:
    cursor = Cursor(NOON, deferred=(FIRST.key,))
    batch = Batch([SECOND], LATER)
    advanced = advance(cursor, batch, deferred={FIRST.key, SECOND.key}, settled=[])
    assert advanced == Cursor(LATER, frozenset(), (FIRST.key, SECOND.key))


def test_the_stored_form_of_version_3_stays_as_it_is() -> None:
    cursor = Cursor(NOON, frozenset({bytes(8)}), (("a", "first"),))
    stored = {
        "version": 3,
        "since": "2026-01-02T12:00:00+00:00",
        "seen": "AAAAAAAAAAA=",
        "held": [["a", "first"]],
    }
    assert json.loads(cursor.to_json()) == {**stored, "absent": [], "observer": ""}
    assert Cursor.from_json(json.dumps(stored), NOON) == cursor


def test_a_cursor_of_another_version_or_from_the_future_is_not_valid() -> None:
    stored = json.loads(Cursor(NOON).to_json())
    assert Cursor.from_json(json.dumps({**stored, "version": 2}), NOON) is None
    assert Cursor.from_json(json.dumps(stored), NOON - timedelta(hours=2)) is None
    assert Cursor.from_json(json.dumps(stored), NOON - timedelta(minutes=30)) is not None


def test_what_is_known_of_deadlines_is_kept() -> None:
    known = frozenset({bytes(8), b"12345678"})
    evaluated = EvaluatedDeadlines(LATER, known, {"a": NOON})
    cursor = Cursor(NOON, deadlines=evaluated)
    assert Cursor.from_json(cursor.to_json(), NOON) == cursor
    stored = json.loads(cursor.to_json())
    deadlines = stored["deadlines"]
    for broken in (
        [],
        {"until": "noon"},
        {**deadlines, "behind": ["a"]},
        {**deadlines, "until": "9999-12-31T23:59:59"},
        {**deadlines, "behind": {"a": "2099-01-01"}},
    ):
        changed = json.dumps({**stored, "deadlines": broken})
        assert Cursor.from_json(changed, NOON) == Cursor(NOON)


def test_a_date_of_the_beginning_that_a_person_has_spoiled_makes_the_cursor_not_valid() -> None:
    now = datetime(2026, 1, 2, tzinfo=timezone.utc)
    text = Cursor(now, begun_at=now).to_json()
    assert Cursor.from_json(text, now) == Cursor(now, begun_at=now)
    for spoiled in ('"x"', "3", '""'):
        edited = text.replace(f'"begun_at":"{now.isoformat()}"', f'"begun_at":{spoiled}')
        assert Cursor.from_json(edited, now) is None
