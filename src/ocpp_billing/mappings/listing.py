"""Lists of mappings for people: who pays for which tag, what that tag did, and which tags inherit it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ocpp_billing.charging.fold import ENDS_SQL, fold_id_tag
from ocpp_billing.charging.order import AFTER_SQL, NEWEST_FIRST_SQL
from ocpp_billing.database import read_rows
from ocpp_billing.mappings.tags import escape_like

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

# Where a mapping stands at an instant.
STANDS = ("active", "off", "future", "ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFilter:
    """Which mappings; what is None or empty does not matter.

    Attributes:
        source: name of the StEvE.
        now: what is valid is judged at this instant.
        month_from: beginning of the month whose energy is summed.
        whole_tags: whether whoever asks may see whole tags. If not, ``search`` finds tags by their whole last
            four characters only and looks into no note, which may name a tag, and no order follows tags.
        search: part of the tag (in any case), the customer's id or name, the subscription or the note.
        stands: any of :data:`STANDS`.
        verified: False = only those that Lago was never asked about.
        customer: Lago's external customer id.
        tag_id: only mappings of this tag.
        mapping_id: only this mapping.
    """

    source: str
    now: datetime
    month_from: datetime
    whole_tags: bool
    search: str = ""
    stands: Sequence[str] = ()
    verified: bool | None = None
    customer: str | None = None
    tag_id: int | None = None
    mapping_id: int | None = None


class InheritingTag(NamedTuple):
    """A tag without a mapping of its own now, for which that of ``root_id`` holds."""

    root_id: int
    tag_id: int
    id_tag: str
    last_at: datetime | None
    month_wh: int


@dataclass(slots=True)
class MappingRow:
    """A mapping in a list.

    Attributes:
        stands: one of :data:`STANDS`.
        last_at: when the tag's latest session under this mapping began.
        month_wh: energy of the tag's sessions under this mapping that stopped since ``month_from``.
        inheriting: tags below it that inherit it now.
    """

    mapping_id: int
    tag_id: int
    id_tag: str
    parent: str | None
    customer: str
    customer_name: str | None
    subscription: str | None
    valid_from: datetime
    valid_to: datetime | None
    active: bool
    verified: bool
    note: str
    stands: str
    last_at: datetime | None
    month_wh: int
    inheriting: list[InheritingTag] = field(default_factory=list)


def list_mappings(chosen: MappingFilter, *, before: int | None = None, limit: int = 50) -> list[MappingRow]:
    """Mappings of a filter, newest first; ``before`` is the number of the last row of the page before."""
    search = chosen.search.strip()
    bound: dict[str, Any] = {
        "source": chosen.source,
        "now": chosen.now,
        "month": chosen.month_from,
        "text": f"%{escape_like(search)}%" if search else None,
        "note": f"%{escape_like(search)}%" if search and chosen.whole_tags else None,
        "tag": f"%{escape_like(fold_id_tag(search))}%" if search and chosen.whole_tags else None,
        "end": search.lower() if len(search) == 4 and not chosen.whole_tags else None,
        "stands": list(chosen.stands) or None,
        "verified": chosen.verified,
        "customer": chosen.customer or None,
        "tag_id": chosen.tag_id,
        "mapping_id": chosen.mapping_id,
        "before": before,
        "limit": limit,
    }
    rows = [MappingRow(*row) for row in read_rows(_MAPPINGS, bound)]
    by_tag = {row.tag_id: row for row in rows if row.stands in {"active", "off"}}
    for below in _inheriting(list(by_tag), chosen):
        by_tag[below.root_id].inheriting.append(below)
    return rows


def count_by_standing(source: str, now: datetime) -> dict[str, int]:
    """How many mappings there are of each of :data:`STANDS`."""
    return dict.fromkeys(STANDS, 0) | dict(read_rows(_COUNTS, {"source": source, "now": now}))


class SentSession(NamedTuple):
    """A session that Lago was sent by a mapping."""

    session_id: int
    steve_id: int
    id_tag: str
    charge_box_id: str
    began_at: datetime
    stopped_at: datetime
    state: str
    energy_wh: int
    customer: str
    subscription: str


def sent_sessions(
    mapping_id: int, *, only: Collection[int] | None = None, before: int | None = None, limit: int = 100
) -> list[SentSession]:
    """Sessions that Lago has by this mapping, newest first.

    Args:
        mapping_id: the mapping of the decision that made the event.
        only: numbers of sessions; None = any.
        before: number of the last row of the page before.
        limit: so many at most.
    """
    bound = {
        "mapping": mapping_id,
        "since": "-infinity",
        "only": None if only is None else list(only),
        "before": before,
        "limit": limit,
    }
    return [SentSession(*row) for row in read_rows(_SENT, bound)]


class SentTotal(NamedTuple):
    """What Lago has by a mapping."""

    sessions: int
    energy_wh: int


def total_sent(mapping_id: int, *, since: datetime | None = None) -> SentTotal:
    """How many sessions Lago has by this mapping, and the energy it counts for them."""
    ((sessions, energy_wh),) = read_rows(_SENT_TOTAL, {"mapping": mapping_id, "since": since or "-infinity"})
    return SentTotal(sessions, energy_wh)


def _inheriting(roots: list[int], chosen: MappingFilter) -> list[InheritingTag]:
    if not roots:
        return []
    bound = {
        "roots": roots,
        "source": chosen.source,
        "now": chosen.now,
        "month": chosen.month_from,
        "by_tag": chosen.whole_tags,
    }
    return [InheritingTag(*row) for row in read_rows(_INHERITING, bound)]


_STANDS = """CASE WHEN m.valid_to <= %(now)s THEN 'ended' WHEN m.valid_from > %(now)s THEN 'future'
    WHEN m.active THEN 'active' ELSE 'off' END"""

# What decides whose mapping pays, as in the decision.
_BEGAN_AT = "coalesce(s.started_at, s.reading_stopped_at, s.stopped_at)"

_MAPPINGS = f"""
WITH page AS (
    SELECT m.*, t.text AS id_tag, {_STANDS} AS stands, c.name AS customer_name
    FROM tag_mapping m
    JOIN id_tag t ON t.id = m.id_tag_id
    LEFT JOIN lago_customer c ON c.external_id = m.customer_external_id
    WHERE t.source_id = %(source)s
      AND (%(before)s::bigint IS NULL OR m.id < %(before)s)
      AND (%(mapping_id)s::bigint IS NULL OR m.id = %(mapping_id)s)
      AND (%(tag_id)s::bigint IS NULL OR m.id_tag_id = %(tag_id)s)
      AND (%(customer)s::text IS NULL OR m.customer_external_id = %(customer)s)
      AND (%(verified)s::bool IS NULL OR m.verified = %(verified)s)
      AND (%(stands)s::text[] IS NULL OR {_STANDS} = ANY(%(stands)s))
      AND (%(text)s::text IS NULL
        OR t.folded LIKE %(tag)s
        OR ({ENDS_SQL})
        OR m.customer_external_id ILIKE %(text)s OR c.name ILIKE %(text)s
        OR m.subscription_external_id ILIKE %(text)s OR m.note ILIKE %(note)s)
    ORDER BY m.id DESC LIMIT %(limit)s
), month AS (
    SELECT p.id, sum(greatest(s.energy_wh, 0))::bigint AS energy_wh
    FROM page p JOIN charging_session s ON s.id_tag_id = p.id_tag_id
    WHERE s.source_id = %(source)s AND s.stopped_at >= %(month)s AND s.superseded_at IS NULL
      AND {_BEGAN_AT} >= p.valid_from AND (p.valid_to IS NULL OR {_BEGAN_AT} < p.valid_to)
    GROUP BY p.id
)
SELECT p.id, p.id_tag_id, p.id_tag, parent.text, p.customer_external_id, p.customer_name,
    p.subscription_external_id, p.valid_from, p.valid_to, p.active, p.verified, p.note, p.stands,
    (SELECT max(s.started_at) FROM charging_session s WHERE s.id_tag_id = p.id_tag_id
        AND s.started_at >= p.valid_from AND (p.valid_to IS NULL OR s.started_at < p.valid_to)
        AND s.superseded_at IS NULL),
    coalesce(month.energy_wh, 0)
FROM page p
LEFT JOIN month ON month.id = p.id
LEFT JOIN LATERAL (
    SELECT parent_id FROM id_tag_parent h WHERE h.id_tag_id = p.id_tag_id ORDER BY seen_from DESC LIMIT 1
) h ON true
LEFT JOIN id_tag parent ON parent.id = h.parent_id
ORDER BY p.id DESC
"""

_COUNTS = f"""
SELECT {_STANDS}, count(*)
FROM tag_mapping m JOIN id_tag t ON t.id = m.id_tag_id WHERE t.source_id = %(source)s GROUP BY 1
"""

# Down the tree as StEvE shows it now, not below a tag that has a mapping of its own.
_INHERITING = """
WITH RECURSIVE last_parent AS (
    SELECT DISTINCT ON (h.id_tag_id) h.id_tag_id, h.parent_id,
        EXISTS (
            SELECT 1 FROM tag_mapping m WHERE m.id_tag_id = h.id_tag_id AND m.valid_from <= %(now)s
                AND (m.valid_to IS NULL OR m.valid_to > %(now)s)
        ) AS mapped
    FROM id_tag_parent h ORDER BY h.id_tag_id, h.seen_from DESC
), below AS (
    SELECT id_tag_id, parent_id AS root_id FROM last_parent WHERE parent_id = ANY(%(roots)s) AND NOT mapped
    UNION
    SELECT l.id_tag_id, b.root_id FROM last_parent l JOIN below b ON l.parent_id = b.id_tag_id
    WHERE NOT l.mapped
), month AS (
    SELECT s.id_tag_id, sum(greatest(s.energy_wh, 0))::bigint AS energy_wh
    FROM charging_session s JOIN (SELECT DISTINCT id_tag_id FROM below) b USING (id_tag_id)
    WHERE s.source_id = %(source)s AND s.stopped_at >= %(month)s AND s.superseded_at IS NULL
    GROUP BY 1
)
SELECT b.root_id, t.id, t.text,
    (SELECT max(s.started_at) FROM charging_session s
        WHERE s.id_tag_id = t.id AND s.superseded_at IS NULL),
    coalesce(month.energy_wh, 0)
FROM below b JOIN id_tag t ON t.id = b.id_tag_id LEFT JOIN month ON month.id_tag_id = t.id
ORDER BY b.root_id, CASE WHEN %(by_tag)s THEN t.folded END, t.id
"""

_SENT_OF_MAPPING = f"""
FROM charging_session s JOIN LATERAL (
    SELECT sum(e.energy_wh)::bigint AS energy_wh, max(e.id) AS last_id
    FROM usage_event e WHERE e.session_id = s.id AND e.state IN ('accepted', 'confirmed')
) sent ON sent.energy_wh <> 0
JOIN usage_event last ON last.id = sent.last_id
WHERE s.id IN (
    SELECT d.session_id FROM decision d
    JOIN usage_event e ON e.session_id = d.session_id AND e.decision_id = d.id -- found by its session
    WHERE d.mapping_id = %(mapping)s AND e.state IN ('accepted', 'confirmed')
) AND {_BEGAN_AT} >= %(since)s
"""

_SENT = f"""
SELECT s.id, s.steve_id, s.id_tag_text, s.charge_box_id, {_BEGAN_AT},
    coalesce(s.reading_stopped_at, s.stopped_at), s.state, sent.energy_wh,
    last.external_customer_id, last.external_subscription_id
{_SENT_OF_MAPPING}
  AND (%(before)s::bigint IS NULL OR {AFTER_SQL})
  AND (%(only)s::bigint[] IS NULL OR s.id = ANY(%(only)s))
ORDER BY {NEWEST_FIRST_SQL} LIMIT %(limit)s
"""

_SENT_TOTAL = f"SELECT count(*), coalesce(sum(sent.energy_wh), 0)::bigint {_SENT_OF_MAPPING}"
