"""Move sessions that were billed by a mapping to another subscription: choose, look, then do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing.accounts.models import Role
from ocpp_billing.mappings.listing import sent_sessions, total_sent
from ocpp_billing.portal import moving
from ocpp_billing.portal.access import needs
from ocpp_billing.portal.mapping_form import find_mapping
from ocpp_billing.portal.paging import read_page

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

ROWS = 50


def _ticked(request: HttpRequest, mapping_id: int) -> list[int]:
    """Sessions that were ticked, on this page or another, as far as they were sent by this mapping."""
    wanted = {int(text) for text in request.POST.getlist("session") if text.isascii() and text.isdigit()}
    if not wanted:
        return []
    return [row.session_id for row in sent_sessions(mapping_id, only=wanted, limit=len(wanted))]


def _all_elsewhere(mapping_id: int, customer: str, subscription: str) -> list[int]:
    """The newest sessions of this mapping that are not billed there yet, and one more than go at once."""
    found: list[int] = []
    before = None
    while len(found) <= moving.AT_ONCE and (rows := sent_sessions(mapping_id, before=before, limit=1_000)):
        found += [
            row.session_id
            for row in rows
            if row.customer != customer or (subscription and row.subscription != subscription)
        ]
        before = rows[-1].session_id
    return found[: moving.AT_ONCE + 1]


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_move(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Choose sessions and where they belong; then what moving does; then moving."""
    mapping = find_mapping(mapping_id)
    form = moving.MoveForm.read(request)
    ticked = _ticked(request, mapping.pk) if request.method == "POST" else []
    take_all = request.POST.get("all") == "true"
    chosen = ticked
    if take_all and form.do == "preview":
        chosen = _all_elsewhere(mapping.pk, form.values["customer"], form.values["subscription"])
    errors: dict[str, str] = {}
    if form.wants_plan:
        if not chosen:
            errors["session"] = _("Choose at least one session that is not billed there yet.")
        errors |= form.errors()
        if not errors:
            answer = moving.preview_or_move(
                request,
                form,
                chosen,
                subject=mapping.id_tag.text,
                back=reverse("portal:mapping", args=[mapping.pk]),
                take_all=take_all,
            )
            if answer is not None:
                return answer
    page = read_page(
        request,
        "sent",
        lambda before, limit: sent_sessions(mapping.pk, before=before, limit=limit),
        lambda row: row.session_id,
        size=ROWS,
    )
    context: dict[str, Any] = {
        "mapping": mapping,
        "page": page,
        "sent": total_sent(mapping.pk),
        "ticked": ticked,
        "ticked_elsewhere": sorted(set(ticked) - {row.session_id for row in page.rows}),
        "take_all": take_all,
        "most": moving.AT_ONCE,
        "errors": errors,
    }
    return render(request, "portal/mapping_move.html", context | form.context())
