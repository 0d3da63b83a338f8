"""Step 2, record: what StEvE says goes into the ledger, in bulk, as it is.

What the ledger knows already is left out. The rest goes by one binary COPY into a temporary table, then by
one INSERT ... SELECT ... ON CONFLICT. A changed row raises the session's revision and asks for a new
decision.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ocpp_billing.charging.clocks import CLOCK_LAG, CLOCK_TOLERANCE
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.tags import ask_again_for_tags
from ocpp_billing.steve.wire import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from ocpp_billing.steve.wire import MalformedRow, Transaction

    # When, at which register in Wh, why and by whom a session was stopped, as far as it was.
    _Stop = tuple[datetime | None, int | None, str | None, str | None]

_encode = msgspec.json.Encoder().encode

# PostgreSQL knows nothing of a temporary table: with so many rows it is told, lest it reads them all for each
# session that it compares them with.
MANY_ROWS = 500


@dataclass(frozen=True, slots=True)
class Restored:
    """StEvE came back from a backup: ids above ``after_id`` that we knew before ``at`` mean others now."""

    after_id: int
    at: datetime


@dataclass(slots=True)
class IngestCounts:
    """What an ingest found: sessions never seen, sessions that changed, rows set aside."""

    discovered: int = 0
    changed: int = 0
    malformed: int = 0
    # StEvE ids whose fingerprint is not the one we know: the marks of a restored or changed StEvE.
    strangers: list[int] = field(default_factory=list)

    def add(self, other: IngestCounts) -> None:
        """Count another ingest in."""
        self.discovered += other.discovered
        self.changed += other.changed
        self.malformed += other.malformed
        self.strangers += other.strangers

    def by_name(self) -> dict[str, int]:
        """The figures that a run keeps."""
        return {"discovered": self.discovered, "changed": self.changed, "malformed": self.malformed}

    def __str__(self) -> str:
        return f"{self.discovered} sessions discovered, {self.changed} changed, {self.malformed} set aside"


def ingest_transactions(
    cursor: Any,
    source: str,
    rows: Sequence[Transaction],
    malformed: Iterable[MalformedRow],
    now: datetime,
    restored: Restored | None = None,
) -> IngestCounts:
    """Write what StEvE said into the ledger; call once within a transaction.

    Args:
        cursor: a cursor of that transaction.
        source: name of the StEvE.
        rows: well-formed transactions, in any order; the last of two with one id wins.
        malformed: rows that could not be read.
        now: when they were read.
        restored: StEvE was restored from a backup: where ids began to mean other sessions.
    """
    counts = IngestCounts(malformed=_set_aside(cursor, source, malformed, now))
    if not rows:
        return counts
    latest = {row.steve_id: row for row in rows}
    reach = _lock_source(cursor, source)
    known = _read_known(cursor, source, latest)
    cursor.execute(_RESOLVE_MALFORMED, {"source": source, "now": now, "ids": list(latest)})
    incoming = [
        row
        for _, row in sorted(latest.items())
        if _reaches_further(row, reach, now) or not _says_nothing_new(row, known.get(row.steve_id))
    ]
    if not incoming:
        return counts
    starts = _latest_starts(cursor, source, incoming, known, reach)
    cursor.execute(_CREATE_INCOMING)
    with cursor.copy(_COPY_INCOMING) as copy:
        copy.set_types(_COPY_TYPES)
        for record in _records(incoming, starts, now):
            copy.write_row(record)
    if len(incoming) >= MANY_ROWS:
        cursor.execute("ANALYZE incoming")
    cursor.execute(_INSERT_TAGS, {"source": source, "now": now})
    if restored is not None:
        bound = {"source": source, "now": now, "after": restored.after_id, "at": restored.at}
        cursor.execute(_SUPERSEDE, bound)
    cursor.execute(_FIND_STRANGERS, {"source": source})
    counts.strangers = [steve_id for (steve_id,) in cursor.fetchall()]
    cursor.execute(_FIND_RENUMBERED_TAGS, {"source": source})
    ask_again_for_tags(cursor, [tag_id for (tag_id,) in cursor.fetchall()])
    cursor.execute(_KEEP, {"source": source})
    cursor.execute(_UPSERT, {"source": source, "now": now})
    counts.discovered, counts.changed = cursor.fetchone()
    cursor.execute(_ADVANCE_SOURCE, {"source": source, "ahead": now + CLOCK_TOLERANCE})
    return counts


class _Reach(NamedTuple):
    """How far the ledger knows a StEvE: its highest id, and the latest credible start."""

    highest_id: int
    latest_start_at: datetime | None


def _lock_source(cursor: Any, source: str) -> _Reach:
    """One ingest at a time per source: the running maximum of starts must not be read half-written."""
    reach = "SELECT highest_id, latest_start_at FROM source WHERE name = %s FOR NO KEY UPDATE"
    cursor.execute(reach, [source])
    if (known := cursor.fetchone()) is None:
        cursor.execute("INSERT INTO source (name) VALUES (%s) ON CONFLICT DO NOTHING", [source])
        cursor.execute(reach, [source])
        known = cursor.fetchone()
    return _Reach(*known)


def _reaches_further(row: Transaction, reach: _Reach, now: datetime) -> bool:
    """Whether a row moves a maximum, be it known or not: after a rewind, or once its start is credible."""
    if row.steve_id > reach.highest_id:
        return True
    if row.started_at is None or row.started_at > now + CLOCK_TOLERANCE:
        return False
    return reach.latest_start_at is None or row.started_at > reach.latest_start_at


class _Known(NamedTuple):
    """What the ledger knows of the session that has an id now."""

    fingerprint: bytes
    stop: _Stop
    is_gone: bool
    id_tag_pk: int | None


def _read_known(cursor: Any, source: str, ids: Iterable[int]) -> dict[int, _Known]:
    cursor.execute(_KNOWN, {"source": source, "ids": list(ids)})
    return {
        steve_id: _Known(bytes(mark), (at, wh, reason, actor), is_gone, id_tag_pk)
        for steve_id, mark, at, wh, reason, actor, is_gone, id_tag_pk in cursor.fetchall()
    }


def _stop_of(row: Transaction) -> _Stop:
    return (row.stopped_at, row.stop_wh, row.stop_reason, row.stop_actor)


def _says_nothing_new(row: Transaction, known: _Known | None) -> bool:
    """Whether the ledger says all of it already: most of what is read again does, and is left at that."""
    return (
        known is not None
        and not known.is_gone
        and known.stop == _stop_of(row)
        and (row.id_tag_pk is None or known.id_tag_pk == row.id_tag_pk)
        and known.fingerprint == fingerprint(row)
    )


@dataclass(slots=True)
class _LatestStarts:
    """The latest credible start that the ledger knows among lower ids, where a row that comes in needs it.

    Attributes:
        reach: what is known of all ids up to the highest one.
        below: of ids below an id that is not above it.
    """

    reach: _Reach
    below: dict[int, datetime | None]

    def among_lower(self, steve_id: int) -> datetime | None:
        """Of ids below this one; None where there is none or nobody needs it."""
        highest_id, overall = self.reach
        return overall if steve_id > highest_id else self.below.get(steve_id)


def _latest_starts(
    cursor: Any, source: str, rows: Sequence[Transaction], known: Mapping[int, _Known], reach: _Reach
) -> _LatestStarts:
    """Read them.

    New ids above all others have the source's running maximum. For what else is written the history is read
    once, whatever its length in the memory of one line for each: stops of sessions that began so late that no
    start can be too far ahead of theirs need nothing.
    """
    highest_id, overall = reach
    starts = _LatestStarts(reach, {})
    needed = [
        row.steve_id
        for row in rows
        if row.steve_id <= highest_id and _needs_latest(row, known.get(row.steve_id), overall)
    ]
    if needed:
        bound = {"source": source, "ids": needed, "highest": needed[-1], "tolerance": CLOCK_TOLERANCE}
        cursor.execute(_LATEST_BELOW, bound)
        found = dict(cursor.fetchall())
        latest: datetime | None = None
        for place, steve_id in enumerate(needed):
            latest = _later(latest, found.get(place))
            starts.below[steve_id] = latest
    return starts


def _needs_latest(row: Transaction, known: _Known | None, overall: datetime | None) -> bool:
    """Whether the latest start among lower ids can matter for a row with a known id, or with a new one."""
    if known is None or known.fingerprint != fingerprint(row):
        return True
    if known.stop == _stop_of(row):
        return False
    return row.started_at is None or overall is None or overall - row.started_at > CLOCK_LAG


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _records(rows: Sequence[Transaction], starts: _LatestStarts, now: datetime) -> Iterator[tuple[Any, ...]]:
    """The rows (in order of their ids) to copy, each with the latest credible start among lower ids."""
    latest: datetime | None = None
    for row in rows:
        yield (
            row.steve_id,
            fingerprint(row),
            row.charge_box_id,
            row.connector_id,
            fold_id_tag(row.id_tag),
            row.id_tag,
            row.id_tag_pk,
            row.started_at,
            row.start_wh,
            row.stopped_at,
            row.stop_wh,
            row.stop_reason,
            row.stop_actor,
            as_given(row),
            _later(latest, starts.among_lower(row.steve_id)),
        )
        if row.started_at is not None and row.started_at <= now + CLOCK_TOLERANCE:
            latest = _later(latest, row.started_at)


def as_given(row: Transaction) -> str:
    """The transaction in StEvE's own names and values, as JSON text, for the session's page."""
    return _encode(
        {
            "id": row.steve_id,
            "chargeBoxId": row.charge_box_id,
            "connectorId": row.connector_id,
            "ocppIdTag": row.id_tag,
            "ocppTagPk": row.id_tag_pk,
            "startTimestamp": row.start_timestamp,
            "startValue": row.start_value,
            "stopTimestamp": row.stop_timestamp,
            "stopValue": row.stop_value,
            "stopReason": row.stop_reason,
            "stopEventActor": row.stop_actor,
        }
    ).decode()


def _set_aside(cursor: Any, source: str, malformed: Iterable[MalformedRow], now: datetime) -> int:
    """Keep malformed rows, each once; returns how many of them are new."""
    new = 0
    for row in malformed:
        if new == 0:
            _lock_source(cursor, source)
        raw = row.raw.encode()
        cursor.execute(
            _SET_ASIDE,
            {
                "source": source,
                "steve_id": row.steve_id,
                "digest": hashlib.sha256(raw).digest(),
                "raw": row.raw.replace("\0", "\ufffd"),
                "reason": row.reason,
                "now": now,
            },
        )
        new += cursor.fetchone()[0]
    return new


def mark_vanished(cursor: Any, source: str, steve_ids: Sequence[int], now: datetime) -> int:
    """Flag sessions that StEvE no longer shows; they stay in the ledger as they are."""
    cursor.execute(
        "UPDATE charging_session SET vanished_at = %s"
        " WHERE source_id = %s AND steve_id = ANY(%s) AND superseded_at IS NULL AND vanished_at IS NULL",
        [now, source, list(steve_ids)],
    )
    return int(cursor.rowcount)


def rewind(cursor: Any, source: str, highest_id: int) -> None:
    """Make this the highest id known, so that the ids above it are asked for again."""
    cursor.execute("UPDATE source SET highest_id = %s WHERE name = %s", [highest_id, source])


_CREATE_INCOMING = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    steve_id bigint, fingerprint bytea, charge_box_id text, connector_id int,
    folded text, id_tag text, id_tag_pk bigint,
    started_at timestamptz, start_wh bigint, stopped_at timestamptz, stop_wh bigint,
    stop_reason text, stop_actor text, raw text, latest_lower_start_at timestamptz
) ON COMMIT DELETE ROWS
"""
_COPY_INCOMING = "COPY incoming FROM STDIN (FORMAT BINARY)"
_COPY_TYPES = [
    *("int8", "bytea", "text", "int4", "text", "text", "int8"),
    *("timestamptz", "int8", "timestamptz", "int8", "text", "text", "text", "timestamptz"),
]

# A tag is known once, in the spelling first seen.
_INSERT_TAGS = """
INSERT INTO id_tag (source_id, folded, text, steve_pk, first_seen_at)
SELECT DISTINCT ON (folded) %(source)s, folded, id_tag, id_tag_pk, %(now)s
FROM incoming ORDER BY folded, steve_id
ON CONFLICT (source_id, folded) DO UPDATE SET steve_pk = EXCLUDED.steve_pk WHERE id_tag.steve_pk IS NULL
"""

# What a restored StEvE has forgotten stays as it is: it was delivered. One that was still open will never
# stop, so it is shown as stuck.
_SUPERSEDE = """
UPDATE charging_session s SET superseded_at = %(now)s,
    stuck_since = CASE WHEN s.state = 'open' THEN %(now)s ELSE s.stuck_since END,
    state = CASE WHEN s.state = 'open' THEN 'stuck' ELSE s.state END,
    rest_state = CASE WHEN s.rest_state = 'open' THEN 'stuck' ELSE s.rest_state END
FROM incoming i
WHERE s.source_id = %(source)s AND s.steve_id = i.steve_id AND s.superseded_at IS NULL
  AND s.fingerprint <> i.fingerprint AND s.steve_id > %(after)s AND s.first_seen_at < %(at)s
"""

_FIND_STRANGERS = """
DELETE FROM incoming USING charging_session s
WHERE s.source_id = %(source)s AND s.steve_id = incoming.steve_id AND s.superseded_at IS NULL
  AND s.fingerprint <> incoming.fingerprint
RETURNING incoming.steve_id
"""

# Deleted and made anew, or another StEvE's: the text is the same, whose tag it is now is not known. The list
# of tags would say so, too, but it is read rarely, and these sessions are about to be billed.
_FIND_RENUMBERED_TAGS = """
UPDATE id_tag t SET steve_pk = i.id_tag_pk, identity_conflict = coalesce(t.identity_conflict,
    'StEvE now shows tag ' || i.id_tag || ' as number ' || i.id_tag_pk || '; it was ' || t.steve_pk)
FROM (SELECT DISTINCT ON (folded) folded, id_tag, id_tag_pk FROM incoming ORDER BY folded, steve_id DESC) i
WHERE t.source_id = %(source)s AND t.folded = i.folded AND t.steve_pk <> i.id_tag_pk
RETURNING t.id
"""

# StEvE takes no stop back; one that came back from a backup has forgotten it. What we know stays, and so
# does what was billed by it. A session that was gone and is shown again as it was is the same revision: what
# people ordered about it and the reading they entered still hold. An open one is looked at anew, as it became
# stuck by being gone.
_KEEP = """
WITH kept AS (
    DELETE FROM incoming USING charging_session s
    WHERE s.source_id = %(source)s AND s.steve_id = incoming.steve_id AND s.superseded_at IS NULL
      AND s.fingerprint = incoming.fingerprint
      AND (
        (s.stopped_at IS NOT NULL AND incoming.stopped_at IS NULL)
        OR (s.vanished_at IS NOT NULL
          AND s.stopped_at IS NOT DISTINCT FROM incoming.stopped_at
          AND s.stop_wh IS NOT DISTINCT FROM incoming.stop_wh
          AND s.stop_reason IS NOT DISTINCT FROM incoming.stop_reason
          AND s.stop_actor IS NOT DISTINCT FROM incoming.stop_actor)
      )
    RETURNING s.id
)
UPDATE charging_session s SET vanished_at = NULL,
    stuck_since = CASE WHEN s.stopped_at IS NOT NULL THEN s.stuck_since END,
    state = CASE WHEN s.stopped_at IS NULL AND s.state = 'stuck' THEN 'open' ELSE s.state END,
    rest_state = CASE WHEN s.stopped_at IS NULL AND s.rest_state = 'stuck' THEN 'open' ELSE s.rest_state END
WHERE id IN (SELECT id FROM kept) AND vanished_at IS NOT NULL
"""

# New energy is held as `undecided` from the first moment, so that the balance is whole even between two
# steps; what usage events already carry stays theirs.
_UPSERT = """
WITH written AS (
    INSERT INTO charging_session AS s (
        source_id, steve_id, fingerprint, charge_box_id, connector_id, id_tag_id, id_tag_text,
        started_at, start_wh, stopped_at, stop_wh, stop_reason, stop_actor, raw,
        first_seen_at, stop_seen_at, changed_at, latest_lower_start_at,
        state, reason, rest_state, rest_reason, rest_wh, needs_decision
    )
    SELECT %(source)s, i.steve_id, i.fingerprint, i.charge_box_id, i.connector_id, t.id, i.id_tag,
        i.started_at, i.start_wh, i.stopped_at, i.stop_wh, i.stop_reason, i.stop_actor, i.raw::jsonb,
        %(now)s, CASE WHEN i.stopped_at IS NOT NULL THEN %(now)s END, %(now)s, i.latest_lower_start_at,
        CASE WHEN i.stopped_at IS NULL THEN 'open' ELSE 'held' END,
        CASE WHEN i.stopped_at IS NOT NULL THEN 'undecided' END,
        CASE WHEN i.stopped_at IS NULL THEN 'open' ELSE 'held' END,
        CASE WHEN i.stopped_at IS NOT NULL THEN 'undecided' END,
        coalesce(greatest(i.stop_wh - i.start_wh, 0), 0),
        i.stopped_at IS NOT NULL
    FROM incoming i JOIN id_tag t ON t.source_id = %(source)s AND t.folded = i.folded
    ORDER BY i.steve_id -- our numbers follow StEvE's: lists go by ours, newest first
    ON CONFLICT (source_id, steve_id, fingerprint) DO UPDATE SET
        stopped_at = EXCLUDED.stopped_at, stop_wh = EXCLUDED.stop_wh,
        stop_reason = EXCLUDED.stop_reason, stop_actor = EXCLUDED.stop_actor,
        -- The tag is part of the fingerprint, so it can only differ where a pseudonym took its place.
        raw = EXCLUDED.raw || jsonb_build_object('ocppIdTag', s.id_tag_text),
        stop_seen_at = CASE WHEN s.stopped_at = EXCLUDED.stopped_at THEN s.stop_seen_at
            ELSE EXCLUDED.stop_seen_at END,
        changed_at = EXCLUDED.changed_at, revision = s.revision + 1, vanished_at = NULL,
        -- An open session may have been read before those with lower ids were.
        latest_lower_start_at = greatest(s.latest_lower_start_at, EXCLUDED.latest_lower_start_at),
        reading_stop_wh = NULL, reading_stopped_at = NULL,
        stuck_since = CASE WHEN EXCLUDED.stopped_at IS NULL THEN s.stuck_since END,
        state = EXCLUDED.state, reason = EXCLUDED.reason,
        rest_state = EXCLUDED.rest_state, rest_reason = EXCLUDED.rest_reason,
        rest_wh = CASE WHEN EXCLUDED.stopped_at IS NULL THEN 0 ELSE EXCLUDED.rest_wh - coalesce((
            SELECT sum(e.energy_wh) FROM usage_event e WHERE e.session_id = s.id AND e.state <> 'void'
        ), 0) END,
        needs_decision = EXCLUDED.needs_decision
    WHERE s.superseded_at IS NULL AND (
        s.stopped_at IS DISTINCT FROM EXCLUDED.stopped_at OR s.stop_wh IS DISTINCT FROM EXCLUDED.stop_wh
        OR s.stop_reason IS DISTINCT FROM EXCLUDED.stop_reason
        OR s.stop_actor IS DISTINCT FROM EXCLUDED.stop_actor
    )
    RETURNING s.revision
)
SELECT count(*) FILTER (WHERE revision = 1), count(*) FILTER (WHERE revision > 1) FROM written
"""

_SET_ASIDE = """
INSERT INTO malformed_row AS m (source_id, steve_id, digest, raw, reason, first_seen_at, last_seen_at)
VALUES (%(source)s, %(steve_id)s, %(digest)s, %(raw)s, %(reason)s, %(now)s, %(now)s)
ON CONFLICT (source_id, digest) DO UPDATE SET last_seen_at = %(now)s, resolved_at = NULL
RETURNING (xmax = 0)::int
"""

_RESOLVE_MALFORMED = """
UPDATE malformed_row SET resolved_at = %(now)s
WHERE source_id = %(source)s AND steve_id = ANY(%(ids)s::bigint[]) AND resolved_at IS NULL
"""

_KNOWN = """
SELECT s.steve_id, s.fingerprint, s.stopped_at, s.stop_wh, s.stop_reason, s.stop_actor,
    s.vanished_at IS NOT NULL, t.steve_pk
FROM charging_session s JOIN id_tag t ON t.id = s.id_tag_id
WHERE s.source_id = %(source)s AND s.steve_id = ANY(%(ids)s::bigint[]) AND s.superseded_at IS NULL
"""
# Of the ids between one that comes in and the next lower one, numbered from 0.
_LATEST_BELOW = """
SELECT width_bucket(steve_id, %(ids)s::bigint[]), max(started_at) FROM charging_session
WHERE source_id = %(source)s AND steve_id < %(highest)s AND started_at <= first_seen_at + %(tolerance)s
GROUP BY 1
"""

_ADVANCE_SOURCE = """
UPDATE source SET
    highest_id = greatest(source.highest_id, new.highest_id),
    latest_start_at = greatest(source.latest_start_at, new.latest_start_at)
FROM (
    SELECT max(steve_id) AS highest_id,
        max(started_at) FILTER (WHERE started_at <= %(ahead)s) AS latest_start_at
    FROM incoming
) new
WHERE name = %(source)s
"""
