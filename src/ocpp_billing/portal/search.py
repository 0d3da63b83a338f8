"""Search: from any number or name that people have in hand to the session, or to the list of its sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.conf import settings
from django.db import connection
from django.db.models import Q
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ocpp_billing import clock
from ocpp_billing.billing.models import LagoSubscription, UsageEvent
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.mask import SHOWN
from ocpp_billing.charging.models import ChargingSession, IdTag
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.mappings.tags import tags_ending
from ocpp_billing.portal.access import caller
from ocpp_billing.portal.format import stamp

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.api.auth import Caller

# So many of each kind are shown; who finds more types more.
SHOWN_OF_EACH = 10
LONGEST = 255
HIGHEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing that was found.

    Attributes:
        address: where it leads.
        text: what was found, as it may be shown.
        about: what else tells it from others.
        exact: the whole of what was typed, not a part of it.
    """

    address: str
    text: str
    about: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Things of one kind; ``more`` = there are others that are not shown."""

    label: str
    icon: str
    hits: list[Hit] = field(default_factory=list)
    more: bool = False


@require_GET
@never_cache
def search(request: HttpRequest) -> HttpResponse:
    """What ``?q=`` finds; one exact hit leads straight there."""
    asked = request.GET.get("q", "").replace("\0", "").strip()[:LONGEST]
    groups = find(asked, settings.CONFIG.steve_source, caller(request)) if asked else []
    exact = {hit.address for group in groups for hit in group.hits if hit.exact}
    if len(exact) == 1:
        return redirect(exact.pop())
    return render(
        request,
        "portal/search.html",
        {
            "asked": asked,
            "groups": groups,
            "number": sum(len(group.hits) for group in groups),
            "more": any(group.more for group in groups),
        },
    )


def find(asked: str, source: str, who: Caller) -> list[Group]:
    """Everything that is called so, by kind; kinds without a hit are left out."""
    groups = (
        Group(_("Sessions"), "bolt", _sessions(asked, source)),
        _cut(_("Tags"), "id-badge-2", _tags(asked, source, who)),
        _cut(_("Customers"), "building", _customers(asked)),
        _cut(_("Subscriptions"), "credit-card", _subscriptions(asked)),
        _cut(_("Charge boxes"), "charging-pile", _charge_boxes(asked, source)),
    )
    return [group for group in groups if group.hits]


def _cut(label: str, icon: str, hits: list[Hit]) -> Group:
    return Group(label, icon, hits[:SHOWN_OF_EACH], more=len(hits) > SHOWN_OF_EACH)


def _list(**asked: str) -> str:
    return f"{reverse('portal:events')}?{urlencode(asked)}"


def _sessions(asked: str, source: str) -> list[Hit]:
    """By StEvE's number, our transaction id or Lago's event id: each whole."""
    sessions = ChargingSession.objects.filter(source_id=source)
    found: dict[int, ChargingSession] = {}
    number = asked.removeprefix("#")
    if number.isascii() and number.isdigit() and int(number) <= HIGHEST_ID:
        found |= {each.pk: each for each in sessions.filter(steve_id=int(number)).order_by("-pk")}
    event = (
        UsageEvent.objects.filter(source_id=source)
        .filter(Q(transaction_id=asked) | Q(lago_event_id=asked))
        .exclude(state="void", given_up_at=None)  # what was given up may be in Lago, and be looked for
        .values("session_id")
    )
    found |= {each.pk: each for each in sessions.filter(pk__in=event)}
    return [
        Hit(
            reverse("portal:session", args=[each.pk]),
            _("Session %(id)s") % {"id": each.steve_id},
            " · ".join([each.charge_box_id, *_when(each.reading_stopped_at or each.stopped_at)]),
            exact=True,
        )
        for each in found.values()
    ]


def _when(at: datetime | None) -> list[str]:
    return [] if at is None else [stamp(at, clock.now())]


def _tags(asked: str, source: str, who: Caller) -> list[Hit]:
    """By a part of the tag; viewers by its last four characters exactly, so that none can be found out."""
    tags = IdTag.objects.filter(source_id=source)
    folded = fold_id_tag(asked)
    if who.sees_tags:
        # The exact one first: it must not be cut off.
        rows = [
            *tags.filter(folded=folded),
            *tags.filter(folded__contains=folded)
            .exclude(folded=folded)
            .order_by("folded")[: SHOWN_OF_EACH + 1],
        ]
    elif len(asked) == SHOWN:
        rows = [
            each
            for each in tags.filter(pk__in=tags_ending(source, asked)).order_by("pk")[: SHOWN_OF_EACH + 1]
            if len(each.text) > SHOWN
        ]
    else:
        rows = []
    return [
        Hit(
            _list(tag=each.text if who.sees_tags else each.text[-SHOWN:]),
            who.tag(each.text),
            each.note or "" if who.sees_tags else "",
            exact=who.sees_tags and each.folded == folded,
        )
        for each in rows
    ]


def _customers(asked: str) -> list[Hit]:
    named = Q(name__icontains=asked) | Q(email__icontains=asked) | Q(external_id__icontains=asked)
    rows = [
        *LagoCustomer.objects.filter(external_id=asked),
        *LagoCustomer.objects.filter(named).exclude(external_id=asked).order_by("name")[: SHOWN_OF_EACH + 1],
    ]
    hits = [
        Hit(_list(customer=each.external_id), each.name, each.external_id, exact=each.external_id == asked)
        for each in rows
    ]
    # One that Lago does not show any more, or that was never looked up.
    if (not hits or not hits[0].exact) and UsageEvent.objects.filter(external_customer_id=asked).exists():
        hits.insert(0, Hit(_list(customer=asked), asked, _("billed before"), exact=True))
    return hits


def _subscriptions(asked: str) -> list[Hit]:
    named = Q(external_id__icontains=asked) | Q(name__icontains=asked) | Q(lago_id=asked)
    rows = LagoSubscription.objects.filter(named).order_by("external_id", "-started_at")
    hits: dict[str, Hit] = {}
    for each in rows[: 5 * SHOWN_OF_EACH]:  # an upgraded subscription has several rows
        exact = asked in {each.external_id, each.lago_id}
        hit = Hit(_list(subscription=each.external_id), each.external_id, each.external_customer_id, exact)
        hits[each.external_id] = hits.get(each.external_id, hit) if not exact else hit
    if (
        not any(hit.exact for hit in hits.values())
        and UsageEvent.objects.filter(external_subscription_id=asked).exists()
    ):
        hits[asked] = Hit(_list(subscription=asked), asked, _("billed before"), exact=True)
    return sorted(hits.values(), key=lambda hit: (not hit.exact, hit.text))


# From one charge box to the next by the index: a thousand boxes among a million sessions in milliseconds.
_CHARGE_BOXES = """
WITH RECURSIVE box AS (
    (SELECT charge_box_id FROM charging_session WHERE source_id = %(source)s ORDER BY charge_box_id LIMIT 1)
    UNION ALL
    SELECT (SELECT s.charge_box_id FROM charging_session s
            WHERE s.source_id = %(source)s AND s.charge_box_id > box.charge_box_id
            ORDER BY s.charge_box_id LIMIT 1)
    FROM box WHERE box.charge_box_id IS NOT NULL
)
SELECT charge_box_id FROM box
WHERE charge_box_id IS NOT NULL AND strpos(lower(charge_box_id), lower(%(asked)s)) > 0
ORDER BY charge_box_id <> %(asked)s, charge_box_id LIMIT %(limit)s
"""


def _charge_boxes(asked: str, source: str) -> list[Hit]:
    with connection.cursor() as cursor:
        cursor.execute(_CHARGE_BOXES, {"source": source, "asked": asked, "limit": SHOWN_OF_EACH + 1})
        boxes = [box for (box,) in cursor.fetchall()]
    return [Hit(_list(charge_box=box), box, "", exact=box == asked) for box in boxes]
