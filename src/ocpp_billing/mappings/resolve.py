"""Who pays for a session: pure, over plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class MappingInterval:
    """An interval of a tag's mapping; half-open: ``valid_from`` <= at < ``valid_to``."""

    mapping_id: int
    customer: str
    subscription: str | None
    valid_from: datetime
    valid_to: datetime | None
    active: bool

    def contains(self, at: datetime) -> bool:
        """Whether the mapping was valid at that instant."""
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)


@dataclass(frozen=True, slots=True)
class ParentSighting:
    """From ``seen_from`` on, StEvE showed this parent (a tag's id; None = no parent)."""

    parent_tag_id: int | None
    seen_from: datetime


@dataclass(frozen=True, slots=True)
class Mapped:
    """An active mapping pays; ``via_tag_ids`` leads from the session's tag to the mapped one."""

    mapping: MappingInterval
    via_tag_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inactive:
    """The tag's closest mapping is switched off for that time: hold, and do not look further up."""

    mapping: MappingInterval


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Neither the tag nor any ancestor has a mapping valid at that time."""


def parent_at(sightings: Sequence[ParentSighting], at: datetime) -> int | None:
    """The parent last read before ``at``, else the first one seen after it.

    Args:
        sightings: in order of ``seen_from``.
        at: the start of the session.
    """
    if not sightings:
        return None
    chosen = sightings[0]
    for sighting in sightings:
        if sighting.seen_from > at:
            break
        chosen = sighting
    return chosen.parent_tag_id


def resolve_mapping(
    tag_id: int,
    at: datetime,
    mappings: Mapping[int, Sequence[MappingInterval]],
    parents: Mapping[int, Sequence[ParentSighting]],
) -> Mapped | Inactive | Unmapped:
    """Find the mapping that pays for a session which started at ``at``.

    A tag's own interval decides, active or not; only where it has none at that time does the closest
    ancestor with one decide. A ring of parents ends the search.
    """
    path: list[int] = []
    current: int | None = tag_id
    while current is not None and current not in path:
        path.append(current)
        for interval in mappings.get(current, ()):
            if interval.contains(at):
                return Mapped(interval, tuple(path)) if interval.active else Inactive(interval)
        current = parent_at(parents.get(current, ()), at)
    return Unmapped()
