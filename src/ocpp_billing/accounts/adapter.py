"""How allauth behaves here: nobody signs up by themselves, no e-mail is its, and it speaks as we do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.mfa.adapter import DefaultMFAAdapter
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django.http import HttpRequest


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # allauth has no types
    """Sign-up is closed: people come by ``create-admin`` or by an admin's invitation."""

    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": _("E-mail or password is not correct."),
        "enter_current_password": _("This is not your present password."),
        "incorrect_password": _("The password is not correct."),
        "incorrect_code": _("The code is not correct, or was used already. Wait for the next one."),
        "too_many_login_attempts": _(
            "Too many failed login attempts. Wait five minutes; until then the right password fails, too."
        ),
        "rate_limited": _("Too many attempts. Wait a few minutes."),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:  # noqa: ARG002 - allauth's signature
        """Never."""
        return False

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """What attempts are counted by: the address alone; allauth counts for each host name by itself.

        Who is signed in and confirms that it is them is counted apart: wrong passwords that strangers type
        on the sign-in page keep nobody from what wants a confirmation.
        """
        email = str(credentials.get("email") or credentials.get("username") or "").lower()
        return f"signed-in:{email}" if request.user.is_authenticated else email

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Nothing: every letter goes through :mod:`ocpp_billing.accounts.letters`."""


class SecondFactorAdapter(DefaultMFAAdapter):  # type: ignore[misc]  # allauth has no types
    """What people read when a code is refused."""

    error_messages = DefaultMFAAdapter.error_messages | {
        "incorrect_code": _("The code is not correct, or was used already. Wait for the next one."),
    }
