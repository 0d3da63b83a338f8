"""Signing in and what people do with their own account are acts, too: they are in the audit log.

What weakens or changes the protection of an account is also told to its person by e-mail, so that it does not
stay unnoticed when it was somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.account.signals import password_changed, password_reset, user_logged_in
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import (
    authenticator_added,
    authenticator_removed,
    authenticator_reset,
    authenticator_used,
)
from django.dispatch import receiver
from django.utils.translation import gettext as _

from ocpp_billing.accounts.audit import client_address, record
from ocpp_billing.accounts.letters import notify
from ocpp_billing.accounts.sessions import drop_sessions

if TYPE_CHECKING:
    from django.http import HttpRequest

    from ocpp_billing.accounts.models import User


def _record_own(action: str, request: HttpRequest, user: User) -> None:
    record(action, user=user, target=f"user {user.email}", request=request)


@receiver(user_logged_in)
def record_sign_in(*, request: HttpRequest, user: User, **_signal: Any) -> None:
    """A person signed in."""
    _record_own("account.signed_in", request, user)


@receiver(password_changed)
def after_password_change(*, request: HttpRequest, user: User, **_signal: Any) -> None:
    """A person changed their own password: every other browser is signed out."""
    drop_sessions(user, but=request.session.session_key)
    _record_own("account.password_changed", request, user)
    notify(
        user,
        _("Your password was changed"),
        _("Your password was changed."),
        address=client_address(request),
    )


@receiver(password_reset)
def after_password_reset(*, request: HttpRequest, user: User, **_signal: Any) -> None:
    """A person chose a new password by a link: every browser is signed out."""
    drop_sessions(user)
    _record_own("account.password_reset", request, user)
    notify(
        user,
        _("Your password was changed"),
        _("A new password was chosen by a link that was sent to you or that an admin gave you."),
        address=client_address(request),
    )


@receiver(authenticator_added)
def after_second_factor(
    *, request: HttpRequest, user: User, authenticator: Authenticator, **_signal: Any
) -> None:
    """A person switched two-factor sign-in on."""
    if authenticator.type == Authenticator.Type.TOTP:
        _record_own("account.two_factor_on", request, user)
        notify(
            user,
            _("Two-factor sign-in is on"),
            _("Signing in takes a code of your authenticator app from now on."),
            address=client_address(request),
        )


@receiver(authenticator_removed)
def after_second_factor_removed(
    *, request: HttpRequest, user: User, authenticator: Authenticator, **_signal: Any
) -> None:
    """A person switched two-factor sign-in off."""
    if authenticator.type == Authenticator.Type.TOTP:
        _record_own("account.two_factor_off", request, user)
        notify(
            user,
            _("Two-factor sign-in is off"),
            _("Signing in takes your password alone from now on."),
            address=client_address(request),
        )


@receiver(authenticator_reset)
def after_new_recovery_codes(*, request: HttpRequest, user: User, **_signal: Any) -> None:
    """A person made new recovery codes."""
    _record_own("account.recovery_codes_renewed", request, user)


@receiver(authenticator_used)
def after_recovery_code(
    *, request: HttpRequest, user: User, authenticator: Authenticator, **_signal: Any
) -> None:
    """A person used up a recovery code; signing in with the app is no news."""
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        _record_own("account.recovery_code_used", request, user)
        notify(
            user,
            _("A recovery code was used"),
            _("One of your recovery codes was used to prove that it is you; it cannot be used again."),
            address=client_address(request),
        )
