"""Accept an invitation: choose a name and a password, and be signed in."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from allauth.account.utils import perform_login
from django import forms
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ValidationError
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing.accounts import invitations
from ocpp_billing.accounts.people import PeopleError

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


class AcceptForm(forms.Form):
    """Name and password of whoever was invited."""

    name = forms.CharField(label=gettext_lazy("Your name"), max_length=150)
    password1 = forms.CharField(
        label=gettext_lazy("Password"),
        max_length=128,
        strip=False,
        widget=forms.PasswordInput,
        help_text=gettext_lazy("At least 12 characters; not a common one, not like your name or address."),
    )
    password2 = forms.CharField(
        label=gettext_lazy("Password, again"), max_length=128, strip=False, widget=forms.PasswordInput
    )

    def clean_password2(self) -> str:
        """Typed twice alike."""
        again: str = self.cleaned_data["password2"]
        if again != self.cleaned_data.get("password1", again):
            raise ValidationError(_("The two passwords are not the same."))
        return again


@login_not_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def accept_invitation(request: HttpRequest, link: str) -> HttpResponse:
    """The page behind the link of an invitation."""
    try:
        invitation = invitations.find_invitation(link)
        form = AcceptForm(request.POST or None, initial={"name": invitation.name})
        if request.method == "POST" and form.is_valid():
            try:
                user = invitations.accept(
                    link, name=form.cleaned_data["name"], password=form.cleaned_data["password1"]
                )
            except PeopleError as error:
                form.add_error("password1", str(error))
            else:
                response: HttpResponse = perform_login(request, user)
                return response
    except invitations.InvitationGoneError:
        return render(request, "portal/invitation_gone.html", status=HTTPStatus.GONE)
    context: dict[str, Any] = {"invitation": invitation, "form": form, "link": link}
    return render(request, "portal/invitation.html", context)
