"""The pages for what could not be made, or is not there: each says in words what we know of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from django.db import InterfaceError, OperationalError
from django.http import HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.translation import gettext as _

from ocpp_billing.api.errors import database_away, unexpected
from ocpp_billing.database import is_disk_full
from ocpp_billing.portal.access import NotHereError
from ocpp_billing.portal.addresses import OWN_ANSWERS

if TYPE_CHECKING:
    from django.http import HttpRequest


def broken(request: HttpRequest) -> HttpResponse:
    """503 while the database is away or its disk is full, else 500. Asks nobody: all may be broken."""
    error = sys.exception()
    away = error if isinstance(error, (OperationalError, InterfaceError)) else None
    if request.path.startswith(OWN_ANSWERS):
        return unexpected(request, error) if away is None else database_away(request, away)
    says = "" if away is None else _what_is_wrong(away)
    return HttpResponse(render_to_string("500.html", {"says": says}), status=503 if away else 500)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404, in the words of whoever looked for it; what Django says of an address is not for people."""
    says = str(exception) if isinstance(exception, NotHereError) else ""
    return render(request, "404.html", {"says": says}, status=404)


def _what_is_wrong(error: Exception) -> str:
    if is_disk_full(error):
        return _(
            "The disk of the database is full: nothing can be changed. Whoever runs the machine makes room "
            "on it; everything goes on by itself then."
        )
    return _("The database does not answer.")
