"""Set-up: the steps from an empty installation to the first bill, and whether billing is live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.billing import control
from ocpp_billing.billing.balance import counted_balance
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.charging.models import Source
from ocpp_billing.config import ConfigError
from ocpp_billing.doctor.findings import Finding, problem
from ocpp_billing.doctor.lago import look_at_lago
from ocpp_billing.doctor.steve import look_at_steve
from ocpp_billing.portal import queries
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.banners import who_paused
from ocpp_billing.sync.clients import lago_client, steve_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.billing.control import DeliveryStatus
    from ocpp_billing.config import Config


def check_steve(config: Config) -> list[Finding]:
    """Ask StEvE now; settings that are missing or wrong are findings, too."""
    return _with_client(lambda: steve_client(config), lambda it: look_at_steve(config, it, with_ledger=True))


def check_lago(config: Config) -> list[Finding]:
    """Ask Lago now, and compare what it would bill with what we send."""
    return _with_client(lambda: lago_client(config), lambda it: look_at_lago(config, it, with_ledger=True))


def _with_client(connect: Callable[[], Any], look: Callable[[Any], list[Finding]]) -> list[Finding]:
    do = _("Set it in the environment or in .env, then restart.")
    try:
        with connect() as client:
            return look(client)
    except ConfigError as error:
        return [problem("settings", "connection", sentence, do) for sentence in error.problems]


CHECKS = {"steve": check_steve, "lago": check_lago}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the set-up is, from the ledger alone: nobody is asked for it.

    Attributes:
        read: StEvE was read at least once.
        reached: Lago was reached at least once, and its organisation is pinned.
        organization: its name.
        release: StEvE's release as probed.
        mapped: tags that have a mapping now.
        delivery: whether what is billed is sent.
    """

    read: bool
    release: str
    reached: bool
    organization: str
    mapped: int
    delivery: DeliveryStatus

    @property
    def steps(self) -> list[bool]:
        """Which of the steps are done, in their order."""
        return [self.read, self.reached, self.mapped > 0, self.delivery.mode != "shadow"]

    @property
    def done(self) -> int:
        """How many are done."""
        return sum(self.steps)

    @property
    def next_step(self) -> int | None:
        """Number (from 1) of the first step that is not done; None when all are."""
        return next((number for number, done in enumerate(self.steps, 1) if not done), None)


def read_progress(config: Config, mapped: int) -> Progress:
    """How far the set-up of the configured source is, with so many tags mapped."""
    source = Source.objects.filter(name=config.steve_source).first()
    delivery = DeliveryControl.objects.filter(source_id=config.steve_source).first()
    # Pinned when Lago was reached for the first time.
    pinned = delivery.lago_organization_id if delivery else None
    capabilities = (source.capabilities if source else None) or {}
    return Progress(
        read=bool(capabilities),
        release=str(capabilities.get("release", "")),
        reached=pinned is not None,
        organization=(delivery and delivery.lago_organization_name) or pinned or "",
        mapped=mapped,
        delivery=control.status_of(config, delivery),
    )


@require_GET
@never_cache
def setup(request: HttpRequest) -> HttpResponse:
    """The checklist; ``?check=`` asks one of the systems now, for browsers without JavaScript."""
    config = settings.CONFIG
    mapped = queries.count_mappings(config.steve_source, clock.now()).total
    progress = read_progress(config, mapped)
    balance = counted_balance(config.steve_source)
    asked = request.GET.get("check", "")
    context: dict[str, Any] = {
        "progress": progress,
        "balance": balance,
        "unmapped": balance.reasons.get("unmapped_tag"),
        "delivery": progress.delivery,
        "paused_by": who_paused(progress.delivery.paused_by),
        "missing_steve": config.missing("STEVE_API_URL", "STEVE_API_KEY"),
        "missing_lago": config.missing("LAGO_API_KEY"),
        "asked": asked,
    }
    if asked in CHECKS and person(request).is_operator:
        context["findings"] = CHECKS[asked](config)
    return render(request, "portal/setup.html", context)


@require_GET
@never_cache
@needs(Role.OPERATOR)
def check(request: HttpRequest, system: str) -> HttpResponse:
    """What is found when one of the two systems is asked now: a part of the checklist."""
    return render(request, "portal/parts/findings.html", {"findings": CHECKS[system](settings.CONFIG)})
