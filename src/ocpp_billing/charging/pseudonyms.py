"""A tag that is gone becomes unreadable: a pseudonym takes its place, and nothing else changes.

What was read, decided and billed stays, with its sums. The pseudonym is drawn by lot: nobody finds the tag
from it. A tag with a pseudonym is known by being gone and having no number of StEvE's: should StEvE ever show
the old text or number again, that is a new tag, while sessions that come back keep the pseudonym
(:mod:`charging.ingest`).
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connection, transaction

from ocpp_billing.accounts import audit
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.mask import SHOWN
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

PREFIX = "gone-"
# Three bytes by lot: readable aloud, and enough for the tags of one StEvE.
RANDOM_BYTES = 3


class PseudonymError(Exception):
    """The tag cannot become unreadable (yet); says why and what to do."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """A tag that is to become unreadable.

    Attributes:
        tag_id: our number of it.
        id_tag: its text.
        sessions: how many have it.
        is_pseudonym: it is unreadable already.
        against: why it must stay readable for now, each with what to do; empty = it can be done.
    """

    tag_id: int
    id_tag: str
    sessions: int
    is_pseudonym: bool
    against: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pseudonymised:
    """What was done.

    Attributes:
        pseudonym: the tag's new text.
        sessions: how many have it.
        texts: rows of words in which it took the tag's place.
        sent_whole: usage events that keep the tag in whole, because Lago was sent it.
    """

    pseudonym: str
    sessions: int
    texts: int
    sent_whole: int


def find_prospect(source: str, id_tag: str, now: datetime) -> Prospect:
    """The tag of this text, in any case.

    Raises:
        PseudonymError: when there is none.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM id_tag WHERE source_id = %s AND folded = %s",
            [source, fold_id_tag(id_tag.strip())],
        )
        found = cursor.fetchone()
        if found is None:
            raise PseudonymError(
                f"There is no tag {id_tag} here. If it has a pseudonym already, only that one is known."
            )
        return _examine(cursor, source, found[0], now)


def list_prospects(source: str, gone_before: datetime, now: datetime) -> list[Prospect]:
    """The readable tags that StEvE has not shown since then, in the order in which they became known."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM id_tag WHERE source_id = %s AND vanished_at <= %s AND steve_pk IS NOT NULL"
            " ORDER BY id",
            [source, gone_before],
        )
        return [_examine(cursor, source, tag_id, now) for (tag_id,) in cursor.fetchall()]


def pseudonymise(source: str, tag_id: int, *, by: str, now: datetime) -> Pseudonymised:
    """Replace the text of a tag wherever the ledger has it, in one transaction.

    Usage events stay as they were sent: they are the proof of it, and Lago has them, too.

    Args:
        source: name of the StEvE.
        tag_id: our number of the tag.
        by: who does it, for the audit.
        now: the present instant.

    Raises:
        PseudonymError: when it has a pseudonym already, or something speaks against it.
    """
    with effect("db commit pseudonym"), transaction.atomic(), connection.cursor() as cursor:
        # In the order in which readings and mappings lock, so that nobody waits for another in a ring.
        cursor.execute("SELECT 1 FROM source WHERE name = %s FOR NO KEY UPDATE", [source])
        cursor.execute(
            "SELECT 1 FROM tag_mapping WHERE id_tag_id = %s ORDER BY id FOR NO KEY UPDATE", [tag_id]
        )
        cursor.execute("LOCK TABLE id_tag IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute("SELECT 1 FROM id_tag WHERE id = %s FOR UPDATE", [tag_id])
        cursor.execute(
            "SELECT 1 FROM charging_session WHERE id_tag_id = %s ORDER BY id FOR NO KEY UPDATE", [tag_id]
        )
        prospect = _examine(cursor, source, tag_id, now)
        if prospect.is_pseudonym:
            raise PseudonymError(f"{prospect.id_tag} is a pseudonym already.")
        if prospect.against:
            raise PseudonymError(f"Tag {prospect.id_tag} stays as it is: {' '.join(prospect.against)}")
        cursor.execute(_SPELLINGS, {"tag": tag_id})
        spellings = [spelling for (spelling,) in cursor.fetchall()]
        pseudonym = _draw(cursor, source)
        bound: dict[str, Any] = {"tag": tag_id, "pseudonym": pseudonym, "now": now}
        cursor.execute(_RENAME_TAG, bound)
        cursor.execute(_RENAME_SESSIONS, bound)
        texts = _rename_in_texts(cursor, Wording.of(spellings), pseudonym)
        cursor.execute(_COUNT_SENT_WHOLE, bound)
        done = Pseudonymised(pseudonym, prospect.sessions, texts, cursor.fetchone()[0])
        audit.record(
            "tag.pseudonymise",
            actor=by,
            target=f"tag:{pseudonym}",
            after={"sessions": done.sessions, "texts": done.texts, "sent_whole": done.sent_whole},
        )
    return done


# -- what speaks against it -----------------------------------------------------------------------------


def _examine(cursor: Any, source: str, tag_id: int, now: datetime) -> Prospect:
    cursor.execute(_EXAMINE, {"source": source, "tag": tag_id, "now": now})
    (
        *(text, has_pk, vanished, sessions, shown, a_shown_one, waiting, a_waiting_one, its_state, mapped),
        elsewhere,
    ) = cursor.fetchone()
    against = []
    if has_pk and not vanished:
        against.append(
            "StEvE still shows it. Delete it there first (its transactions there go with it); that is "
            "noticed when the tags are read again, within hours."
        )
    if shown:
        against.append(
            f"StEvE still showed {shown} of its sessions when they were last read, such as {a_shown_one}. "
            "That they are gone is noticed when they are read again, within a month."
        )
    if waiting:
        against.append(
            f"{waiting} of its sessions still wait for something, such as {a_waiting_one} ({its_state}). "
            "Settle them first: see Needs attention in the portal."
        )
    if mapped:
        against.append("It is still mapped to a customer. End its mapping first.")
    if elsewhere:
        against.append(f"Source {elsewhere} has the same tag, and StEvE has not deleted it there.")
    return Prospect(tag_id, text, sessions, vanished and not has_pk, tuple(against))


def _draw(cursor: Any, source: str) -> str:
    while True:
        pseudonym = PREFIX + secrets.token_hex(RANDOM_BYTES)
        cursor.execute("SELECT 1 FROM id_tag WHERE source_id = %s AND folded = %s", [source, pseudonym])
        if cursor.fetchone() is None:
            return pseudonym


# -- texts in which the tag is named: pure --------------------------------------------------------------

# Where a tag stands in StEvE's rows, in our sentences about identity, and as the target of an act.
_BEFORE = (
    r'\btag:|\btag |\btag number \d+ was | and is now |"(?:ocppIdTag|idTag|parentIdTag)"\s*:\s*"',
    r'(?=$| as number \d| and is now |")',
)
# Anywhere else it must stand alone: TAG-1 is not meant where TAG-12 is named.
_ALONE = (r"(?<![\w#.:-])", r"(?![\w#-]|[.:][\w#-])")
_KEY = "id_tag"


@dataclass(frozen=True, slots=True)
class Wording:
    """A tag in all its spellings, to be found in texts.

    A short tag may be any number or word, so it is only found where a tag must stand.
    """

    spellings: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, spellings: Iterable[str]) -> Wording:
        """Of a tag that is spelled like this; in any case, and also as JSON writes it."""
        forms = {form.strip() for text in spellings for form in (text, fold_id_tag(text), *_as_json(text))}
        known = tuple(sorted(forms - {""}, key=lambda form: (-len(form), form)))
        if not known:
            return cls(known, re.compile("(?!)"))
        one = f"(?:{'|'.join(map(re.escape, known))})"
        ways = [f"(?P<before>{_BEFORE[0]}){one}{_BEFORE[1]}"]
        if min(map(len, known)) > SHOWN:
            ways.append(f"{_ALONE[0]}{one}{_ALONE[1]}")
        return cls(known, re.compile("|".join(ways), re.IGNORECASE))

    def replace(self, text: str, pseudonym: str) -> str:
        """The text with the pseudonym in the tag's place."""
        return self.pattern.sub(lambda found: f"{found['before'] or ''}{pseudonym}", text)

    def replace_in(self, value: Any, pseudonym: str, key: str = "") -> Any:
        """The same for all texts within a value of JSON."""
        if isinstance(value, dict):
            return {name: self.replace_in(each, pseudonym, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self.replace_in(each, pseudonym) for each in value]
        if not isinstance(value, str):
            return value
        if key == _KEY and value.lower() in {form.lower() for form in self.spellings}:
            return pseudonym
        return self.replace(value, pseudonym)


def _as_json(text: str) -> tuple[str, str]:
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


# -- SQL ---------------------------------------------------------------------------------------------------


def _rename_in_texts(cursor: Any, wording: Wording, pseudonym: str) -> int:
    """Replace the tag in all texts of the ledger; each table is read once. Returns how many rows changed."""
    changed = 0
    needles = [form.lower() for form in wording.spellings]
    for table, columns in _TEXTS.items():
        texts = [f"{column}::text" for column in columns]
        cursor.execute(
            f"SELECT id, {', '.join(texts)} FROM {table} WHERE EXISTS ("
            "SELECT 1 FROM unnest(%s::text[]) needle"
            f" WHERE strpos(lower(concat_ws(' ', {', '.join(texts)})), needle) > 0"
            ") ORDER BY id FOR NO KEY UPDATE",
            [needles],
        )
        setting = ", ".join(f"{column} = %s{'::jsonb' * (column in _JSON)}" for column in columns)
        for number, *old in cursor.fetchall():
            new = [
                _renamed(value, column, wording, pseudonym)
                for column, value in zip(columns, old, strict=True)
            ]
            if new != old:
                cursor.execute(f"UPDATE {table} SET {setting} WHERE id = %s", [*new, number])
                changed += 1
    return changed


def _renamed(value: str | None, column: str, wording: Wording, pseudonym: str) -> str | None:
    """A column of a row; JSON is its text, which stays as it is where nothing is replaced."""
    if value is None:
        return None
    if column not in _JSON:
        return wording.replace(value, pseudonym)
    old = json.loads(value)
    new = wording.replace_in(old, pseudonym)
    return value if new == old else json.dumps(new, ensure_ascii=False)


# Everything that we or people wrote in words, and rows that could not be read. Usage events are frozen.
_TEXTS = {
    "id_tag": ("identity_conflict",),
    "malformed_row": ("raw", "reason"),
    "decision": ("says", "note"),
    "ruling": ("note",),
    "tag_mapping": ("note",),
    "audit_entry": ("target", "before", "after", "note"),
    "sync_run": ("errors",),
    "sync_step": ("error",),
    "sync_log": ("message",),
    "alert": ("says", '"do"'),
}
_JSON = {"before", "after", "errors"}

_EXAMINE = """
SELECT t.text, t.steve_pk IS NOT NULL, t.vanished_at IS NOT NULL,
    s.sessions, s.shown, s.a_shown_one, s.waiting, s.a_waiting_one,
    (SELECT state FROM charging_session WHERE id = s.waiting_id),
    EXISTS (SELECT 1 FROM tag_mapping m WHERE m.id_tag_id = t.id AND m.active
        AND (m.valid_to IS NULL OR m.valid_to > %(now)s)),
    (SELECT min(o.source_id) FROM id_tag o
        WHERE o.folded = t.folded AND o.source_id <> t.source_id AND o.vanished_at IS NULL)
FROM id_tag t, LATERAL (
    SELECT count(*) AS sessions,
        count(*) FILTER (WHERE is_shown) AS shown, min(steve_id) FILTER (WHERE is_shown) AS a_shown_one,
        count(*) FILTER (WHERE waits) AS waiting, min(steve_id) FILTER (WHERE waits) AS a_waiting_one,
        min(id) FILTER (WHERE waits) AS waiting_id
    FROM (
        SELECT id, steve_id, vanished_at IS NULL AND superseded_at IS NULL AS is_shown,
            needs_decision OR state NOT IN ('confirmed', 'excluded') AS waits
        FROM charging_session WHERE id_tag_id = t.id
    ) of_tag
) s
WHERE t.source_id = %(source)s AND t.id = %(tag)s
"""

_SPELLINGS = """
SELECT text FROM id_tag WHERE id = %(tag)s
UNION SELECT id_tag_text FROM charging_session WHERE id_tag_id = %(tag)s
"""

_RENAME_TAG = """
UPDATE id_tag SET text = %(pseudonym)s, folded = %(pseudonym)s, steve_pk = NULL, note = NULL,
    vanished_at = coalesce(vanished_at, %(now)s)
WHERE id = %(tag)s
"""

# What Lago got is told by the fingerprint, and no revision is raised: nothing is read or decided anew.
_RENAME_SESSIONS = """
UPDATE charging_session SET id_tag_text = %(pseudonym)s,
    raw = raw || jsonb_build_object('ocppIdTag', %(pseudonym)s::text)
WHERE id_tag_id = %(tag)s
"""

# With LAGO_SEND_ID_TAG.
_COUNT_SENT_WHOLE = """
SELECT count(*) FROM usage_event e JOIN charging_session s ON s.id = e.session_id
WHERE s.id_tag_id = %(tag)s AND strpos(e.payload, '"id_tag":') > 0
"""
