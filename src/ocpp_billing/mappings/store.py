"""Mappings in the database: load them for a decision, change them without rewriting history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, connection, transaction

from ocpp_billing.accounts import audit
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.models import IdTag, Source
from ocpp_billing.charging.tags import ask_again_for_tags
from ocpp_billing.effects import effect
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.resolve import MappingInterval, ParentSighting

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from ocpp_billing.accounts.models import User

MAX_ID_TAG_LENGTH = 255


class MappingError(Exception):
    """A mapping cannot be made or changed as asked; says why and what to do."""


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
    if not text or len(text) > MAX_ID_TAG_LENGTH or not text.isprintable():
        raise MappingError(f"{text[:40]!r} is not an id tag: 1 to {MAX_ID_TAG_LENGTH} printable characters.")
    Source.objects.get_or_create(name=source)
    tag, _ = IdTag.objects.get_or_create(source_id=source, folded=fold_id_tag(text), defaults={"text": text})
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

    Raises:
        MappingError: when it overlaps another mapping of the tag, or something is malformed.
    """
    customer, subscription = customer.strip(), (subscription or "").strip() or None
    if not customer:
        raise MappingError("The customer is missing: give Lago's external customer id.")
    if valid_to is not None and valid_to <= valid_from:
        raise MappingError("The mapping ends before it begins: valid_to must be after valid_from.")
    try:
        with effect("db commit mapping"), transaction.atomic(), connection.cursor() as cursor:
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
            ask_again_for_tags(cursor, [tag.pk])
            audit.record(
                "mapping.create", user=user, actor=by, target=f"tag:{tag.text}", after=_snapshot(mapping)
            )
            return mapping
    except IntegrityError as error:
        if "tag_mapping_no_overlap" not in str(error):
            raise
        raise MappingError(
            f"Tag {id_tag} already has a mapping in that time. End that one first, or choose another date."
        ) from error


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
