"""What the ledger knows about a StEvE's transactions: the questions that discovery asks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connection

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of ids that StEvE has not shown, both ends included."""

    low: int
    high: int

    @property
    def width(self) -> int:
        """How many ids."""
        return self.high - self.low + 1


class Origin(NamedTuple):
    """Whose a session was, and where; first ids are the lowest ones that are still there.

    Attributes:
        tag: our number of the tag.
        box: StEvE's charge box id.
        first_of_tag: id of the first session with that tag.
        first_of_box: id of the first session at that charge box.
    """

    steve_id: int
    tag: int
    box: str
    first_of_tag: int
    first_of_box: int


@dataclass(frozen=True, slots=True)
class KnownSessions:
    """The ledger's sessions of one StEvE, for discovery. Every method is a query or two."""

    source: str

    def highest_id(self) -> int:
        """The highest id ever seen; 0 when none was."""
        return int(self._value("SELECT highest_id FROM source WHERE name = %(source)s") or 0)

    def open_ids(self, *, stuck: bool) -> list[int]:
        """Ids that StEvE last showed without a stop: stuck or closed by a reading, or all others."""
        return self._ids(
            "SELECT steve_id FROM charging_session WHERE source_id = %(source)s AND stopped_at IS NULL"
            " AND superseded_at IS NULL AND vanished_at IS NULL"
            " AND (stuck_since IS NOT NULL OR reading_stopped_at IS NOT NULL) = %(stuck)s"
            " ORDER BY steve_id",
            stuck=stuck,
        )

    def latest_ids(
        self, limit: int, *, beside_tags: Collection[int] = (), beside_boxes: Collection[str] = ()
    ) -> list[int]:
        """The highest ids that are still there, to see that StEvE still is who it was.

        Args:
            limit: how many at most.
            beside_tags: leave out sessions of these tags.
            beside_boxes: leave out sessions at these charge boxes.
        """
        return self._ids(
            "SELECT steve_id FROM charging_session WHERE source_id = %(source)s"
            " AND superseded_at IS NULL AND vanished_at IS NULL"
            " AND id_tag_id <> ALL(%(tags)s) AND charge_box_id <> ALL(%(boxes)s)"
            " ORDER BY steve_id DESC LIMIT %(limit)s",
            limit=limit,
            tags=list(beside_tags),
            boxes=list(beside_boxes),
        )

    def origins(self, ids: Sequence[int]) -> list[Origin]:
        """Whose these sessions were, and where; in order."""
        with connection.cursor() as cursor:
            cursor.execute(_ORIGINS, {"source": self.source, "ids": list(ids)})
            return [Origin(*row) for row in cursor.fetchall()]

    def vanished_at_the_end(self, limit: int) -> list[int]:
        """The lowest ids that are gone and have none above them: a restored StEvE gives them out anew."""
        there = self.latest_ids(1)
        return self._ids(  # asked for in two steps: in one, PostgreSQL reads the whole history for it
            "SELECT steve_id FROM charging_session WHERE source_id = %(source)s"
            " AND superseded_at IS NULL AND vanished_at IS NOT NULL AND steve_id > %(last)s"
            " ORDER BY steve_id LIMIT %(limit)s",
            last=there[0] if there else 0,
            limit=limit,
        )

    def sample_ids(self, limit: int, below: int) -> list[int]:
        """Ids that are still there, spread over the history below one, highest first."""
        return self._ids(
            "SELECT steve_id FROM (SELECT steve_id, row_number() OVER (ORDER BY steve_id DESC) AS nth,"
            " count(*) OVER () AS total FROM charging_session WHERE source_id = %(source)s"
            " AND superseded_at IS NULL AND vanished_at IS NULL AND steve_id < %(below)s) numbered"
            " WHERE (nth - 1) %% greatest(total / %(limit)s, 1) = 0 ORDER BY steve_id DESC LIMIT %(limit)s",
            limit=limit,
            below=below,
        )

    def ids_above(self, steve_id: int, *, seen_before: datetime | None = None) -> list[int]:
        """Known ids above this one that are still there, in order; only those seen before an instant."""
        return self._ids(
            "SELECT steve_id FROM charging_session WHERE source_id = %(source)s AND steve_id > %(above)s"
            " AND superseded_at IS NULL AND vanished_at IS NULL"
            " AND (%(seen_before)s::timestamptz IS NULL OR first_seen_at < %(seen_before)s)"
            " ORDER BY steve_id",
            above=steve_id,
            seen_before=seen_before,
        )

    def fingerprints(self, ids: Sequence[int]) -> dict[int, bytes]:
        """The fingerprints of these ids, as far as they are known."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT steve_id, fingerprint FROM charging_session WHERE source_id = %s"
                " AND steve_id = ANY(%s) AND superseded_at IS NULL",
                [self.source, list(ids)],
            )
            return {steve_id: bytes(known) for steve_id, known in cursor.fetchall()}

    def vanished_since(self, ids: Collection[int]) -> datetime | None:
        """Since when the first of these ids is gone; None while none of them is."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT min(vanished_at) FROM charging_session WHERE source_id = %s"
                " AND steve_id = ANY(%s) AND superseded_at IS NULL",
                [self.source, list(ids)],
            )
            since: datetime | None = cursor.fetchone()[0]
            return since

    def ids_to_recheck(
        self,
        after_id: int,
        *,
        stopped_since: datetime,
        manual_since: datetime,
        history_until: datetime,
        limit: int,
    ) -> list[int]:
        """Stops that may still change: recent ones, and manual ones for longer; in order, after an id.

        A stop is as recent as we saw it. Those of the history that was there before us, we saw all at once:
        they are as recent as the charger says.

        Args:
            after_id: only higher ids.
            stopped_since: of any stop.
            manual_since: of one by hand.
            history_until: when the whole history had been read.
            limit: how many at most.
        """
        return self._ids(
            "SELECT steve_id FROM charging_session WHERE source_id = %(source)s AND steve_id > %(after_id)s"
            " AND superseded_at IS NULL AND vanished_at IS NULL"
            " AND (stop_seen_at >= %(stopped_since)s"
            "     AND (stop_seen_at > %(history_until)s OR stopped_at >= %(stopped_since)s)"
            "   OR stop_actor = 'manual' AND stop_seen_at >= %(manual_since)s"
            "     AND (stop_seen_at > %(history_until)s OR stopped_at >= %(manual_since)s))"
            " ORDER BY steve_id LIMIT %(limit)s",
            stopped_since=stopped_since,
            manual_since=manual_since,
            history_until=history_until,
            after_id=after_id,
            limit=limit,
        )

    def stopped_between(self, start: datetime, end: datetime, *, by_stop: bool) -> list[int]:
        """Stopped sessions whose start (or stop) lies in a window, both ends included, in order."""
        column = "stopped_at" if by_stop else "started_at"
        return self._ids(
            "SELECT steve_id FROM charging_session WHERE source_id = %(source)s AND stopped_at IS NOT NULL"
            f" AND {column} BETWEEN %(start)s AND %(end)s"
            " AND superseded_at IS NULL AND vanished_at IS NULL ORDER BY steve_id",
            start=start,
            end=end,
        )

    def still_there(self, ids: Sequence[int]) -> set[int]:
        """Which of these ids the ledger has, and not as vanished."""
        return set(
            self._ids(
                "SELECT steve_id FROM charging_session WHERE source_id = %(source)s"
                " AND steve_id = ANY(%(ids)s) AND superseded_at IS NULL AND vanished_at IS NULL",
                ids=list(ids),
            )
        )

    def gaps(self, low: int, high: int) -> list[Gap]:
        """Ranges of ids from ``low`` to ``high`` that the ledger does not have, in order."""
        with connection.cursor() as cursor:
            cursor.execute(_GAPS, {"source": self.source, "low": low, "high": high})
            return [Gap(first, last) for first, last in cursor.fetchall()]

    def unknown_tags(self) -> bool:
        """Whether a session has a tag whose parent was never read."""
        return bool(
            self._value(
                "SELECT EXISTS (SELECT 1 FROM id_tag t WHERE t.source_id = %(source)s"
                " AND t.steve_pk IS NOT NULL AND t.vanished_at IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM id_tag_parent h WHERE h.id_tag_id = t.id))"
            )
        )

    def _ids(self, query: str, **bound: Any) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(query, {"source": self.source, **bound})
            return [number for (number,) in cursor.fetchall()]

    def _value(self, query: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(query, {"source": self.source})
            row = cursor.fetchone()
            return None if row is None else row[0]


_ORIGINS = """
SELECT s.steve_id, s.id_tag_id, s.charge_box_id, of_tag.first, of_box.first
FROM charging_session s
CROSS JOIN LATERAL (
    SELECT min(steve_id) AS first FROM charging_session t
    WHERE t.source_id = s.source_id AND t.id_tag_id = s.id_tag_id
      AND t.superseded_at IS NULL AND t.vanished_at IS NULL
) of_tag
CROSS JOIN LATERAL (
    SELECT min(steve_id) AS first FROM charging_session b
    WHERE b.source_id = s.source_id AND b.charge_box_id = s.charge_box_id
      AND b.superseded_at IS NULL AND b.vanished_at IS NULL
) of_box
WHERE s.source_id = %(source)s AND s.steve_id = ANY(%(ids)s)
  AND s.superseded_at IS NULL AND s.vanished_at IS NULL
ORDER BY s.steve_id
"""

_GAPS = """
SELECT previous + 1, steve_id - 1 FROM (
    SELECT steve_id, lag(steve_id, 1, %(low)s::bigint - 1) OVER (ORDER BY steve_id) AS previous
    FROM (
        SELECT steve_id FROM charging_session
        WHERE source_id = %(source)s AND superseded_at IS NULL AND steve_id BETWEEN %(low)s AND %(high)s
        UNION ALL SELECT %(high)s::bigint + 1
    ) known
) neighbours WHERE steve_id > previous + 1 ORDER BY steve_id
"""
