"""API tokens: one's own, and for admins everybody's."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.http import Http404
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from ocpp_billing import clock
from ocpp_billing.accounts.confirmation import demand_confirmation
from ocpp_billing.accounts.models import ApiToken, Role, User
from ocpp_billing.accounts.tokens import (
    DEFAULT_LIFETIME,
    MAX_NAME_LENGTH,
    TokenError,
    issue_token,
    revoke_token,
)
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.paging import read_page

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest, HttpResponse

NEVER = "never"
LIFETIMES = [
    ("30", gettext_lazy("in 30 days")),
    ("90", gettext_lazy("in 90 days")),
    ("365", gettext_lazy("in a year")),
    (NEVER, gettext_lazy("never, until it is revoked")),
]


class TokenForm(forms.Form):
    """A token for oneself; its role is at most one's own."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=MAX_NAME_LENGTH,
        help_text=gettext_lazy("What it is for: “monitoring”, “nightly export”."),
    )
    role = forms.ChoiceField(
        label=gettext_lazy("Role"),
        help_text=gettext_lazy("As little as the program needs: viewers read and export."),
    )
    lifetime = forms.ChoiceField(
        label=gettext_lazy("Expires"), choices=LIFETIMES, initial=str(DEFAULT_LIFETIME.days)
    )

    def __init__(self, user: User, data: Any = None) -> None:
        super().__init__(data, initial={"role": Role.VIEWER})
        allowed = [role for role in reversed(Role) if role.within(Role(user.role))]
        self.fields["role"].choices = [(role.value, role.label) for role in allowed]  # type: ignore[attr-defined]


def _visible(user: User) -> QuerySet[ApiToken]:
    """Tokens that this person may see and revoke."""
    rows = ApiToken.objects.select_related("user")
    return rows if user.is_admin else rows.filter(user=user)


def standing(token: ApiToken) -> str:
    """``usable``, ``revoked``, ``expired``, or ``closed`` when its person is deactivated."""
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is not None and token.expires_at <= clock.now():
        return "expired"
    return "usable" if token.user.is_active else "closed"


@needs(Role.VIEWER)
@never_cache
@require_GET
def tokens(request: HttpRequest) -> HttpResponse:
    """The list; ``?of=everybody`` for admins."""
    user = person(request)
    everybody = user.is_admin and request.GET.get("of") == "everybody"
    rows = _visible(user) if everybody else _visible(user).filter(user=user)

    def read(after: int | None, limit: int) -> list[ApiToken]:
        following = rows if after is None else rows.filter(pk__lt=after)
        return list(following.order_by("-pk")[:limit])

    page = read_page(request, "tokens", read, lambda token: token.pk)
    context = {
        "page": page,
        "rows": [{"token": token, "standing": standing(token)} for token in page.rows],
        "everybody": everybody,
    }
    return render(request, "portal/tokens.html", context)


@needs(Role.VIEWER)
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_token(request: HttpRequest) -> HttpResponse:
    """Make a token; it is shown in the answer and never again."""
    demand_confirmation(request)
    user = person(request)
    form = TokenForm(user, request.POST or None)
    if request.method == "POST" and form.is_valid():
        lifetime = form.cleaned_data["lifetime"]
        try:
            token, text = issue_token(
                user,
                name=form.cleaned_data["name"],
                role=Role(form.cleaned_data["role"]),
                expires_at=None if lifetime == NEVER else clock.now() + timedelta(days=int(lifetime)),
            )
        except TokenError as error:
            form.add_error("name", str(error))
        else:
            return render(request, "portal/token_made.html", {"token": token, "text": text})
    return render(request, "portal/token_new.html", {"form": form})


@needs(Role.VIEWER)
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def revoke(request: HttpRequest, token_id: int) -> HttpResponse:
    """Revoke a token of one's own; admins anybody's."""
    user = person(request)
    token = _visible(user).filter(pk=token_id).first()
    if token is None:
        raise Http404
    mine = token.user_id == user.pk
    back = reverse("portal:tokens") + ("" if mine else "?of=everybody")
    if request.method == "POST":
        revoke_token(token, by=user)
        messages.success(request, _("The token “%(name)s” is revoked.") % {"name": token.name})
        return redirect(back)
    context = {
        "title": _("Revoke the token “%(name)s”") % {"name": token.name},
        "says": _(
            "Programs that use this token of %(person)s (…%(hint)s) are refused from now on and need a new "
            "one. This cannot be undone."
        )
        % {"person": token.user, "hint": token.hint},
        "button": _("Revoke the token"),
        "loses": True,
        "back": back,
    }
    return render(request, "portal/confirm.html", context)
