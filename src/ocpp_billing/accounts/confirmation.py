"""Proof that whoever is signed in is still the same person: their password, or a code, once more.

Wanted before anybody gets a way in, or may do more: a new token, an invitation, a link for a new password. A
session that was stolen, or a browser that was left open, must not be turned into something that outlives it.
The pages are allauth's; the proof is good for five minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allauth.account.internal.flows.reauthentication import (
    is_reauthentication_required,
    raise_if_reauthentication_required,
)

if TYPE_CHECKING:
    from django.http import HttpRequest


def is_confirmed(request: HttpRequest) -> bool:
    """Whether the person of this session has proved it within the last minutes."""
    return not is_reauthentication_required(request, app="")


def demand_confirmation(request: HttpRequest) -> None:
    """Go on when it is proved; else the answer is the page that asks, and the request is taken up after it.

    Raises:
        ReauthenticationRequired: allauth's middleware answers with that page.
    """
    raise_if_reauthentication_required(request, app="")
