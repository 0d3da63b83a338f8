"""What a mapping would do before it is saved: which sessions wait for it, and how many kWh."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from django.db import connection

from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.models import IdTag
from ocpp_billing.mappings.resolve import Inactive, Mapped, MappingInterval, resolve_mapping
from ocpp_billing.mappings.store import load_family

if TYPE_CHECKING:
    from datetime import datetime

# The number of a mapping that does not exist yet.
_PROPOSED = 0


@dataclass(frozen=True, slots=True)
class PreviewGroup:
    """Sessions that stand alike now and would be paid for by the proposed mapping."""

    state: str
    reason: str | None
    sessions: int
    energy_wh: int


class PreviewSession(NamedTuple):
    """A session that the proposed mapping would pay for; times as the decision judges them.

    Attributes:
        began_at: what decides whose mapping pays: the start, or the stop where there is no start.
        stopped_at: the time of the usage event.
    """

    session_id: int
    steve_id: int
    id_tag: str
    began_at: datetime
    stopped_at: datetime
    state: str
    reason: str | None
    energy_wh: int


@dataclass(frozen=True, slots=True)
class MappingPreview:
    """What a mapping would release.

    Attributes:
        sessions: held sessions that wait for nothing but a mapping and would get this one.
        energy_wh: their energy.
        groups: all sessions that Lago does not know yet and this mapping would pay for (or, switched off,
            would hold), as they stand now; those held for another reason stay held.
        overlaps: an interval of the tag is in the way: saving would be refused.
        paid: the sessions of ``groups``, one by one, oldest first.
        in_the_way: those intervals, oldest first.
    """

    sessions: int
    energy_wh: int
    groups: list[PreviewGroup]
    overlaps: bool
    paid: list[PreviewSession] = field(default_factory=list)
    in_the_way: list[MappingInterval] = field(default_factory=list)

    @property
    def released(self) -> list[PreviewSession]:
        """The sessions that wait for nothing but a mapping."""
        return [session for session in self.paid if session.reason in WAITS_FOR_MAPPING]


WAITS_FOR_MAPPING = frozenset({"unmapped_tag", "mapping_inactive"})


def preview_mapping(
    *,
    source: str,
    id_tag: str,
    customer: str,
    valid_from: datetime,
    valid_to: datetime | None = None,
    active: bool = True,
    replaces: int | None = None,
) -> MappingPreview:
    """Work out what :func:`~ocpp_billing.mappings.store.create_mapping` with the same would release.

    The tag's own sessions and those of tags below it that inherit. Whether Lago has a subscription for
    them is decided when it is saved.

    Args:
        source: name of the StEvE.
        id_tag: the tag, in any case.
        customer: Lago's external customer id.
        valid_from: from when it would hold.
        valid_to: exclusive; None = until further notice.
        active: False = its sessions would be held.
        replaces: number of a mapping that would be cut at ``valid_from`` to make room, as when it is
            changed, switched or ended.
    """
    tag = IdTag.objects.filter(source_id=source, folded=fold_id_tag(id_tag)).first()
    if tag is None:
        return MappingPreview(0, 0, [], overlaps=False)
    proposed = MappingInterval(_PROPOSED, customer, None, valid_from, valid_to, active)
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, {"tag": tag.pk, "from": valid_from, "to": valid_to or "infinity"})
        waiting = cursor.fetchall()
    family = load_family({tag.pk, *(tag_id for tag_id, *_ in waiting)})
    own = [
        cut
        for interval in family.mappings.get(tag.pk, [])
        for cut in (_cut(interval, valid_from) if interval.mapping_id == replaces else [interval])
    ]
    in_the_way = [interval for interval in own if _overlap(interval, proposed)]
    family.mappings[tag.pk] = [*own, proposed]
    paid = []
    groups: dict[tuple[str, str | None], list[int]] = {}
    for tag_id, *session in waiting:
        row = PreviewSession(*session)
        found = resolve_mapping(tag_id, row.began_at, family.mappings, family.parents)
        if isinstance(found, Mapped | Inactive) and found.mapping.mapping_id == _PROPOSED:
            paid.append(row)
            group = groups.setdefault((row.state, row.reason), [0, 0])
            group[0] += 1
            group[1] += row.energy_wh
    lines = [PreviewGroup(*key, *amount) for key, amount in groups.items()]
    released = [line for line in lines if line.reason in WAITS_FOR_MAPPING and active]
    return MappingPreview(
        sum(line.sessions for line in released),
        sum(line.energy_wh for line in released),
        sorted(lines, key=lambda line: (-line.energy_wh, line.state, line.reason or "")),
        overlaps=bool(in_the_way),
        paid=paid,
        in_the_way=in_the_way,
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    """Sessions of a tag, and of tags below it, that wait for a mapping of the tag; oldest first."""

    rows: list[PreviewSession]

    @property
    def sessions(self) -> int:
        """How many."""
        return len(self.rows)

    @property
    def energy_wh(self) -> int:
        """Their energy."""
        return sum(row.energy_wh for row in self.rows)

    def since(self, at: datetime) -> Waiting:
        """Those that began at that instant or later."""
        return Waiting([row for row in self.rows if row.began_at >= at])

    def until(self, at: datetime) -> Waiting:
        """Those that began before that instant."""
        return Waiting([row for row in self.rows if row.began_at < at])


def waiting_for(source: str, id_tag: str) -> Waiting:
    """What waits for a mapping of this tag, whenever it began."""
    tag = IdTag.objects.filter(source_id=source, folded=fold_id_tag(id_tag)).first()
    if tag is None:
        return Waiting([])
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, {"tag": tag.pk, "from": "-infinity", "to": "infinity"})
        waiting = [(tag_id, PreviewSession(*session)) for tag_id, *session in cursor.fetchall()]
    family = load_family({tag.pk, *(tag_id for tag_id, _ in waiting)})
    # A mapping of the tag at that very instant, and nothing else, would have to decide: otherwise a
    # tag between has its own, and the session waits for that one.
    family.mappings.pop(tag.pk, None)
    rows = []
    for tag_id, row in waiting:
        if row.reason not in WAITS_FOR_MAPPING:
            continue
        family.mappings[tag.pk] = [MappingInterval(_PROPOSED, "", None, row.began_at, None, active=True)]
        found = resolve_mapping(tag_id, row.began_at, family.mappings, family.parents)
        if isinstance(found, Mapped) and found.mapping.mapping_id == _PROPOSED:
            rows.append(row)
    return Waiting(rows)


def _cut(interval: MappingInterval, at: datetime) -> list[MappingInterval]:
    """What is left of an interval that another one takes over at ``at``."""
    return [] if at <= interval.valid_from else [replace(interval, valid_to=at)]


def _overlap(one: MappingInterval, other: MappingInterval) -> bool:
    return (one.valid_to is None or other.valid_from < one.valid_to) and (
        other.valid_to is None or one.valid_from < other.valid_to
    )


# What Lago may know already is no mapping's any more; a session without a start is judged by its stop, as
# in the decision.
_WAITING = """
WITH RECURSIVE family AS (
    SELECT %(tag)s::bigint AS id
    UNION
    SELECT h.id_tag_id FROM id_tag_parent h JOIN family ON h.parent_id = family.id
)
SELECT s.id_tag_id, s.id, s.steve_id, s.id_tag_text,
    coalesce(s.started_at, s.reading_stopped_at, s.stopped_at), coalesce(s.reading_stopped_at, s.stopped_at),
    s.state, s.reason, greatest(s.energy_wh, 0)
FROM charging_session s
WHERE s.id_tag_id IN (SELECT id FROM family) AND s.state IN ('held', 'queued')
  AND s.energy_wh IS NOT NULL AND s.superseded_at IS NULL
  AND coalesce(s.started_at, s.reading_stopped_at, s.stopped_at) >= %(from)s
  AND coalesce(s.started_at, s.reading_stopped_at, s.stopped_at) < %(to)s
  AND NOT EXISTS (
      SELECT 1 FROM usage_event e WHERE e.session_id = s.id AND e.attempts > 0 AND e.state <> 'void'
  )
  AND NOT EXISTS (
      SELECT 1 FROM ruling r WHERE r.session_id = s.id AND r.kind = 'assign' AND r.revoked_at IS NULL
  )
ORDER BY 5, 3
"""
