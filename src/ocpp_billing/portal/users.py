"""Users: who may sign in, what they may do, and who is invited. For admins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.mfa.models import Authenticator
from django import forms
from django.contrib import messages
from django.db.models import Count, Exists, OuterRef
from django.http import Http404
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ocpp_billing import clock
from ocpp_billing.accounts import invitations, letters, people, recovery, tokens
from ocpp_billing.accounts.confirmation import demand_confirmation, is_confirmed
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.accounts.second_factor import has_second_factor, remove_second_factor
from ocpp_billing.accounts.sessions import count_sessions, end_sessions, sessions_of
from ocpp_billing.mail import MailError
from ocpp_billing.portal.access import needs, person

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from django.utils.functional import Promise

    from ocpp_billing.accounts.models import Invitation

ROLES_HINT = gettext_lazy(
    "Viewers read and export. Operators also map tags, review sessions, synchronize, and close sessions in "
    "StEvE. Admins may do everything, people and going live included."
)
# Act of an admin on a person -> title, what it means, button, whether something is lost.
ACTS: dict[str, tuple[str | Promise, str | Promise, str | Promise, bool]] = {
    "new-password": (
        gettext_lazy("A new password for %(name)s"),
        gettext_lazy(
            "%(name)s gets a link to choose a new password. It works once, within a day; until then the "
            "present password stays. Two-factor sign-in is not touched."
        ),
        gettext_lazy("Make the link"),
        False,
    ),
    "end-sessions": (
        gettext_lazy("Sign %(name)s out everywhere"),
        gettext_lazy("Every browser is signed out at once. API tokens go on working."),
        gettext_lazy("End all sessions of %(name)s"),
        True,
    ),
    "revoke-tokens": (
        gettext_lazy("Revoke the tokens of %(name)s"),
        gettext_lazy(
            "Programs that use one of them are refused from now on and need a new token. "
            "This cannot be undone."
        ),
        gettext_lazy("Revoke all tokens of %(name)s"),
        True,
    ),
    "remove-two-factor": (
        gettext_lazy("Remove two-factor sign-in of %(name)s"),
        gettext_lazy(
            "For somebody who lost phone and recovery codes: the password alone is enough from now on. Make "
            "sure that it is really %(name)s who asks. They can set it up again in their account."
        ),
        gettext_lazy("Remove two-factor sign-in"),
        True,
    ),
    "deactivate": (
        gettext_lazy("Deactivate %(name)s"),
        gettext_lazy(
            "%(name)s is signed out at once and cannot sign in any more; their API tokens are refused as "
            "long as the account is deactivated. What they did stays in the audit log."
        ),
        gettext_lazy("Deactivate %(name)s"),
        True,
    ),
    "activate": (
        gettext_lazy("Activate %(name)s"),
        gettext_lazy("%(name)s can sign in again; API tokens that were not revoked work again."),
        gettext_lazy("Activate %(name)s"),
        False,
    ),
}


# Those that let somebody in.
OPENING_ACTS = {"new-password", "remove-two-factor", "activate"}


class InviteForm(forms.Form):
    """Whom to invite."""

    email = forms.EmailField(label=gettext_lazy("E-mail"), max_length=254)
    name = forms.CharField(label=gettext_lazy("Name"), max_length=150)
    role = forms.ChoiceField(
        label=gettext_lazy("Role"), choices=Role.choices, initial=Role.VIEWER, help_text=ROLES_HINT
    )


class UserForm(forms.Form):
    """What an admin may change of a person at once."""

    name = forms.CharField(label=gettext_lazy("Name"), max_length=150)
    role = forms.ChoiceField(label=gettext_lazy("Role"), choices=Role.choices, help_text=ROLES_HINT)


@needs(Role.ADMIN)
@never_cache
@require_GET
def users(request: HttpRequest) -> HttpResponse:
    """Everybody who may sign in, and open invitations with their links."""
    totp = Authenticator.objects.filter(user=OuterRef("pk"), type=Authenticator.Type.TOTP)
    rows = User.objects.annotate(
        two_factor=Exists(totp), tokens=Count("api_tokens", filter=tokens.usable("api_tokens__"))
    )
    sessions = count_sessions()
    everybody = list(rows.order_by("-is_active", "email"))
    now = clock.now()
    confirmed = is_confirmed(request)
    invited = [
        {
            "invitation": one,
            "link": invitations.link_of(one) if confirmed else None,
            "expired": one.expires_at <= now,
        }
        for one in invitations.open_invitations()
    ]
    context = {
        "everybody": [{"person": one, "sessions": sessions.get(one.pk, 0)} for one in everybody],
        "active": sum(one.is_active for one in everybody),
        "invited": invited,
        "mail_is_set_up": letters.mail_is_set_up(),
    }
    return render(request, "portal/users.html", context)


@needs(Role.ADMIN)
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def invite(request: HttpRequest) -> HttpResponse:
    """Invite somebody; then the link is on its way, or shown."""
    demand_confirmation(request)
    form = InviteForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = invitations.invite(
                email=form.cleaned_data["email"],
                name=form.cleaned_data["name"],
                role=Role(form.cleaned_data["role"]),
                by=person(request),
            )
        except people.PeopleError as error:
            form.add_error("email", str(error))
        else:
            return _delivered(request, made)
    return render(request, "portal/invite.html", {"form": form, "mail_is_set_up": letters.mail_is_set_up()})


@needs(Role.ADMIN)
@never_cache
@require_POST
def renew_invitation(request: HttpRequest, invitation_id: int) -> HttpResponse:
    """A new link for an invitation, delivered like the first."""
    demand_confirmation(request)
    try:
        return _delivered(request, invitations.renew(invitation_id, by=person(request)))
    except invitations.InvitationGoneError:
        messages.warning(request, _("That invitation was accepted or revoked meanwhile."))
        return redirect("portal:users")


@needs(Role.ADMIN)
@require_POST
def revoke_invitation(request: HttpRequest, invitation_id: int) -> HttpResponse:
    """Take an invitation back."""
    try:
        revoked = invitations.revoke(invitation_id, by=person(request))
    except invitations.InvitationGoneError:
        messages.warning(request, _("That invitation was accepted or revoked meanwhile."))
    else:
        messages.success(
            request, _("The invitation of %(email)s is revoked; its link is worthless.") % revoked.__dict__
        )
    return redirect("portal:users")


def _delivered(request: HttpRequest, invitation: Invitation) -> HttpResponse:
    obstacle = invitations.deliver_or_say_why_not(invitation)
    if not obstacle:
        messages.success(
            request, _("The invitation is on its way to %(email)s.") % {"email": invitation.email}
        )
        return redirect("portal:users")
    return _show_link(
        request,
        title=_("Invitation of %(name)s") % {"name": invitation.name},
        says=_("%(obstacle)s Give this link to %(name)s yourself, by a way that nobody else reads.")
        % {"obstacle": obstacle, "name": invitation.name},
        link=invitations.link_of(invitation),
        expires_at=invitation.expires_at,
        back=reverse("portal:users"),
    )


def _show_link(request: HttpRequest, **context: Any) -> HttpResponse:
    return render(request, "portal/link.html", context)


@needs(Role.ADMIN)
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def user(request: HttpRequest, user_id: int) -> HttpResponse:
    """One person: change name and role, and what else an admin may do."""
    shown = get_object_or_404(User, pk=user_id)
    # What the page showed is sent along: a page that was left open sets nothing back that it did not change.
    seen = {
        field: request.POST.get(f"initial-{field}", getattr(shown, field)) for field in UserForm.base_fields
    }
    form = UserForm(request.POST or None, initial=seen)
    if request.method == "POST" and form.is_valid():
        try:
            changed = people.change_person(
                shown.pk,
                name=form.cleaned_data["name"] if "name" in form.changed_data else None,
                role=Role(form.cleaned_data["role"]) if "role" in form.changed_data else None,
                by=person(request),
                may_do_more=is_confirmed(request),
            )
        except people.MayDoMoreError:
            demand_confirmation(request)
            raise
        except people.PeopleError as error:
            form.add_error("role", str(error))
        else:
            messages.success(request, _("%(name)s is changed.") % {"name": changed})
            mine = changed == person(request)
            return redirect("portal:account") if mine and not changed.is_admin else redirect(request.path)
    context = {
        "person": shown,
        "form": form,
        "two_factor": has_second_factor(shown),
        "sessions": list(sessions_of(shown)[:100]),
        "tokens": shown.api_tokens.filter(tokens.usable()).count(),
    }
    return render(request, "portal/user.html", context)


@needs(Role.ADMIN)
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def user_act(request: HttpRequest, user_id: int, act: str) -> HttpResponse:
    """Say what an act on a person means; do it when that is confirmed."""
    shown = get_object_or_404(User, pk=user_id)
    if act not in ACTS:
        raise Http404
    if act in OPENING_ACTS:
        demand_confirmation(request)
    if request.method == "POST":
        if act == "new-password":
            return _new_password(request, shown)
        try:
            messages.success(request, _carry_out(act, shown, person(request)))
        except people.PeopleConflictError as error:
            messages.error(request, str(error))
        return redirect("portal:user", shown.pk)
    title, says, button, loses = (
        part % {"name": shown} if not isinstance(part, bool) else part for part in ACTS[act]
    )
    context = {
        "title": title,
        "says": says,
        "button": button,
        "loses": loses,
        "back": reverse("portal:user", args=[shown.pk]),
    }
    return render(request, "portal/confirm.html", context)


def _carry_out(act: str, shown: User, by: User) -> str:
    if act == "end-sessions":
        n = end_sessions(shown, by=by)
        return ngettext(
            "%(name)s is signed out everywhere; %(n)s session ended.",
            "%(name)s is signed out everywhere; %(n)s sessions ended.",
            n,
        ) % {"name": shown, "n": n}
    if act == "revoke-tokens":
        n = tokens.revoke_tokens(shown, by=by)
        return ngettext("%(n)s token of %(name)s is revoked.", "%(n)s tokens of %(name)s are revoked.", n) % {
            "name": shown,
            "n": n,
        }
    if act == "remove-two-factor":
        remove_second_factor(shown, by=by)
        return _("%(name)s signs in by password alone from now on.") % {"name": shown}
    people.change_person(shown.pk, active=act == "activate", by=by)
    if act == "activate":
        return _("%(name)s can sign in again.") % {"name": shown}
    return _("%(name)s is deactivated and signed out.") % {"name": shown}


def _new_password(request: HttpRequest, shown: User) -> HttpResponse:
    back = reverse("portal:user", args=[shown.pk])
    if not shown.is_active:
        messages.error(request, _("%(name)s is deactivated. Activate the account first.") % {"name": shown})
        return redirect(back)
    link, expires_at = recovery.make_reset_link(shown, by=person(request))
    obstacle = _("E-mail is not set up.")
    if letters.mail_is_set_up():
        try:
            letters.send_reset_link(shown, link, expires_at)
        except MailError as error:
            obstacle = _("The e-mail was not sent. %(error)s.") % {"error": error}
        else:
            messages.success(request, _("The link is on its way to %(email)s.") % {"email": shown.email})
            return redirect(back)
    return _show_link(
        request,
        title=_("A new password for %(name)s") % {"name": shown},
        says=_("%(obstacle)s Give this link to %(name)s yourself, by a way that nobody else reads.")
        % {"obstacle": obstacle, "name": shown},
        link=link,
        expires_at=expires_at,
        back=back,
    )
