"""Signing in and changing one's password are acts, too: they are in the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.account.signals import password_changed, user_logged_in
from django.dispatch import receiver

from ocpp_billing.accounts.audit import record

if TYPE_CHECKING:
    from django.http import HttpRequest

    from ocpp_billing.accounts.models import User


@receiver(user_logged_in)
def record_sign_in(*, request: HttpRequest, user: User, **_signal: Any) -> None:
    """A person signed in."""
    record("account.signed_in", user=user, target=f"user {user.email}", request=request)


@receiver(password_changed)
def record_password_change(*, request: HttpRequest, user: User, **_signal: Any) -> None:
    """A person changed their own password."""
    record("account.password_changed", user=user, target=f"user {user.email}", request=request)
