"""One's own account: name, password, second step, where one is signed in, tokens, theme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django import forms
from django.contrib import messages
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from ocpp_billing.accounts.people import change_person
from ocpp_billing.accounts.sessions import end_session, end_sessions, sessions_of
from ocpp_billing.accounts.tokens import usable
from ocpp_billing.portal.access import person

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

MOST_SESSIONS = 50


class NameForm(forms.Form):
    """How one is called."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=150,
        help_text=gettext_lazy("As others see it in the portal and in letters."),
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def account(request: HttpRequest) -> HttpResponse:
    """The page; what is posted to it is the name."""
    user = person(request)
    form = NameForm(request.POST or None, initial={"name": user.name})
    if request.method == "POST" and form.is_valid():
        change_person(user.pk, name=form.cleaned_data["name"], by=user)
        messages.success(request, _("Your name is changed."))
        return redirect("portal:account")
    kinds = {one.type: one for one in Authenticator.objects.filter(user=user)}
    codes = kinds.get(Authenticator.Type.RECOVERY_CODES)
    context = {
        "form": form,
        "two_factor": kinds.get(Authenticator.Type.TOTP),
        "recovery_codes": None if codes is None else len(codes.wrap().get_unused_codes()),
        "sessions": list(sessions_of(user)[:MOST_SESSIONS]),
        "current": request.session.session_key,
        "tokens": user.api_tokens.filter(usable()).count(),
    }
    return render(request, "portal/account.html", context)


@require_POST
def end_one_session(request: HttpRequest, session_id: int) -> HttpResponse:
    """Sign out one browser of one's own; this one is signed out by signing out."""
    user = person(request)
    session = UserSession.objects.filter(user=user, pk=session_id).first()
    if session is None:
        messages.info(request, _("That session had ended already."))
    elif session.session_key == request.session.session_key:
        messages.warning(request, _("That is this browser: choose “Sign out” in the menu at the top."))
    else:
        end_session(session, by=user)
        messages.success(request, _("That browser is signed out."))
    return redirect("portal:account")


@require_POST
def end_other_sessions(request: HttpRequest) -> HttpResponse:
    """Sign out every other browser of one's own."""
    user = person(request)
    n = end_sessions(user, by=user, but=request.session.session_key)
    says = ngettext("%(n)s other browser is signed out.", "%(n)s other browsers are signed out.", n)
    messages.success(request, says % {"n": n})
    return redirect("portal:account")
