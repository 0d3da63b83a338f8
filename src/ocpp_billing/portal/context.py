"""What every page of the portal needs: theme, menu, version; freshness and banners when it shows them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

import ocpp_billing
from ocpp_billing import clock
from ocpp_billing.portal.banners import banners
from ocpp_billing.portal.queries import read_status
from ocpp_billing.portal.theme import chosen_theme

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.utils.functional import Promise

    from ocpp_billing.portal.queries import Status


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """One entry of the left bar."""

    label: str | Promise
    icon: str
    url_name: str


MENU = [MenuEntry(_("Dashboard"), "layout-dashboard", "portal:dashboard")]


def portal(request: HttpRequest) -> dict[str, Any]:
    """Context of every template. The database is asked only by templates that show the status."""

    @cache
    def status() -> Status:
        return read_status(settings.CONFIG.steve_source, clock.now())

    return {
        "version": ocpp_billing.__version__,
        "theme": chosen_theme(request),
        "menu": MENU,
        "zone": settings.TIME_ZONE,
        "status": SimpleLazyObject(status),
        "banners": SimpleLazyObject(lambda: banners(status())),
    }
