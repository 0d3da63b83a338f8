"""A new password for whoever forgot theirs: a signed link that works once, for a day.

The link is allauth's; it depends on the present password and the last sign-in, so that it is worthless after
either changed. Who asks on the sign-in page gets the same answer at once, whoever they name: whether anybody
has that address is looked up afterwards.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from allauth.account.forms import default_token_generator
from allauth.account.utils import user_pk_to_url_str
from django.conf import settings
from django.urls import reverse

from ocpp_billing import clock
from ocpp_billing.accounts import letters
from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import User
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from django.http import HttpRequest


def request_reset(email: str, request: HttpRequest) -> None:
    """Send a link to an active person of that address, if there is one and e-mail is set up.

    Returns at once; nothing that can be seen or timed depends on whether there is one.
    """
    if letters.mail_is_set_up():
        letters.soon(lambda: _send_to(email, request))


def _send_to(email: str, request: HttpRequest) -> None:
    user = User.objects.filter(email=email.strip().lower(), is_active=True).first()
    if user is None:
        return
    letters.send_reset_link(user, link_for(user), _expires_at())
    with effect("db commit reset"):
        record("account.reset_requested", actor="sign-in page", target=f"user {user.email}", request=request)


def make_reset_link(user: User, *, by: User, actor: str = "") -> tuple[str, datetime]:
    """An admin makes a link for a person.

    Returns:
        The link, a secret, and when it expires.
    """
    expires_at = _expires_at()
    with effect("db commit reset"):
        record(
            "user.reset_link_made",
            user=by,
            actor=actor,
            target=f"user {user.email}",
            after={"expires_at": expires_at.isoformat()},
        )
    return link_for(user), expires_at


def link_for(user: User) -> str:
    """The address at which the person chooses a new password."""
    key = default_token_generator.make_token(user)
    path = reverse("account_reset_password_from_key", kwargs={"uidb36": user_pk_to_url_str(user), "key": key})
    return f"{settings.CONFIG.auth_url}{path}"


def _expires_at() -> datetime:
    return clock.now() + timedelta(seconds=settings.PASSWORD_RESET_TIMEOUT)
