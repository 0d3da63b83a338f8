"""Invitations: how people come in, since nobody signs up by themselves.

An admin names address, name and role. The link is signed with ``AUTH_SECRET`` and carries the number and the
nonce of the invitation's row: the row says whether it is still good (once, for a week, not revoked), so the
link can be shown again to an admin and is nowhere stored. Sending it again makes a new nonce, and the earlier
link is worthless.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.signing import BadSignature, Signer
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.accounts import letters
from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import Invitation, Role, User
from ocpp_billing.accounts.people import PeopleConflictError, PeopleError
from ocpp_billing.effects import effect
from ocpp_billing.mail import MailError

if TYPE_CHECKING:
    from django.db.models import QuerySet

LIFETIME = timedelta(days=7)
_signer = Signer(salt="ocpp_billing.accounts.invitations")


class InvitationGoneError(Exception):
    """The link is not good: forged, used, revoked, expired or replaced. Which of them is not told."""


def open_invitations() -> QuerySet[Invitation]:
    """Those that were neither accepted nor revoked, newest first; expired ones among them."""
    return Invitation.objects.select_related("invited_by").filter(accepted_at=None, revoked_at=None)


def invite(*, email: str, name: str, role: Role, by: User, actor: str = "") -> Invitation:
    """Keep a place for somebody; the link is delivered by :func:`deliver`.

    Raises:
        PeopleError: when address or name are not acceptable.
        PeopleConflictError: when the address has an account or an open invitation.
    """
    email, name = email.strip().lower(), name.strip()
    try:
        validate_email(email)
    except ValidationError:
        raise PeopleError(_("This is no e-mail address: name@example.org.")) from None
    if not name:
        raise PeopleError(_("The name is missing."))
    if User.objects.filter(email=email).exists():
        raise PeopleConflictError(
            _("%(email)s has an account already. Change that person instead.") % {"email": email}
        )
    now = clock.now()
    try:
        with effect("db commit invitation"), transaction.atomic():
            invitation = Invitation.objects.create(
                email=email,
                name=name,
                role=role,
                nonce=secrets.token_hex(16),
                invited_by=by,
                created_at=now,
                expires_at=now + LIFETIME,
            )
            record(
                "invitation.created",
                user=by,
                actor=actor,
                target=f"user {email}",
                after={"name": name, "role": str(role), "expires_at": invitation.expires_at.isoformat()},
            )
    except IntegrityError:
        raise PeopleConflictError(
            _("%(email)s is invited already. Send that invitation again, or revoke it.") % {"email": email}
        ) from None
    return invitation


def renew(invitation_id: int, *, by: User, actor: str = "") -> Invitation:
    """Give an open invitation a new link and a new week; earlier links are worthless from now on.

    Raises:
        InvitationGoneError: when it was accepted or revoked meanwhile.
    """
    with effect("db commit invitation"), transaction.atomic():
        invitation = _locked(invitation_id)
        before = {"expires_at": invitation.expires_at.isoformat()}
        invitation.nonce, invitation.sent_at = secrets.token_hex(16), None
        invitation.expires_at = clock.now() + LIFETIME
        invitation.save(update_fields=["nonce", "sent_at", "expires_at"])
        record(
            "invitation.renewed",
            user=by,
            actor=actor,
            target=f"user {invitation.email}",
            before=before,
            after={"expires_at": invitation.expires_at.isoformat()},
        )
    return invitation


def revoke(invitation_id: int, *, by: User, actor: str = "") -> Invitation:
    """Take an open invitation back.

    Raises:
        InvitationGoneError: when it was accepted or revoked meanwhile.
    """
    with effect("db commit invitation"), transaction.atomic():
        invitation = _locked(invitation_id)
        invitation.revoked_at = clock.now()
        invitation.save(update_fields=["revoked_at"])
        record(
            "invitation.revoked",
            user=by,
            actor=actor,
            target=f"user {invitation.email}",
            before={"name": invitation.name, "role": invitation.role},
        )
    return invitation


def deliver(invitation: Invitation) -> bool:
    """Send the link by e-mail when that is set up.

    Returns:
        Whether it was sent; False: e-mail is not set up, an admin hands the link over.

    Raises:
        MailError: when the mail server did not take it.
    """
    if not letters.mail_is_set_up():
        return False
    letters.send_invitation(invitation, link_of(invitation))
    with effect("db commit invitation"):
        Invitation.objects.filter(pk=invitation.pk).update(sent_at=clock.now())
    return True


def deliver_or_say_why_not(invitation: Invitation) -> str:
    """Deliver it; the sentence says why an admin has to hand the link over, empty when it was sent."""
    try:
        return "" if deliver(invitation) else "E-mail is not set up."
    except MailError as error:
        return f"The e-mail was not sent. {error}."


def link_of(invitation: Invitation) -> str:
    """The address at which the invitation is accepted; a secret until then."""
    text = _signer.sign_object([invitation.pk, invitation.nonce])
    return settings.CONFIG.auth_url + reverse("portal:invitation", args=[text])


def find_invitation(text: str) -> Invitation:
    """The invitation that a link is good for.

    Raises:
        InvitationGoneError: when it is good for none.
    """
    return _good(text, Invitation.objects.select_related("invited_by"))


def accept(text: str, *, name: str, password: str) -> User:
    """Make the account that the link is good for; no second time.

    Args:
        text: the signed part of the link.
        name: as shown in the portal.
        password: to sign in with.

    Raises:
        InvitationGoneError: when the link is not good (any more).
        PeopleError: when name or password are not acceptable.
        PeopleConflictError: when the address has got an account meanwhile.
    """
    name = name.strip()
    if not name:
        raise PeopleError(_("The name is missing."))
    try:
        with effect("db commit invitation"), transaction.atomic():
            # Of two who follow the link at once the second waits here, and finds it used.
            invitation = _good(text, Invitation.objects.select_for_update())
            email, role = invitation.email, Role(invitation.role)
            validate_password(password, User(email=email, name=name))
            user = User.objects.create_user(email, password, name=name, role=role)
            invitation.accepted_at = clock.now()
            invitation.save(update_fields=["accepted_at"])
            record(
                "invitation.accepted",
                user=user,
                target=f"user {email}",
                after={"email": email, "name": name, "role": str(role)},
            )
    except ValidationError as error:
        raise PeopleError(" ".join(error.messages)) from None
    except IntegrityError:
        raise PeopleConflictError(_("This address has got an account meanwhile. Sign in with it.")) from None
    return user


def _good(text: str, rows: QuerySet[Invitation]) -> Invitation:
    try:
        number, nonce = _signer.unsign_object(text)
    except (BadSignature, ValueError):
        raise InvitationGoneError from None
    # Whoever may invite nobody any more has invited nobody.
    by_an_admin = {"invited_by__is_active": True, "invited_by__role": Role.ADMIN}
    open_ones = rows.filter(pk=number, nonce=nonce, accepted_at=None, revoked_at=None, **by_an_admin)
    invitation = open_ones.first()
    if invitation is None or invitation.expires_at <= clock.now():
        raise InvitationGoneError
    return invitation


def _locked(invitation_id: int) -> Invitation:
    rows = Invitation.objects.select_for_update(of=("self",)).select_related("invited_by")
    invitation = rows.filter(pk=invitation_id, accepted_at=None, revoked_at=None).first()
    if invitation is None:
        raise InvitationGoneError
    return invitation
