"""Light, dark, or as the system has it: kept in a cookie, so that the server already draws it right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import HttpResponseBadRequest, HttpResponseRedirect
from django.views.decorators.http import require_POST

from ocpp_billing.portal.way_back import way_back

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

COOKIE = "theme"
THEMES = ("light", "dark", "auto")
_YEAR_S = 365 * 24 * 3600


def chosen_theme(request: HttpRequest) -> str:
    """The theme this browser asked for; ``auto`` when it did not."""
    theme = request.COOKIES.get(COOKIE, "auto")
    return theme if theme in THEMES else "auto"


@login_not_required
@require_POST
def choose_theme(request: HttpRequest) -> HttpResponse:
    """Keep the choice and go back to where it was made. Works without JavaScript and before sign-in."""
    theme = request.POST.get("theme", "")
    if theme not in THEMES:
        return HttpResponseBadRequest("theme must be light, dark or auto")
    response = HttpResponseRedirect(way_back(request.POST.get("next"), "/"))
    # Read by theme.js, therefore not HttpOnly; it holds no secret.
    response.set_cookie(COOKIE, theme, max_age=_YEAR_S, samesite="Lax", secure=settings.SESSION_COOKIE_SECURE)
    return response
