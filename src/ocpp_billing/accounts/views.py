"""Views of allauth that lead elsewhere than theirs do."""

from __future__ import annotations

from typing import Any

from allauth.account.views import PasswordResetFromKeyView, PasswordResetView
from django.urls import reverse_lazy

from ocpp_billing.accounts.letters import mail_is_set_up


class RequestReset(PasswordResetView):  # type: ignore[misc]  # allauth has no types
    """Ask for a link; where no e-mail can be sent the page says who helps."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """The form, and whether it is of any use."""
        return {**super().get_context_data(**kwargs), "mail_is_set_up": mail_is_set_up()}


class ChooseNewPassword(PasswordResetFromKeyView):  # type: ignore[misc]  # allauth has no types
    """Choose a new password by a link; then sign in with it, second step included."""

    success_url = reverse_lazy("account_login")
