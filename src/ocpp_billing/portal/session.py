"""One session: explain this charge, from the plug to the invoice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from django.conf import settings
from django.db.models import Q, Sum
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ocpp_billing import clock
from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.api.ledger import without_tag
from ocpp_billing.billing.decide import read_facts
from ocpp_billing.billing.explain import explain_session
from ocpp_billing.billing.models import LagoSubscription, UsageEvent
from ocpp_billing.billing.move import billed_to
from ocpp_billing.billing.rules import Rule
from ocpp_billing.billing.uncounted import is_uncounted
from ocpp_billing.charging.mask import IDENTITY_IN_DOUBT
from ocpp_billing.charging.models import ChargingSession, IdTag
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.mappings.resolve import Inactive, Mapped, MappingInterval, resolve_mapping
from ocpp_billing.mappings.store import load_family
from ocpp_billing.portal import wording
from ocpp_billing.portal.access import caller, person
from ocpp_billing.portal.acts import find_session
from ocpp_billing.portal.audit_words import ACTIONS
from ocpp_billing.portal.decision_words import decision_says
from ocpp_billing.portal.event_words import KINDS, STOPPED_BY, answer_says
from ocpp_billing.portal.rule_words import LABELS, check_says
from ocpp_billing.sync.policy import policy_of

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.api.auth import Caller
    from ocpp_billing.billing.explain import Check
    from ocpp_billing.billing.models import Decision


@require_GET
@never_cache
def session(request: HttpRequest, session_id: int) -> HttpResponse:
    """The timeline of a session, and its facts beside it."""
    who = caller(request)
    found = find_session(session_id)
    decisions = list(found.decisions.order_by("-pk"))
    sent = list(found.events.order_by("n"))
    standing = [event for event in sent if event.state != "void"]
    events = _events([event for event in sent if event in standing or event.given_up_at], found, who)
    row = _sums(found, standing, decisions)
    judged = _judged(found, who)
    payer = _payer(found, row, decisions, standing, judged["rulings"].payer if judged else None)
    context = {
        "session": found,
        "row": row,
        "tag": found.id_tag_text,
        "reason": wording.of_reason(found.state, found.reason),
        "parts": [
            *([(found.rest_state, found.rest_wh)] if found.rest_state else []),
            *((event.state, event.energy_wh) for event in standing),
        ],
        "lasted": _lasted(row),
        "stopped_by": _stopped_by(found),
        "judged": judged,
        "decided": [_decision(each, found, who) for each in decisions],
        "payer": payer,
        "events": events,
        "sends_nothing": not standing,
        "sent": any(event.attempts for event in standing),
        "movable": person(request).is_operator and bool(billed_to(found)),
        "people": _people(found, sent, who),
        "raw": json.dumps(without_tag(found.raw, found.id_tag_text, who), indent=2, ensure_ascii=False),
        "flags": found.flags,
        "customer_name": _customer_name(row.customer),
        "lago_address": _lago_address(payer),
    }
    return render(request, "portal/session.html", context)


@dataclass(frozen=True, slots=True)
class Sums:
    """What the session comes to: a person's reading stands for the stop; the newest event names the payer."""

    started_at: datetime | None
    stopped_at: datetime | None
    stop_wh: int | None
    energy_wh: int | None
    customer: str | None
    subscription: str | None


def _sums(found: ChargingSession, standing: list[UsageEvent], decisions: list[Decision]) -> Sums:
    named = standing[-1] if standing else (decisions[0] if decisions else None)
    read = found.reading_stopped_at is not None
    return Sums(
        started_at=found.started_at,
        stopped_at=found.reading_stopped_at or found.stopped_at,
        stop_wh=found.reading_stop_wh if read else found.stop_wh,
        energy_wh=found.energy_wh,
        customer=named.external_customer_id if named else None,
        subscription=named.external_subscription_id if named else None,
    )


def _customer_name(customer: str | None) -> str | None:
    if customer is None:
        return None
    return LagoCustomer.objects.filter(external_id=customer).values_list("name", flat=True).first()


def _lago_address(payer: PaidBy) -> str | None:
    """Lago's own page of whoever pays; None where it has no address or the customer was never read."""
    customer = payer.customer or payer.assigned
    if customer is None and payer.mapping is not None:
        customer = payer.mapping.customer
    front_url = settings.CONFIG.lago_front_url
    if front_url is None or customer is None:
        return None
    if payer.subscription is not None and payer.subscription.external_customer_id == customer:
        lago_id = payer.subscription.lago_customer_id
    else:
        read = LagoSubscription.objects.filter(external_customer_id=customer, lago_customer_id__isnull=False)
        lago_id = read.order_by("-read_at").values_list("lago_customer_id", flat=True).first()
    return None if lago_id is None else f"{front_url}/customer/{quote(lago_id, safe='')}"


def _lasted(row: Sums) -> Any:
    if row.started_at is None:
        return None
    end = row.stopped_at or clock.now()
    return end - row.started_at if end >= row.started_at else None


def _stopped_by(found: ChargingSession) -> str:
    if found.reading_stopped_at is not None:
        return _("By a reading that a person entered")
    return str(STOPPED_BY.get(found.stop_actor or "", STOPPED_BY[""]))


# -- decided -------------------------------------------------------------------------------------------


def _judged(found: ChargingSession, who: Caller) -> dict[str, Any] | None:
    """Every rule with its numbers, by the settings of now; None while there is nothing to judge."""
    policy = policy_of(settings.CONFIG)
    read = read_facts(found.pk, policy)
    if read is None:
        return None
    facts, rulings = read
    checks = explain_session(facts, policy.limits, policy.go_live_at, rulings.accepted)
    return {
        "checks": [_check(check, who) for check in checks],
        "against": next((check for check in checks if check.decides), None),
        "rulings": rulings,
        "shadow": policy.go_live_at is None,
    }


def _check(check: Check, who: Caller) -> dict[str, Any]:
    hidden = check.rule is Rule.IDENTITY and not check.passed and not who.sees_tags
    return {
        "label": LABELS[check.rule],
        "says": IDENTITY_IN_DOUBT if hidden else check_says(check),
        "check": check,
    }


def _decision(decision: Decision, found: ChargingSession, who: Caller) -> dict[str, Any]:
    state = {"hold": "held", "exclude": "excluded", "bill": "queued"}[decision.outcome]
    return {
        "decision": decision,
        "reason": wording.of_reason(state, decision.reason) if decision.reason else None,
        "says": decision_says(who, decision.says, decision.reason, found.id_tag_text),
    }


# -- mapped ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PaidBy:
    """Who pays and why.

    Attributes:
        path: tags from the session's own to the mapped one.
        mapping: the interval that was valid at the start; None = there was none.
        inactive: it was switched off then.
        decided_by_other: the decision was made by another mapping than today's.
        assigned: the customer that a person chose for this session.
        subscription: Lago's row as last read.
    """

    customer: str | None
    external_subscription_id: str | None
    at: datetime | None
    path: list[str] = field(default_factory=list)
    mapping: MappingInterval | None = None
    inactive: bool = False
    decided_by_other: bool = False
    assigned: str | None = None
    subscription: LagoSubscription | None = None


def _payer(
    found: ChargingSession,
    row: Sums,
    decisions: list[Decision],
    standing: list[UsageEvent],
    assigned: tuple[str, str | None] | None,
) -> PaidBy:
    at = found.started_at or row.stopped_at
    path: list[str] = []
    mapping, inactive = None, False
    if at is not None:
        family = load_family({found.id_tag_id})
        answer = resolve_mapping(found.id_tag_id, at, family.mappings, family.parents)
        if isinstance(answer, Mapped | Inactive):
            mapping = answer.mapping
            inactive = isinstance(answer, Inactive)
        if isinstance(answer, Mapped):
            texts = {found.id_tag_id: found.id_tag.text}
            if above := set(answer.via_tag_ids) - texts.keys():
                texts |= dict(IdTag.objects.filter(pk__in=above).values_list("pk", "text"))
            path = [texts[tag_id] for tag_id in answer.via_tag_ids]
    decided = next((each.mapping_id for each in decisions if each.mapping_id is not None), None)
    rows = LagoSubscription.objects.order_by("-started_at")
    if standing:
        subscription = rows.filter(lago_id=standing[-1].lago_subscription_id).first()
    else:
        subscription = rows.filter(external_id=row.subscription).first() if row.subscription else None
    return PaidBy(
        customer=row.customer,
        external_subscription_id=row.subscription,
        at=at,
        path=path,
        mapping=mapping,
        inactive=inactive,
        decided_by_other=decided is not None and (mapping is None or mapping.mapping_id != decided),
        assigned=assigned[0] if assigned else None,
        subscription=subscription,
    )


# -- events ------------------------------------------------------------------------------------------------


def _events(events: list[UsageEvent], found: ChargingSession, who: Caller) -> list[dict[str, Any]]:
    """Usage events in their order; the first that stands carries those that correct or move it."""
    counted = _counted_wh(events)
    shown = [
        _event(each, counted.get((each.lago_subscription_id, each.period_from)), found, who)
        for each in events
    ]
    first = next((n for n, event in enumerate(events) if event.state != "void"), len(events))
    return [*shown[:first], *({**each, "further": shown[first + 1 :]} for each in shown[first : first + 1])]


def _event(event: UsageEvent, counted_wh: int | None, found: ChargingSession, who: Caller) -> dict[str, Any]:
    payload = event.payload
    if not who.sees_tags:
        payload = json.dumps(without_tag(json.loads(payload), found.id_tag_text, who), ensure_ascii=False)
    return {
        "event": event,
        "kind": KINDS.get(event.kind, event.kind),
        "payload": payload,
        "pretty": json.dumps(json.loads(payload), indent=2, ensure_ascii=False),
        "void": event.state == "void",
        "given_up_says": _given_up_says(event),
        # Seen there when it was given up, it is known not to be on the invoice.
        "turned_up": event.turned_up_at and event.given_up_at and event.turned_up_at > event.given_up_at,
        "answer": answer_says(without_tag(event.answer, found.id_tag_text, who)),
        "reason": wording.of_reason(event.state, event.reason) if event.reason else None,
        "counted_wh": counted_wh if event.state == "confirmed" else None,
        "uncounted_says": event.uncounted_says if is_uncounted(event) else None,
        "further": [],
    }


def _given_up_says(event: UsageEvent) -> str | None:
    """What it means for the money that an event was given up; None = it was not."""
    if event.given_up_at is None:
        return None
    if (event.answer or {}).get("outcome") != "given up":
        return _("A person excluded what it carries, so it is not sent again.")
    if event.state == "void":
        return _("So it counts nowhere here, and its energy is decided anew.")
    return _("So it is not sent again; what it carries is held until a person settles it.")


def _counted_wh(events: list[UsageEvent]) -> dict[tuple[str, datetime | None], int]:
    """What Lago counts of ours, in Wh, by subscription row and beginning of the period of these events."""
    periods = {
        (event.lago_subscription_id, event.period_from): Q(
            external_subscription_id=event.external_subscription_id,
            metric_code=event.metric_code,
            timestamp__gte=event.period_from,
            timestamp__lte=event.period_to,
            lago_subscription_id=event.lago_subscription_id,
        )
        for event in events
        if event.state == "confirmed" and event.period_from is not None and event.period_to is not None
    }
    if not periods:
        return {}
    any_of = reduce(or_, periods.values())
    sums = UsageEvent.objects.filter(any_of, source_id=events[0].source_id, state="confirmed").aggregate(
        **{f"period_{n}": Sum("energy_wh", filter=period) for n, period in enumerate(periods.values())}
    )
    return {key: int(sums[f"period_{n}"] or 0) for n, key in enumerate(periods)}


# -- people -----------------------------------------------------------------------------------------------


def _people(found: ChargingSession, sent: list[UsageEvent], who: Caller) -> list[dict[str, Any]]:
    """What people did about the session and its events, oldest first."""
    targets = [f"session:{found.source_id}:{found.steve_id}"]
    targets += [f"event:{event.transaction_id}" for event in sent]
    entries = AuditEntry.objects.filter(target__in=targets).order_by("pk")
    return [
        {
            "at": entry.at,
            "actor": entry.actor,
            "did": ACTIONS.get(entry.action, entry.action),
            "note": without_tag(entry.note, found.id_tag_text, who),
        }
        for entry in entries
    ]
