"""What a mapping would do before it is saved: which sessions wait for it, and how many kWh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import connection

from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.models import IdTag
from ocpp_billing.mappings.resolve import Mapped, MappingInterval, resolve_mapping
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


@dataclass(frozen=True, slots=True)
class MappingPreview:
    """What a mapping would release.

    Attributes:
        sessions: held sessions that wait for nothing but a mapping and would get this one.
        energy_wh: their energy.
        groups: all sessions that Lago does not know yet and this mapping would pay for, as they stand
            now; those held for another reason stay held.
        overlaps: an interval of the tag is in the way: saving would be refused.
    """

    sessions: int
    energy_wh: int
    groups: list[PreviewGroup]
    overlaps: bool


WAITS_FOR_MAPPING = frozenset({"unmapped_tag", "mapping_inactive"})


def preview_mapping(
    *,
    source: str,
    id_tag: str,
    customer: str,
    valid_from: datetime,
    valid_to: datetime | None = None,
    active: bool = True,
) -> MappingPreview:
    """Work out what :func:`~ocpp_billing.mappings.store.create_mapping` with the same would release.

    The tag's own sessions and those of tags below it that inherit. Whether Lago has a subscription for
    them is decided when it is saved.
    """
    tag = IdTag.objects.filter(source_id=source, folded=fold_id_tag(id_tag)).first()
    if tag is None:
        return MappingPreview(0, 0, [], overlaps=False)
    proposed = MappingInterval(_PROPOSED, customer, None, valid_from, valid_to, active)
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, {"tag": tag.pk, "from": valid_from, "to": valid_to or "infinity"})
        waiting = cursor.fetchall()
    family = load_family({tag.pk, *(tag_id for tag_id, *_ in waiting)})
    own = family.mappings.setdefault(tag.pk, [])
    overlaps = any(_overlap(interval, proposed) for interval in own)
    own.append(proposed)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for tag_id, started_at, state, reason, energy_wh in waiting:
        found = resolve_mapping(tag_id, started_at, family.mappings, family.parents)
        if isinstance(found, Mapped) and found.mapping.mapping_id == _PROPOSED:
            group = groups.setdefault((state, reason), [0, 0])
            group[0] += 1
            group[1] += energy_wh
    lines = [PreviewGroup(*key, *amount) for key, amount in groups.items()]
    released = [line for line in lines if line.reason in WAITS_FOR_MAPPING]
    return MappingPreview(
        sum(line.sessions for line in released),
        sum(line.energy_wh for line in released),
        sorted(lines, key=lambda line: (-line.energy_wh, line.state, line.reason or "")),
        overlaps=overlaps,
    )


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
SELECT s.id_tag_id, coalesce(s.started_at, s.reading_stopped_at, s.stopped_at), s.state, s.reason,
    greatest(s.energy_wh, 0)
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
"""
