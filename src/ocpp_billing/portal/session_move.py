"""Move one billed session to another subscription, whoever let it be billed there: a mapping or a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.move import billed_to
from ocpp_billing.portal.access import needs
from ocpp_billing.portal.acts import find_session
from ocpp_billing.portal.moving import MoveForm, preview_or_move

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def session_move(request: HttpRequest, session_id: int) -> HttpResponse:
    """Choose where the session belongs; then what moving does; then moving."""
    session = find_session(session_id)
    form = MoveForm.read(request)
    errors = form.errors() if form.wants_plan else {}
    if form.wants_plan and not errors:
        answer = preview_or_move(
            request,
            form,
            [session.pk],
            subject=_("session %(id)s") % {"id": session.steve_id},
            back=reverse("portal:session", args=[session.pk]),
        )
        if answer is not None:
            return answer
    context = {"session": session, "billed": billed_to(session), "errors": errors}
    return render(request, "portal/session_move.html", context | form.context())
