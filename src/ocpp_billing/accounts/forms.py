"""Forms of allauth that do here what theirs do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.account.forms import LoginForm, ResetPasswordForm, UserTokenForm
from allauth.account.forms import ReauthenticateForm as ReauthenticateByPassword
from allauth.mfa import app_settings
from allauth.mfa.adapter import get_adapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from django.core.cache import cache

from ocpp_billing.accounts.recovery import request_reset

if TYPE_CHECKING:
    from django.http import HttpRequest

    from ocpp_billing.accounts.models import User


class _PlainPassword:
    """A password field without a text of allauth's below it; our pages have the link of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["password"].help_text = ""  # type: ignore[attr-defined]  # of the form beside this class


class SignInForm(_PlainPassword, LoginForm):  # type: ignore[misc]  # allauth has no types
    """E-mail and password."""


class ConfirmByPasswordForm(_PlainPassword, ReauthenticateByPassword):  # type: ignore[misc]
    """Proof that it is still the same person, by the password."""


class RequestResetForm(ResetPasswordForm):  # type: ignore[misc]  # allauth has no types
    """Asks for a link; whether anybody has the address is not looked up before the answer."""

    def clean_email(self) -> str:
        """The address, in lower case."""
        return str(self.cleaned_data["email"]).lower()

    def save(self, request: HttpRequest, **_allauth: Any) -> str:
        """Have the link sent, if there is somebody to send it to."""
        email: str = self.cleaned_data["email"]
        request_reset(email, request)
        return email


class ResetLinkForm(UserTokenForm):  # type: ignore[misc]  # allauth has no types
    """Checks a link; one of a person who was deactivated since is worthless."""

    def _get_user(self, uidb36: str) -> User | None:
        user: User | None = super()._get_user(uidb36)
        return user if user is not None and user.is_active else None


class _OnlyOnce:
    """A code of the app is good for one use, as long as it is good at all.

    allauth forgets a used code after one period, but with a tolerance of n periods it would be taken for
    2n + 1 of them.
    """

    def clean_code(self) -> str:
        code: str = super().clean_code()  # type: ignore[misc]  # of the form beside this class
        if self.authenticator.type == Authenticator.Type.TOTP:  # type: ignore[attr-defined]
            digits = "".join(filter(str.isdigit, code))
            key = f"second-step-used:{self.user.pk}:{digits}"  # type: ignore[attr-defined]
            good_for_s = app_settings.TOTP_PERIOD * (2 * app_settings.TOTP_TOLERANCE + 1)
            if not cache.add(key, 1, good_for_s):
                raise get_adapter().validation_error("incorrect_code")
        return code


class SecondStepForm(_OnlyOnce, AuthenticateForm):  # type: ignore[misc]  # allauth has no types
    """The second step of signing in."""


class ConfirmByCodeForm(_OnlyOnce, ReauthenticateForm):  # type: ignore[misc]  # allauth has no types
    """Proof that it is still the same person, by a code."""
