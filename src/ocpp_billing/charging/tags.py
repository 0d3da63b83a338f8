"""Tags as StEvE lists them: their parents over time, and whether they still are who they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocpp_billing.charging.asking import ask_again
from ocpp_billing.charging.fold import fold_id_tag

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ocpp_billing.steve.wire import Tag


def ingest_tags(
    cursor: Any, source: str, tags: Sequence[Tag], now: datetime, *, is_complete: bool = True
) -> None:
    """Write StEvE's list of tags into the ledger; call within a transaction.

    A tag that is no longer listed is flagged, never removed; none is where tags of the list could not be
    read (not ``is_complete``), as it may be one of them. A change of parent is a new row of history.
    The same text under another pk, or the same pk with another text, is an identity conflict: StEvE was
    migrated or restored, or a tag was deleted and made again for somebody else.

    Sessions of tags that changed their parent or identity are decided again.
    """
    cursor.execute(_CREATE_LISTED)
    with cursor.copy("COPY listed_tag FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "text", "text", "text", "bool", "text"])
        for tag in tags:
            parent = None if tag.parent_id_tag is None else fold_id_tag(tag.parent_id_tag)
            copy.write_row((tag.pk, fold_id_tag(tag.id_tag), tag.id_tag, parent, tag.is_blocked, tag.note))
    bound = {"source": source, "now": now}
    cursor.execute(_FIND_CONFLICTS, bound)
    changed = {tag_id for (tag_id,) in cursor.fetchall()}
    cursor.execute(_UPSERT_TAGS, bound)
    if is_complete:
        cursor.execute(_MARK_VANISHED, bound)
    cursor.execute(_RECORD_PARENTS, bound)
    changed |= {tag_id for tag_id, decides in cursor.fetchall() if decides}
    ask_again_for_tags(cursor, sorted(changed))


def ask_again_for_tags(cursor: Any, tag_ids: Sequence[int]) -> int:
    """Ask for new decisions about sessions of these tags and of all tags below them.

    Only what Lago cannot know yet is decided again: history is not rewritten. Returns their number.
    """
    if not tag_ids:
        return 0
    return ask_again(cursor, _UNSENT_OF_FAMILY, {"tag_ids": list(tag_ids)})


_CREATE_LISTED = """
CREATE TEMPORARY TABLE IF NOT EXISTS listed_tag (
    steve_pk bigint, folded text, text text, parent_folded text, blocked bool, note text
) ON COMMIT DELETE ROWS
"""

_FIND_CONFLICTS = """
UPDATE id_tag t SET identity_conflict = conflict.says
FROM (
    SELECT k.id, CASE WHEN k.folded = l.folded
        THEN 'StEvE now shows tag ' || l.text || ' as number ' || l.steve_pk || '; it was ' || k.steve_pk
        ELSE 'StEvE''s tag number ' || k.steve_pk || ' was ' || k.text || ' and is now ' || l.text END AS says
    FROM listed_tag l JOIN id_tag k ON k.source_id = %(source)s AND (
        (k.folded = l.folded AND k.steve_pk <> l.steve_pk)
        OR (k.steve_pk = l.steve_pk AND k.folded <> l.folded)
    )
) conflict
WHERE t.id = conflict.id AND t.identity_conflict IS NULL
RETURNING t.id
"""

_UPSERT_TAGS = """
INSERT INTO id_tag AS t (source_id, folded, text, steve_pk, note, blocked, first_seen_at)
SELECT DISTINCT ON (folded) %(source)s, folded, text, steve_pk, note, blocked, %(now)s
FROM listed_tag ORDER BY folded
ON CONFLICT (source_id, folded) DO UPDATE SET
    text = EXCLUDED.text, steve_pk = EXCLUDED.steve_pk, note = EXCLUDED.note, blocked = EXCLUDED.blocked,
    vanished_at = NULL
WHERE t.text IS DISTINCT FROM EXCLUDED.text OR t.steve_pk IS DISTINCT FROM EXCLUDED.steve_pk
    OR t.note IS DISTINCT FROM EXCLUDED.note OR t.blocked IS DISTINCT FROM EXCLUDED.blocked
    OR t.vanished_at IS NOT NULL
"""

_MARK_VANISHED = """
UPDATE id_tag SET vanished_at = %(now)s
WHERE source_id = %(source)s AND vanished_at IS NULL AND steve_pk IS NOT NULL
  AND folded NOT IN (SELECT folded FROM listed_tag)
"""

# A first sighting without a parent is a fact, too: it tells "had none" from "was never read". It changes no
# decision; any other row may.
_RECORD_PARENTS = """
INSERT INTO id_tag_parent (id_tag_id, parent_id, seen_from)
SELECT t.id, p.id, %(now)s
FROM listed_tag l
JOIN id_tag t ON t.source_id = %(source)s AND t.folded = l.folded
LEFT JOIN id_tag p ON p.source_id = %(source)s AND p.folded = l.parent_folded
LEFT JOIN LATERAL (
    SELECT parent_id, seen_from FROM id_tag_parent h WHERE h.id_tag_id = t.id ORDER BY seen_from DESC LIMIT 1
) last ON true
WHERE last.seen_from IS NULL OR last.parent_id IS DISTINCT FROM p.id
ON CONFLICT (id_tag_id, seen_from) DO NOTHING
RETURNING id_tag_id, parent_id IS NOT NULL OR EXISTS (
    SELECT 1 FROM id_tag_parent h WHERE h.id_tag_id = id_tag_parent.id_tag_id
)
"""

# Sessions of these tags and of all tags that ever were below them.
OF_FAMILY = """
s.id_tag_id IN (
    WITH RECURSIVE family AS (
        SELECT unnest(%(tag_ids)s::bigint[]) AS id
        UNION
        SELECT h.id_tag_id FROM id_tag_parent h JOIN family ON h.parent_id = family.id
    )
    SELECT id FROM family
)
"""
_UNSENT_OF_FAMILY = f"""
{OF_FAMILY} AND s.superseded_at IS NULL
AND (s.stopped_at IS NOT NULL OR s.reading_stopped_at IS NOT NULL) AND s.state IN ('held', 'queued')
"""
