"""Mappings in the database: load them for a decision, change them without rewriting history."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.utils.translation import gettext as _

from ocpp_billing.accounts import audit
from ocpp_billing.charging.asking import ask_again
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.models import IdTag, Source
from ocpp_billing.charging.tags import OF_FAMILY, ask_again_for_tags
from ocpp_billing.effects import effect
from ocpp_billing.local_time import day_and_time
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.resolve import MappingInterval, ParentSighting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from django.db.models import QuerySet

    from ocpp_billing.accounts.models import User

MAX_ID_TAG_LENGTH = 255
# First half of the key of the lock that lets one import wait for another; the second is the source's.
IMPORT_LOCK_CLASS = 0x0C9A


class MappingError(Exception):
    """A mapping cannot be made or changed as asked; says why and what to do."""


class MappingConflictError(MappingError):
    """What is asked is sensible, but contradicts another mapping or what was already billed by it."""


@dataclass(frozen=True, slots=True)
class Family:
    """All that resolving mappings of some tags needs: intervals and parents of them and their ancestors."""

    mappings: dict[int, list[MappingInterval]]
    parents: dict[int, list[ParentSighting]]


def load_family(tag_ids: Iterable[int]) -> Family:
    """Read the mappings and the parents' history of these tags and of every ancestor they ever had."""
    family = Family({}, {})
    with connection.cursor() as cursor:
        cursor.execute(_FAMILY_PARENTS, [list(tag_ids)])
        for tag_id, parent_id, seen_from in cursor.fetchall():
            sightings = family.parents.setdefault(tag_id, [])
            if seen_from is not None:
                sightings.append(ParentSighting(parent_id, seen_from))
        cursor.execute(_FAMILY_MAPPINGS, [list(family.parents)])
        for tag_id, *interval in cursor.fetchall():
            family.mappings.setdefault(tag_id, []).append(MappingInterval(*interval))
    return family


def find_or_add_tag(source: str, text: str) -> IdTag:
    """The ledger's row of a tag, by StEvE's rules of sameness; made when StEvE has not shown it yet.

    Raises:
        MappingError: when the text cannot be an id tag.
    """
    text = text.strip()
    if not text:
        raise MappingError(_("The id tag is missing: write it as StEvE shows it."))
    if len(text) > MAX_ID_TAG_LENGTH or not text.isprintable():
        raise MappingError(
            _("“%(text)s” is not an id tag: 1 to %(n)s printable characters.")
            % {"text": text[:40].encode("unicode_escape").decode(), "n": MAX_ID_TAG_LENGTH}
        )
    Source.objects.get_or_create(name=source)
    tag, _created = IdTag.objects.get_or_create(
        source_id=source, folded=fold_id_tag(text), defaults={"text": text}
    )
    return tag


def create_mapping(
    *,
    source: str,
    id_tag: str,
    customer: str,
    subscription: str | None,
    valid_from: datetime,
    valid_to: datetime | None = None,
    active: bool = True,
    note: str = "",
    verified: bool = True,
    by: str,
    user: User | None = None,
    together: set[int] | None = None,
) -> TagMapping:
    """Map a tag to a customer for a time; sessions that wait for it are decided again.

    Args:
        source: name of the StEvE.
        id_tag: the tag, in any case.
        customer: Lago's external customer id.
        subscription: Lago's external subscription id; None = the customer's only one.
        valid_from: always chosen by a person; sessions that started before are not billed by it.
        valid_to: exclusive; None = until further notice.
        active: False = sessions of that time are held.
        note: free text.
        verified: whether Lago was asked and knows both.
        by: who does it, for the audit.
        user: their account, if any.
        together: within :func:`many_mappings`, what that gave.

    Raises:
        MappingError: when something is malformed.
        MappingConflictError: when it overlaps another mapping of the tag.
    """
    customer, subscription = _payer(customer, subscription)
    _check_interval(valid_from, valid_to)
    audit.refuse_long(note, MappingError)
    with _changing(id_tag) as cursor:
        tag = find_or_add_tag(source, id_tag)
        mapping = TagMapping.objects.create(
            id_tag=tag,
            customer_external_id=customer,
            subscription_external_id=subscription,
            valid_from=valid_from,
            valid_to=valid_to,
            active=active,
            note=note,
            verified=verified,
            created_by=user,
        )
        if together is None:
            ask_again_for_tags(cursor, [tag.pk])
        else:
            together.add(tag.pk)
        audit.record(
            "mapping.create", user=user, actor=by, target=f"tag:{tag.text}", after=_snapshot(mapping)
        )
        return mapping


@contextmanager
def many_mappings(source: str) -> Iterator[set[int]]:
    """Many mappings in one transaction, each made with what this gives as ``together``.

    One such transaction waits for another, so that the second finds what the first one made. Sessions are
    asked again at the end and all at once: tag by tag, in the order of a file, their locks and those of a
    decision could be taken crosswise.

    Args:
        source: name of the StEvE.
    """
    tags: set[int] = set()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [IMPORT_LOCK_CLASS, source])
        # A run that records new tags locks this first, too, so the two do not meet crosswise at the end.
        cursor.execute("SELECT FROM source WHERE name = %s FOR NO KEY UPDATE", [source])
        yield tags
        ask_again_for_tags(cursor, sorted(tags))


def end_mapping(
    mapping_id: int, *, at: datetime, seen: datetime | None = None, by: str, user: User | None = None
) -> TagMapping:
    """End a mapping: sessions that start at ``at`` or later are not paid for by it.

    What Lago was sent stays where it was sent, also when ``at`` lies in the past. ``seen`` is the
    ``updated_at`` of the mapping as the person saw it.

    Raises:
        TagMapping.DoesNotExist: when there is none of that number.
        MappingError: when it would end before it begins.
        MappingConflictError: when it ends earlier already, or was changed since it was seen.
    """
    with _changing() as cursor:
        mapping = _locked(mapping_id, seen)
        before = _snapshot(mapping)
        if at <= mapping.valid_from:
            raise MappingError(
                _("The mapping begins at %(at)s: end it after that, or delete it.")
                % {"at": day_and_time(mapping.valid_from)}
            )
        if mapping.valid_to is not None and mapping.valid_to <= at:
            raise MappingConflictError(
                _("The mapping ends already, at %(at)s.") % {"at": day_and_time(mapping.valid_to)}
            )
        mapping.valid_to = at
        mapping.save(update_fields=["valid_to", "updated_at"])
        _tell(cursor, "mapping.end", mapping, before, by, user)
        return mapping


def switch_mapping(
    mapping_id: int,
    *,
    active: bool,
    at: datetime,
    bill_gap: bool | None = None,
    seen: datetime | None = None,
    by: str,
    user: User | None = None,
) -> TagMapping:
    """Switch a mapping off or on, from ``at``: the interval is cut there, history stays as it was.

    Sessions that start while it is off are held. Switching on again asks whether those of the gap are
    billed after all: there is no default, because both answers are money.

    Args:
        mapping_id: the interval to cut.
        active: on or off.
        at: from when.
        bill_gap: only when switching on: True = the interval that was off counts as on from its
            beginning; False = it stays off until ``at``.
        seen: ``updated_at`` of the mapping as the person saw it; None = whatever it is now.
        by: who does it, for the audit.
        user: their account, if any.

    Returns:
        The interval that holds from ``at``.

    Raises:
        TagMapping.DoesNotExist: when there is none of that number.
        MappingError: when ``at`` lies outside the mapping, or the gap was not spoken about.
        MappingConflictError: when it is on (or off) already, or was changed since it was seen.
    """
    with _changing() as cursor:
        mapping = _locked(mapping_id, seen)
        before = _snapshot(mapping)
        if mapping.active == active:
            raise MappingConflictError(
                _("The mapping is active already.") if active else _("The mapping is switched off already.")
            )
        if active and bill_gap is None:
            raise MappingError(
                _("Say whether the sessions of the time it was off are billed: yes or no (bill_gap).")
            )
        if mapping.valid_to is not None and mapping.valid_to <= at:
            raise MappingError(
                _("The mapping ended at %(at)s: create a new one instead.")
                % {"at": day_and_time(mapping.valid_to)}
            )
        if at <= mapping.valid_from or bill_gap:
            mapping.active = active
            mapping.save(update_fields=["active", "updated_at"])
        else:
            mapping = _cut(mapping, at, user, active=active)
        action = "mapping.switch_on" if active else "mapping.switch_off"
        _tell(cursor, action, mapping, before, by, user, gap_billed=bill_gap if active else None)
        return mapping


def change_mapping(
    mapping_id: int,
    *,
    at: datetime,
    customer: str,
    subscription: str | None,
    verified: bool = True,
    seen: datetime | None = None,
    by: str,
    user: User | None = None,
) -> TagMapping:
    """Let somebody else pay from ``at``: the old interval ends there and a new one begins.

    At or before the beginning of the mapping nothing is cut and the mapping itself is put right, as long
    as Lago was sent nothing by it.

    Args:
        mapping_id: the interval to cut.
        at: sessions that start then or later are paid for by the new customer.
        customer: Lago's external customer id.
        subscription: Lago's external subscription id; None = the customer's only one.
        verified: whether Lago was asked and knows both.
        seen: ``updated_at`` of the mapping as the person saw it; None = whatever it is now.
        by: who does it, for the audit.
        user: their account, if any.

    Returns:
        The interval that holds from ``at``.

    Raises:
        TagMapping.DoesNotExist: when there is none of that number.
        MappingError: when something is malformed or ``at`` lies after its end.
        MappingConflictError: when history would be rewritten, nothing would change, or the mapping was
            changed since it was seen.
    """
    customer, subscription = _payer(customer, subscription)
    with _changing() as cursor:
        mapping = _locked(mapping_id, seen)
        before = _snapshot(mapping)
        if (mapping.customer_external_id, mapping.subscription_external_id) == (customer, subscription):
            raise MappingConflictError(_("The mapping leads there already: nothing would change."))
        if mapping.valid_to is not None and mapping.valid_to <= at:
            raise MappingError(
                _("The mapping ended at %(at)s: create a new one instead.")
                % {"at": day_and_time(mapping.valid_to)}
            )
        if at > mapping.valid_from:
            mapping = _cut(
                mapping,
                at,
                user,
                customer_external_id=customer,
                subscription_external_id=subscription,
                verified=verified,
            )
        elif _events(mapping.pk).filter(attempts__gt=0).exists():
            raise MappingConflictError(
                _(
                    "Sessions were sent to Lago by this mapping, and that cannot be taken back here. Choose "
                    "a date after %(at)s, from which the new customer pays."
                )
                % {"at": day_and_time(mapping.valid_from)}
            )
        else:
            mapping.customer_external_id = customer
            mapping.subscription_external_id = subscription
            mapping.verified = verified
            mapping.save()
        _tell(cursor, "mapping.change", mapping, before, by, user)
        return mapping


def note_mapping(mapping_id: int, *, note: str, by: str, user: User | None = None) -> TagMapping:
    """Replace the note of a mapping; nothing else changes.

    Raises:
        MappingError: when the note is too long.
        TagMapping.DoesNotExist: when there is none of that number.
    """
    audit.refuse_long(note, MappingError)
    with _changing():
        mapping = _locked(mapping_id)
        before = _snapshot(mapping)
        mapping.note = note
        mapping.save(update_fields=["note", "updated_at"])
        audit.record(
            "mapping.note",
            user=user,
            actor=by,
            target=f"tag:{mapping.id_tag.text}",
            before=before,
            after=_snapshot(mapping),
        )
        return mapping


def verify_mapping(
    mapping_id: int, *, seen: datetime | None = None, by: str, user: User | None = None
) -> TagMapping:
    """Write down that Lago was asked and knows the customer and the subscription of a mapping.

    Raises:
        TagMapping.DoesNotExist: when there is none of that number.
        MappingConflictError: when it was changed since it was ``seen``, and leads elsewhere perhaps.
    """
    with _changing():
        mapping = _locked(mapping_id, seen)
        mapping.verified = True
        mapping.save(update_fields=["verified", "updated_at"])
        audit.record(
            "mapping.verify",
            user=user,
            actor=by,
            target=f"tag:{mapping.id_tag.text}",
            before={"verified": False},
            after={**_snapshot(mapping), "verified": True},
        )
        return mapping


def has_events(mapping_id: int) -> bool:
    """Whether a usage event exists by this mapping, so that it must stay to explain it."""
    return _events(mapping_id).exclude(state="void").exists()


def delete_mapping(
    mapping_id: int, *, seen: datetime | None = None, by: str, user: User | None = None
) -> None:
    """Remove a mapping that never led to a usage event. The audit keeps what it was.

    Raises:
        TagMapping.DoesNotExist: when there is none of that number.
        MappingConflictError: when an event exists (it must stay explainable, so the mapping is ended), or
            it was changed since it was ``seen``.
    """
    with _changing() as cursor:
        mapping = _locked(mapping_id, seen)
        # First the sessions, then the mapping: a decision that is being written either is finished and
        # seen below, or finds its session asked anew and starts over. It never points at what is gone.
        ask_again(cursor, _UNDECIDED_OF_FAMILY, {"tag_ids": [mapping.id_tag_id]})
        ask_again_for_tags(cursor, [mapping.id_tag_id])
        if _events(mapping.pk).exclude(state="void").exists():
            raise MappingConflictError(
                _(
                    "Usage events exist by this mapping, so it must stay to explain them. End it, or switch "
                    "it off, from a date of your choice."
                )
            )
        before, tag = _snapshot(mapping), mapping.id_tag
        # Decisions that only held a session keep their words and their customer.
        cursor.execute("UPDATE decision SET mapping_id = NULL WHERE mapping_id = %s", [mapping.pk])
        mapping.delete()
        audit.record("mapping.delete", user=user, actor=by, target=f"tag:{tag.text}", before=before)


@contextmanager
def _changing(id_tag: str = "") -> Iterator[Any]:
    """One transaction for a change of mappings; an overlap becomes a sentence. Yields a cursor."""
    try:
        with effect("db commit mapping"), transaction.atomic(), connection.cursor() as cursor:
            yield cursor
    except IntegrityError as error:
        if "tag_mapping_no_overlap" not in str(error):
            raise
        raise MappingConflictError(
            _("Tag %(tag)s already has a mapping in that time. End that one first, or choose another date.")
            % {"tag": id_tag}
        ) from error


def _payer(customer: str, subscription: str | None) -> tuple[str, str | None]:
    customer, subscription = customer.strip(), (subscription or "").strip() or None
    if not customer:
        raise MappingError(_("The customer is missing: give Lago's external customer id."))
    return customer, subscription


def _check_interval(valid_from: datetime, valid_to: datetime | None) -> None:
    if valid_to is not None and valid_to <= valid_from:
        raise MappingError(_("The mapping ends before it begins: its end must be after its beginning."))


def _locked(mapping_id: int, seen: datetime | None = None) -> TagMapping:
    """The mapping, which nobody else changes now.

    Raises:
        MappingConflictError: when it was changed after the instant at which the person has seen it.
    """
    # NO KEY: a decision that is being written refers to the mapping, and must not wait for us while we
    # wait for its session.
    mappings = TagMapping.objects.select_for_update(of=("self",), no_key=True).select_related("id_tag")
    mapping = mappings.get(pk=mapping_id)
    if seen is not None and mapping.updated_at != seen:
        raise MappingConflictError(_("The mapping was changed meanwhile. Look at it as it is now."))
    return mapping


def _events(mapping_id: int) -> QuerySet[Any]:
    # By its name: the ledger knows the mappings, not the other way round. Events are found by their session.
    events = apps.get_model("billing", "UsageEvent").objects
    return events.filter(decision__mapping_id=mapping_id, session_id=F("decision__session_id"))


def _cut(mapping: TagMapping, at: datetime, user: User | None, **fields: Any) -> TagMapping:
    """End the interval at ``at`` and begin another one there, with some fields changed."""
    until, mapping.valid_to = mapping.valid_to, at
    mapping.save(update_fields=["valid_to", "updated_at"])
    return TagMapping.objects.create(
        id_tag=mapping.id_tag,
        valid_from=at,
        valid_to=until,
        note=mapping.note,
        created_by=user,
        **{
            "customer_external_id": mapping.customer_external_id,
            "subscription_external_id": mapping.subscription_external_id,
            "verified": mapping.verified,
            "active": mapping.active,
            **fields,
        },
    )


def _tell(
    cursor: Any,
    action: str,
    mapping: TagMapping,
    before: dict[str, Any],
    by: str,
    user: User | None,
    **more: bool | None,
) -> None:
    """The tag's sessions are decided again, and the act is written down."""
    ask_again_for_tags(cursor, [mapping.id_tag_id])
    audit.record(
        action,
        user=user,
        actor=by,
        target=f"tag:{mapping.id_tag.text}",
        before=before,
        after={**_snapshot(mapping), **{key: value for key, value in more.items() if value is not None}},
    )


def _snapshot(mapping: TagMapping) -> dict[str, Any]:
    """A mapping as the audit keeps it."""
    return {
        "id_tag": mapping.id_tag.text,
        "customer_id": mapping.customer_external_id,
        "subscription_id": mapping.subscription_external_id,
        "valid_from": mapping.valid_from.isoformat(),
        "valid_to": None if mapping.valid_to is None else mapping.valid_to.isoformat(),
        "active": mapping.active,
        "note": mapping.note,
    }


# Sessions that are neither held nor queued, but wait for a decision all the same.
_UNDECIDED_OF_FAMILY = f"{OF_FAMILY} AND s.needs_decision"

# Every tag asked for and every ancestor appears, with one row per sighting of a parent (or none).
_FAMILY_PARENTS = """
WITH RECURSIVE family AS (
    SELECT unnest(%s::bigint[]) AS id
    UNION
    SELECT h.parent_id FROM id_tag_parent h JOIN family ON h.id_tag_id = family.id
    WHERE h.parent_id IS NOT NULL
)
SELECT family.id, h.parent_id, h.seen_from
FROM family LEFT JOIN id_tag_parent h ON h.id_tag_id = family.id ORDER BY family.id, h.seen_from
"""

_FAMILY_MAPPINGS = """
SELECT id_tag_id, id, customer_external_id, subscription_external_id, valid_from, valid_to, active
FROM tag_mapping WHERE id_tag_id = ANY(%s) ORDER BY id_tag_id, valid_from
"""
