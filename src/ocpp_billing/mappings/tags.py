"""The tags that are known, and who pays for each at an instant: to choose from, and to find the unmapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connection

from ocpp_billing.charging.fold import ENDS_SQL, fold_id_tag

if TYPE_CHECKING:
    from datetime import datetime


class TagRow(NamedTuple):
    """A tag in a list.

    ``mapped`` is about the tag's own mapping now: ``active``, ``inactive`` or ``none`` (then a parent's
    may hold), which ``mapping_id`` names. ``waiting_*`` are its sessions held because nobody is mapped to
    pay.
    """

    tag_id: int
    id_tag: str
    parent: str | None
    note: str | None
    blocked: bool | None
    vanished_at: datetime | None
    identity_conflict: str | None
    mapped: str
    customer: str | None
    waiting_sessions: int
    waiting_wh: int
    mapping_id: int | None


def list_tags(
    source: str,
    now: datetime,
    *,
    search: str | None = None,
    end: str | None = None,
    unmapped: bool = False,
    after: int = 0,
    limit: int = 100,
) -> list[TagRow]:
    """Tags in the order in which they became known; with ``unmapped``, most energy waiting first.

    Args:
        source: name of the StEvE.
        now: who is mapped at this instant.
        search: part of the tag, in any case.
        end: the last four characters of the tag, for people who may not see more of it.
        unmapped: only tags with sessions that wait for a mapping.
        after: number of the last row of the page before; not with ``unmapped``, whose order moves.
        limit: so many at most.
    """
    bound: dict[str, Any] = {
        "source": source,
        "now": now,
        "search": None if not search else f"%{escape_like(fold_id_tag(search))}%",
        "end": None if end is None else end.lower(),
        "unmapped": unmapped,
        "after": after,
        "limit": limit,
    }
    with connection.cursor() as cursor:
        cursor.execute(_TAGS, bound)
        return [TagRow(*row) for row in cursor.fetchall()]


class WaitingTotal(NamedTuple):
    """Tags whose sessions wait for a mapping, and those sessions."""

    tags: int
    sessions: int
    energy_wh: int


def total_waiting(source: str) -> WaitingTotal:
    """Everything that waits for a mapping."""
    with connection.cursor() as cursor:
        cursor.execute(_WAITING_TOTAL, {"source": source})
        ((tags, sessions, energy_wh),) = cursor.fetchall()
    return WaitingTotal(tags, sessions, energy_wh)


def tags_ending(source: str, end: str) -> list[int]:
    """Numbers of the tags whose last four characters are these, in any case."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT t.id FROM id_tag t WHERE t.source_id = %(source)s AND {ENDS_SQL}",
            {"source": source, "end": end.lower()},
        )
        return [number for (number,) in cursor.fetchall()]


def escape_like(text: str) -> str:
    """A text as a pattern of LIKE that means nothing but itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


_TAGS = f"""
WITH waiting AS (
    SELECT id_tag_id, count(*) AS sessions, sum(greatest(energy_wh, 0))::bigint AS energy_wh
    FROM charging_session
    WHERE source_id = %(source)s AND state = 'held' AND reason IN ('unmapped_tag', 'mapping_inactive')
    GROUP BY id_tag_id
)
SELECT t.id, t.text, p.text, t.note, t.blocked, t.vanished_at, t.identity_conflict,
    CASE WHEN m.id IS NULL THEN 'none' WHEN m.active THEN 'active' ELSE 'inactive' END,
    m.customer_external_id, coalesce(w.sessions, 0), coalesce(w.energy_wh, 0), m.id
FROM id_tag t
LEFT JOIN waiting w ON w.id_tag_id = t.id
LEFT JOIN tag_mapping m ON m.id_tag_id = t.id AND m.valid_from <= %(now)s
    AND (m.valid_to IS NULL OR m.valid_to > %(now)s)
LEFT JOIN LATERAL (
    SELECT parent_id FROM id_tag_parent h WHERE h.id_tag_id = t.id ORDER BY seen_from DESC LIMIT 1
) h ON true
LEFT JOIN id_tag p ON p.id = h.parent_id
WHERE t.source_id = %(source)s
  AND (%(search)s::text IS NULL OR t.folded LIKE %(search)s)
  AND (%(end)s::text IS NULL OR ({ENDS_SQL}))
  AND (NOT %(unmapped)s OR w.sessions > 0)
  AND t.id > %(after)s
ORDER BY CASE WHEN %(unmapped)s THEN w.energy_wh END DESC, t.id LIMIT %(limit)s
"""

_WAITING_TOTAL = """
SELECT count(DISTINCT id_tag_id), count(*), coalesce(sum(greatest(energy_wh, 0)), 0)::bigint
FROM charging_session
WHERE source_id = %(source)s AND state = 'held' AND reason IN ('unmapped_tag', 'mapping_inactive')
"""
