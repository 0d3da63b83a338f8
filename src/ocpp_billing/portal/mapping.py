"""One mapping: what it is, its tag's history, and what can be done about it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import messages
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ocpp_billing import clock
from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.customers import verify_payer
from ocpp_billing.mappings import store
from ocpp_billing.mappings.listing import MappingFilter, list_mappings, total_sent
from ocpp_billing.mappings.preview import preview_mapping
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.format import count, stamp
from ocpp_billing.portal.mapping_form import find_mapping, group_rows, read_local, seen_at
from ocpp_billing.portal.mappings import month_start
from ocpp_billing.portal.sync_now import ask_for_run

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.mappings.models import TagMapping
    from ocpp_billing.mappings.preview import MappingPreview

HISTORY_ROWS = 200


@require_GET
@never_cache
def mapping(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """What it is, what it did, and what came before and after."""
    found = find_mapping(mapping_id)
    now = clock.now()
    chosen = MappingFilter(
        source=settings.CONFIG.steve_source,
        now=now,
        month_from=month_start(now),
        whole_tags=person(request).is_operator,
        tag_id=found.id_tag_id,
    )
    history = sorted(list_mappings(chosen, limit=HISTORY_ROWS), key=lambda row: row.valid_from, reverse=True)
    row = next((row for row in history if row.mapping_id == found.pk), None)
    if row is None:  # older than all that are listed
        (row,) = list_mappings(dataclasses.replace(chosen, mapping_id=found.pk))
    return render(
        request,
        "portal/mapping.html",
        {
            "mapping": found,
            "row": row,
            "history": history,
            "sent": total_sent(found.pk),
            "has_events": store.has_events(found.pk),
            "note_length": NOTE_LENGTH,
        },
    )


def _touched(found: TagMapping, at: datetime, *, active: bool) -> MappingPreview:
    """The sessions that this mapping pays for, or would, from ``at``, and that Lago does not know."""
    return preview_mapping(
        source=settings.CONFIG.steve_source,
        id_tag=found.id_tag.text,
        customer=found.customer_external_id,
        valid_from=at,
        valid_to=found.valid_to,
        active=active,
        replaces=found.pk,
    )


def _instant(request: HttpRequest) -> tuple[datetime, str | None]:
    """From when, as the address says: now, unless another date is chosen; and what is wrong with that."""
    if request.GET.get("when") != "at":
        return clock.now(), None
    try:
        return read_local(request.GET.get("at", "")), None
    except ValueError as error:
        return clock.now(), _("Give %(what)s.") % {"what": error}


def _posted_instant(request: HttpRequest) -> datetime:
    try:
        return read_local(request.POST.get("at", ""))
    except ValueError:
        raise MappingError(_("From when? Choose it and look at what it does.")) from None


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_switch(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Switch it off, or on again after saying what becomes of the gap."""
    found = find_mapping(mapping_id)
    user = person(request)
    if request.method == "POST":
        gap = {"bill": True, "keep": False}.get(request.POST.get("gap", ""))
        active = request.POST.get("active") == "true"
        if active and gap is None:
            messages.error(request, _("Say whether the sessions of the time it was off are billed."))
            return redirect("portal:mapping_switch", found.pk)
        try:
            switched = store.switch_mapping(
                found.pk,
                active=active,
                at=_posted_instant(request),
                bill_gap=gap,
                seen=seen_at(request),
                by=user.email,
                user=user,
            )
        except MappingError as error:
            messages.error(request, str(error))
            return redirect("portal:mapping", found.pk)
        says = (
            _("%(tag)s is switched on.") if active else _("%(tag)s is switched off: its sessions are held.")
        )
        messages.success(request, f"{says % {'tag': found.id_tag.text}} {ask_for_run(request)}")
        return redirect("portal:mapping", switched.pk)
    if found.active:
        return _cut_page(request, found, "off")
    now = clock.now()
    held = _touched(found, found.valid_from, active=True)
    over = found.valid_to is not None and found.valid_to <= now
    context = {"mapping": found, "gap": held, "groups": group_rows(held), "at": now, "over": over}
    return render(request, "portal/mapping_switch_on.html", context)


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_end(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """End it: sessions that begin later are not paid for by it."""
    found = find_mapping(mapping_id)
    user = person(request)
    if request.method == "POST":
        try:
            ended = store.end_mapping(
                found.pk, at=_posted_instant(request), seen=seen_at(request), by=user.email, user=user
            )
        except MappingError as error:
            messages.error(request, str(error))
            return redirect("portal:mapping_end", found.pk)
        says = _("The mapping of %(tag)s ends at %(at)s.") % {
            "tag": found.id_tag.text,
            "at": stamp(ended.valid_to, clock.now()) if ended.valid_to is not None else "",
        }
        messages.success(request, f"{says} {ask_for_run(request)}")
        return redirect("portal:mapping", found.pk)
    return _cut_page(request, found, "end")


def _cut_page(request: HttpRequest, found: TagMapping, what: str) -> HttpResponse:
    """What switching off, or ending, does at the instant that is chosen in the address."""
    at, wrong = _instant(request)
    if wrong is None and what == "end" and at <= found.valid_from:
        wrong = _("It has to end after it begins, or be deleted.")
    if wrong is None and found.valid_to is not None and at >= found.valid_to:
        wrong = _("It ends before that already.")
    preview = _touched(found, at, active=what == "end")
    context: dict[str, Any] = {
        "mapping": found,
        "what": what,
        "at": at,
        "chosen": request.GET.get("when", "now"),
        "given": request.GET.get("at", ""),
        "wrong": wrong,
        "preview": preview,
        "touched_wh": sum(one.energy_wh for one in preview.paid),
        "sent": total_sent(found.pk, since=at),
    }
    return render(request, "portal/mapping_cut.html", context)


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_delete(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Delete it, as long as no usage event needs it for its explanation."""
    found = find_mapping(mapping_id)
    user = person(request)
    if request.method == "POST":
        try:
            store.delete_mapping(found.pk, seen=seen_at(request), by=user.email, user=user)
        except MappingError as error:
            messages.error(request, str(error))
            return redirect("portal:mapping", found.pk)
        says = _("The mapping of %(tag)s is deleted. The audit keeps it.") % {"tag": found.id_tag.text}
        messages.success(request, f"{says} {ask_for_run(request)}")
        return redirect("portal:mappings")
    preview = _touched(found, found.valid_from, active=True)
    context = {
        "mapping": found,
        "has_events": store.has_events(found.pk),
        "preview": preview,
        "touched_wh": sum(one.energy_wh for one in preview.paid),
    }
    return render(request, "portal/mapping_delete.html", context)


@needs(Role.OPERATOR)
@require_POST
def mapping_note(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Replace its note."""
    user = person(request)
    # Browsers count the end of a line as one character, and send two.
    note = request.POST.get("note", "").replace("\r\n", "\n").strip()
    if len(note) > NOTE_LENGTH:
        messages.error(
            request, _("A note has at most %(n)s characters. Nothing was saved.") % {"n": count(NOTE_LENGTH)}
        )
        return redirect("portal:mapping", mapping_id)
    store.note_mapping(find_mapping(mapping_id).pk, note=note, by=user.email, user=user)
    messages.success(request, _("The note is saved."))
    return redirect("portal:mapping", mapping_id)


@needs(Role.OPERATOR)
@require_POST
def mapping_verify(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Ask Lago about one that was typed in while Lago was away."""
    user = person(request)
    found = find_mapping(mapping_id)
    try:
        known = verify_payer(settings.CONFIG, found.customer_external_id, found.subscription_external_id)
    except MappingError as error:
        messages.error(request, _("%(why)s Change who pays.") % {"why": error})
        return redirect("portal:mapping", mapping_id)
    if known:
        try:
            store.verify_mapping(found.pk, seen=found.updated_at, by=user.email, user=user)
        except MappingError as error:
            messages.error(request, str(error))
        else:
            says = _("Lago knows the customer and the subscription.")
            messages.success(request, f"{says} {ask_for_run(request)}")
    else:
        messages.warning(request, _("Lago still cannot be asked. Try again in a minute."))
    return redirect("portal:mapping", mapping_id)
