"""Mappings: who pays for which tag, from when to when."""

from typing import Any

from django.conf import settings
from django.db.models import Q
from ninja import Query, Router, Status

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.api.auth import ApiRequest, Caller, allow
from ocpp_billing.api.errors import ApiError
from ocpp_billing.api.ledger import end_of_tag
from ocpp_billing.api.pages import cut_page, decode_cursor
from ocpp_billing.api.queries import MappingQuery
from ocpp_billing.api.schemas import (
    Id,
    Mapping,
    MappingChange,
    MappingEnd,
    MappingIn,
    MappingPage,
    MappingPreview,
    MappingSwitch,
)
from ocpp_billing.billing.customers import verify_payer
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.mappings import store
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.preview import preview_mapping
from ocpp_billing.mappings.tags import tags_ending

router = Router(tags=["Mappings"])


@router.get("", response=MappingPage, auth=allow(Role.VIEWER))
def list_mappings(
    request: ApiRequest,
    query: Query[MappingQuery],
) -> Any:
    """Mappings, newest first. The history of a tag is a chain of intervals."""
    rows = TagMapping.objects.filter(id_tag__source=settings.CONFIG.steve_source).select_related("id_tag")
    if query.tag is not None and request.auth.sees_tags:
        rows = rows.filter(id_tag__folded=fold_id_tag(query.tag))
    elif query.tag is not None:
        rows = rows.filter(id_tag__in=tags_ending(settings.CONFIG.steve_source, end_of_tag(query.tag)))
    if query.customer is not None:
        rows = rows.filter(customer_external_id=query.customer)
    if query.current is not None:
        is_over = Q(valid_to__isnull=False, valid_to__lte=clock.now())
        rows = rows.filter(~is_over if query.current else is_over)
    before = decode_cursor("mapping", query.cursor)
    if before is not None:
        rows = rows.filter(pk__lt=before)
    found = list(rows.order_by("-pk")[: query.limit + 1])
    page, following = cut_page(found, query.limit, "mapping", lambda mapping: mapping.pk)
    return {"items": [_mapping(row, request.auth) for row in page], "next": following}


@router.post("", response={201: Mapping}, auth=allow(Role.OPERATOR))
def create_mapping(request: ApiRequest, data: MappingIn) -> Any:
    """Map a tag to a customer. Sessions that wait for it are decided again in the next run.

    Lago is asked whether it knows the customer and the subscription; while it does not answer, the mapping
    is saved as not ``verified``.
    """
    caller = request.auth
    mapping = store.create_mapping(
        source=settings.CONFIG.steve_source,
        id_tag=data.id_tag,
        customer=data.customer_id,
        subscription=data.subscription_id or None,
        valid_from=data.valid_from,
        valid_to=data.valid_to,
        active=data.active,
        note=data.note,
        verified=verify_payer(settings.CONFIG, data.customer_id, data.subscription_id or None),
        by=caller.name,
        user=caller.user,
    )
    return Status(201, _mapping(mapping, caller))


@router.post("/preview", response=MappingPreview, auth=allow(Role.OPERATOR))
def preview(request: ApiRequest, data: MappingIn) -> Any:  # noqa: ARG001 - ninja's signature
    """What creating this mapping would release: sessions and energy. Nothing is changed."""
    found = preview_mapping(
        source=settings.CONFIG.steve_source,
        id_tag=data.id_tag,
        customer=data.customer_id,
        valid_from=data.valid_from,
        valid_to=data.valid_to,
        active=data.active,
    )
    return {
        "released": {"sessions": found.sessions, "energy_wh": found.energy_wh},
        "groups": found.groups,
        "overlaps": found.overlaps,
    }


@router.get("/{mapping_id}", response=Mapping, auth=allow(Role.VIEWER))
def get_mapping(request: ApiRequest, mapping_id: Id) -> Any:
    """One mapping."""
    return _mapping(_find(mapping_id), request.auth)


@router.patch("/{mapping_id}", response=Mapping, auth=allow(Role.OPERATOR))
def change_mapping(request: ApiRequest, mapping_id: Id, data: MappingChange) -> Any:
    """Let another customer or subscription pay from an instant on, or change the note.

    The old interval ends at ``at`` and a new one begins: history is never rewritten. The answer is the
    mapping that holds from then on.
    """
    caller = request.auth
    mapping = _find(mapping_id)
    if data.customer_id is None and ("subscription_id" in data.model_fields_set or data.at is not None):
        raise ApiError(422, "invalid", "Say who pays: customer_id is missing.")
    if data.customer_id is not None:
        if data.at is None:
            raise ApiError(422, "invalid", "Say from when the new customer pays: at is missing.")
        subscription = data.subscription_id or None
        mapping = store.change_mapping(
            mapping.pk,
            at=data.at,
            customer=data.customer_id,
            subscription=subscription,
            verified=verify_payer(settings.CONFIG, data.customer_id, subscription),
            by=caller.name,
            user=caller.user,
        )
    if data.note is not None:
        mapping = store.note_mapping(mapping.pk, note=data.note, by=caller.name, user=caller.user)
    return _mapping(mapping, caller)


@router.post("/{mapping_id}/end", response=Mapping, auth=allow(Role.OPERATOR))
def end_mapping(request: ApiRequest, mapping_id: Id, data: MappingEnd) -> Any:
    """End a mapping. What was sent to Lago stays where it was sent."""
    caller = request.auth
    ended = store.end_mapping(_find(mapping_id).pk, at=data.at, by=caller.name, user=caller.user)
    return _mapping(ended, caller)


@router.post("/{mapping_id}/switch", response=Mapping, auth=allow(Role.OPERATOR))
def switch_mapping(request: ApiRequest, mapping_id: Id, data: MappingSwitch) -> Any:
    """Switch a mapping off (its sessions are held) or on again.

    Switching on needs ``bill_gap``: whether the sessions of the time it was off are billed. Both answers
    are money, so there is no default. The answer is the mapping that holds from then on.
    """
    caller = request.auth
    switched = store.switch_mapping(
        _find(mapping_id).pk,
        active=data.active,
        at=data.at or clock.now(),
        bill_gap=data.bill_gap,
        by=caller.name,
        user=caller.user,
    )
    return _mapping(switched, caller)


@router.delete("/{mapping_id}", response={204: None}, auth=allow(Role.OPERATOR))
def delete_mapping(request: ApiRequest, mapping_id: Id) -> Any:
    """Delete a mapping that led to no usage event; any other is ended instead."""
    caller = request.auth
    store.delete_mapping(_find(mapping_id).pk, by=caller.name, user=caller.user)
    return Status(204, None)


def _find(mapping_id: int) -> TagMapping:
    rows = TagMapping.objects.filter(id_tag__source=settings.CONFIG.steve_source).select_related("id_tag")
    mapping = rows.filter(pk=mapping_id).first()
    if mapping is None:
        raise ApiError(404, "not_found", f"There is no mapping {mapping_id}: it may have been deleted.")
    return mapping


def _mapping(mapping: TagMapping, caller: Caller) -> dict[str, Any]:
    return {
        "id": mapping.pk,
        "id_tag": caller.tag(mapping.id_tag.text),
        "customer_id": mapping.customer_external_id,
        "subscription_id": mapping.subscription_external_id,
        "valid_from": mapping.valid_from,
        "valid_to": mapping.valid_to,
        "active": mapping.active,
        "verified": mapping.verified,
        # It may name any tag, as that of a card that was lost.
        "note": mapping.note if caller.sees_tags else "",
        "created_at": mapping.created_at,
        "updated_at": mapping.updated_at,
    }
