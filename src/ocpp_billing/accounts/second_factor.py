"""The second step of signing in: a code of an authenticator app, or a recovery code. allauth keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allauth.mfa.models import Authenticator
from django.db import transaction

from ocpp_billing.accounts.audit import record
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from ocpp_billing.accounts.models import User


def has_second_factor(user: User) -> bool:
    """Whether signing in takes a code."""
    return bool(Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP).exists())


def remove_second_factor(user: User, *, by: User | None, actor: str = "") -> bool:
    """Let a person who lost phone and recovery codes sign in by password alone.

    Returns:
        Whether there was one; audited then.
    """
    with effect("db commit person"), transaction.atomic():
        removed, _ = Authenticator.objects.filter(user=user).delete()
        if removed:
            record("user.two_factor_removed", user=by, actor=actor, target=f"user {user.email}")
    return bool(removed)
