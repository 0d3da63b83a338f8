"""The second step of signing in: a code of an authenticator app, or a recovery code. allauth keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allauth.mfa.models import Authenticator
from django.db import transaction
from django.utils.translation import gettext as _

from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.letters import notify
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from ocpp_billing.accounts.models import User


def has_second_factor(user: User) -> bool:
    """Whether signing in takes a code."""
    return bool(Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP).exists())


def remove_second_factor(user: User, *, by: User | None, actor: str = "") -> bool:
    """Let a person who lost phone and recovery codes sign in by password alone.

    Returns:
        Whether there was one; audited then, and told to the person by e-mail where that is set up.
    """
    with effect("db commit person"), transaction.atomic():
        removed, _of_each = Authenticator.objects.filter(user=user).delete()
        if removed:
            entry = record("user.two_factor_removed", user=by, actor=actor, target=f"user {user.email}")
    if removed:
        notify(
            user,
            _("Two-factor sign-in is off"),
            _("%(who)s removed it: signing in takes your password alone from now on.") % {"who": entry.actor},
            address=entry.address,
        )
    return bool(removed)
