"""Needs attention: what is not billed by itself, by cause, and one act for many sessions."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import Http404
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django.views.decorators.vary import vary_on_headers

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.api.ledger import without_tag
from ocpp_billing.billing import review
from ocpp_billing.billing.bulk import at_stake_wh, order_each, standing
from ocpp_billing.billing.offers import Act, acts_of
from ocpp_billing.billing.refunds import settle_refund
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.billing.uncounted import read_uncounted
from ocpp_billing.billing.undo import revoke
from ocpp_billing.charging.models import ChargingSession, IdTag, MalformedRow
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.portal import inbox, wording
from ocpp_billing.portal.access import caller, needs, person, seen_tag
from ocpp_billing.portal.act_words import act_words, is_grave, was_ordered, will_do
from ocpp_billing.portal.acts import (
    FORMS,
    UNASKED,
    act_links,
    can_close_in_steve,
    evidence_words,
    evident_wh,
    find_switched_off,
    is_payer_known,
    map_link,
    offered_payers,
)
from ocpp_billing.portal.banners import alert_lines
from ocpp_billing.portal.decision_words import decision_says
from ocpp_billing.portal.format import count, kwh
from ocpp_billing.portal.live import current_mark, draw_live
from ocpp_billing.portal.paging import read_page
from ocpp_billing.portal.queries import open_alerts
from ocpp_billing.portal.sync_now import ask_for_run
from ocpp_billing.portal.way_back import way_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django import forms
    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.accounts.models import User
    from ocpp_billing.api.auth import Caller
    from ocpp_billing.mappings.models import TagMapping
    from ocpp_billing.portal.inbox import Behind, Cause, Cluster, Ordered

ROWS = 50
# So many sessions get one order at once; a person waits for it, and the rest can follow.
MOST_AT_ONCE = 1_000
ROWS_OF_PREVIEW = 100
# Acts that make sense for many sessions alike.
FOR_MANY = (Act.ACCEPT, Act.RETRY, Act.CREDIT, Act.ASSIGN, Act.EXCLUDE)


# -- the inbox -------------------------------------------------------------------------------------------


@require_GET
@never_cache
@vary_on_headers("HX-Request")
def attention(request: HttpRequest) -> HttpResponse:
    """All causes, most urgent first; for htmx, only the live part."""
    source, now, user = settings.CONFIG.steve_source, clock.now(), person(request)
    mark = current_mark(source)
    causes = inbox.read_causes(source, now)
    undecided = [cause for cause in causes if cause.reason == "undecided"]
    uncounted = read_uncounted(source)
    shown = [cause for cause in causes if cause.reason != "undecided"]
    samples = ChargingSession.objects.in_bulk(
        [cluster.sample for cause in shown for cluster in cause.clusters]
    )
    switched_off = find_switched_off(samples.values())
    return draw_live(
        request,
        "attention",
        {
            "mark": mark,
            "causes": [_cause(cause, caller(request), samples, switched_off) for cause in shown],
            "sessions": sum(cause.sessions for cause in shown) + inbox.count_uncounted(source),
            "at_stake_wh": sum(cause.at_stake_wh for cause in shown) + uncounted.at_stake_wh,
            "uncounted": uncounted,
            "accepted": wording.STATES["accepted"],
            "alerts": alert_lines(open_alerts(source), "portal:attention"),
            "next_end": inbox.next_period_end(now),
            "undecided": sum(cause.sessions for cause in undecided),
            "ordered": inbox.count_ordered(source),
            "malformed": MalformedRow.objects.filter(source_id=source, resolved_at=None).order_by("-pk")[:5],
            "orders": _orders(source, user),
        },
    )


def _cause(
    cause: Cause, who: Caller, samples: dict[int, ChargingSession], switched_off: dict[int, TagMapping]
) -> dict[str, Any]:
    return {
        "cause": cause,
        "words": wording.of_reason(cause.state, cause.reason),
        "state": wording.STATES[cause.state],
        "address": _group_address(cause.state, cause.reason),
        "clusters": [
            _cluster(cause, cluster, switched_off.get(cluster.sample), who.user)
            | {"says": _says(cluster, samples.get(cluster.sample), who)}
            for cluster in cause.clusters
        ],
        "more": cause.clusters_in_all - len(cause.clusters),
        "days": _days(cause),
    }


def _says(cluster: Cluster, sample: ChargingSession | None, who: Caller) -> str:
    """Why one of a cluster waits."""
    if sample is None:  # gone since it was counted
        return ""
    if sample.state == "stuck":
        return evidence_words(sample)
    return decision_says(who, cluster.says, sample.reason, sample.id_tag_text)


def _days(cause: Cause) -> int | None:
    return None if cause.period_to is None else max((cause.period_to - clock.now()).days, 0)


def _cluster(cause: Cause, cluster: Cluster, switched_off: TagMapping | None, user: User) -> dict[str, Any]:
    """One line of a cause, with the act that settles all of it."""
    name = cluster.name
    if cause.dimension == "tag" and name is not None:
        name = seen_tag(user, name)
    address = _group_address(cause.state, cause.reason, **{cause.dimension: cluster.key or ""})
    return {
        "cluster": cluster,
        "name": name or _("nobody"),
        "address": address,
        "act": _suggested(cause, cluster, name or "", switched_off) if user.is_operator else None,
    }


def _suggested(
    cause: Cause, cluster: Cluster, name: str, switched_off: TagMapping | None
) -> dict[str, Any] | None:
    """The one act that settles most of a cluster, with its numbers in place."""
    numbers = {"sessions": _sessions(cluster.sessions), "energy": kwh(abs(cluster.energy_wh)), "name": name}
    if cause.reason in {"unmapped_tag", "mapping_inactive"}:
        link = map_link(name, switched_off)
        if switched_off is None:
            return link | {"says": _("Map %(name)s → %(sessions)s, %(energy)s kWh are billed") % numbers}
        numbers["label"] = link["label"]
        return link | {"says": _("%(label)s: %(sessions)s, %(energy)s kWh") % numbers}
    if cause.reason == "identity_conflict":
        says = _("%(name)s is the same tag → %(sessions)s, %(energy)s kWh are billed") % numbers
        address = reverse("portal:session_act", args=[cluster.sample, Act.ACKNOWLEDGE.value])
        return {
            "says": says,
            "icon": "id-badge-2",
            "address": f"{address}?{urlencode({'next': reverse('portal:attention')})}",
        }
    texts = {
        (None, "late_period"): (Act.ACCEPT, _("Bill %(sessions)s, %(energy)s kWh, in the current period")),
        (None, "known_by_another_source"): (Act.ACCEPT, _("Bill %(sessions)s, %(energy)s kWh, here")),
        (None, "billed_by_another_source"): (
            Act.EXCLUDE,
            _("Leave %(sessions)s, %(energy)s kWh, as billed there"),
        ),
        (None, "charged_twice"): (Act.CREDIT, _("Mark the second fees of %(sessions)s as credited")),
        (None, "refund_by_credit_note"): (Act.CREDIT, _("Mark %(energy)s kWh of %(sessions)s as credited")),
        (None, "changed_after_billing"): (
            Act.ACCEPT,
            _("Bill the difference of %(sessions)s, %(energy)s kWh"),
        ),
        ("rejected", None): (Act.RETRY, _("Send %(sessions)s, %(energy)s kWh, again")),
    }
    act, text = texts.get((None, cause.reason or "")) or texts.get((cause.state, None)) or (None, "")
    if act is None:
        return None
    query = {
        "act": act.value,
        "state": cause.state,
        "reason": cause.reason or "",
        cause.dimension: cluster.key,
    }
    return {
        "says": text % numbers,
        "icon": act_words(act, cause.reason).icon,
        "address": f"{reverse('portal:attention_act')}?{urlencode({k: v for k, v in query.items() if v})}",
    }


def _sessions(number: int) -> str:
    return ngettext("%(n)s session", "%(n)s sessions", number) % {"n": count(number)}


def _group_address(state: str, reason: str | None, **filters: str) -> str:
    """The page of a cause, or of a cluster of it."""
    address = reverse("portal:attention_group", args=[state, reason or "-"])
    chosen = {key: value for key, value in filters.items() if value}
    return f"{address}?{urlencode(chosen)}" if chosen else address


def _orders(source: str, user: User) -> list[dict[str, Any]]:
    if not user.is_operator:
        return []
    return [
        {"order": order, "says": _order_says(order)}
        for order in inbox.recently_ordered(source, user, clock.now())
    ]


def _order_says(order: Ordered) -> str:
    named = _("Session %(id)s") % {"id": order.steve_id} if order.sessions == 1 else _sessions(order.sessions)
    return was_ordered(order.kind, named, kwh(order.energy_wh))


# -- one cause -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """A cause, or a cluster of it, as an address names it."""

    state: str
    reason: str | None
    tag: int | None = None
    customer: str | None = None
    charge_box: str | None = None

    @classmethod
    def read(cls, state: str, reason: str, given: Any) -> Chosen:
        """From an address.

        Raises:
            Http404: when it names no cause.
        """
        if state not in inbox.STATES:
            raise Http404
        tag = given.get("tag") or None
        if tag is not None and not (tag.isascii() and tag.isdigit() and len(tag) < 19):
            raise Http404
        return cls(
            state,
            None if reason in {"", "-"} else reason,
            tag=None if tag is None else int(tag),
            customer=given.get("customer") or None,
            charge_box=given.get("charge_box") or None,
        )

    def sessions(self) -> Any:
        """Its sessions, newest first."""
        return inbox.waiting_sessions(
            settings.CONFIG.steve_source,
            self.state,
            self.reason,
            tag=self.tag,
            customer=self.customer,
            charge_box=self.charge_box,
        )

    @property
    def query(self) -> str:
        """As the address of an act about all of it names it."""
        given = {"state": self.state, "reason": self.reason, "tag": self.tag}
        given |= {"customer": self.customer, "charge_box": self.charge_box}
        return urlencode({key: value for key, value in given.items() if value is not None})


@require_GET
@never_cache
@vary_on_headers("HX-Request")
def group(request: HttpRequest, state: str, reason: str) -> HttpResponse:
    """The sessions of one cause, with the acts for each, for a selection, and for all."""
    source, user = settings.CONFIG.steve_source, person(request)
    chosen = Chosen.read(state, reason, request.GET)
    mark = current_mark(source)

    def read(before: int | None, limit: int) -> list[ChargingSession]:
        sessions = chosen.sessions()
        return list((sessions if before is None else sessions.filter(pk__lt=before))[:limit])

    page = read_page(request, "waiting", read, lambda session: session.pk, size=ROWS)
    open_acts = acts_of(page.rows, closable=can_close_in_steve())
    many = {act for acts in open_acts.values() for act in acts}
    switched_off = find_switched_off(page.rows)
    tag = None if chosen.tag is None else IdTag.objects.filter(pk=chosen.tag, source_id=source).first()
    words = wording.of_reason(state, chosen.reason)
    return draw_live(
        request,
        "attention_group",
        {
            "mark": mark,
            "chosen": chosen,
            "words": words,
            "state": wording.STATES[state],
            "page": page,
            "rows": _rows(page.rows, open_acts, switched_off, caller(request), back=request.get_full_path()),
            "in_all": chosen.sessions().count(),
            "tag": tag,
            "map_link": map_link(tag.text, next(iter(switched_off.values()), None))
            if tag is not None and chosen.reason in {"unmapped_tag", "mapping_inactive"}
            else None,
            "filtered": chosen.customer or chosen.charge_box,
            "many": _for_many(many, chosen.reason) if user.is_operator else [],
            "orders": _orders(source, user),
            "most": MOST_AT_ONCE,
        },
    )


def _for_many(open_acts: set[Act], reason: str | None) -> list[dict[str, Any]]:
    """The acts for a selection and for all, those that cost money last."""
    offered = [
        {"act": act, "words": act_words(act, reason), "is_grave": is_grave(act, reason)}
        for act in FOR_MANY
        if act in open_acts
    ]
    return sorted(offered, key=lambda each: bool(each["is_grave"]))


def _rows(
    sessions: Sequence[ChargingSession],
    open_acts: dict[int, list[Act]],
    switched_off: dict[int, TagMapping],
    who: Caller,
    *,
    back: str,
) -> list[dict[str, Any]]:
    behind = inbox.read_behind(sessions)
    return [
        {
            "session": session,
            "behind": behind[session.pk],
            "evidence": _evidence(session, behind[session.pk], who),
            "at_stake_wh": at_stake_wh(session),
            "evident_wh": evident_wh(session),
            "acts": act_links(session, open_acts[session.pk], switched_off.get(session.pk), back=back),
        }
        for session in sessions
    ]


def _evidence(session: ChargingSession, behind: Behind, who: Caller) -> str:
    """In one line, with its numbers, why a session waits."""
    if session.state == "stuck":
        return evidence_words(session)
    if session.state == "rejected":
        answer = behind.answer or {}
        answered = answer.get("says") or answer.get("text") or answer.get("error")
        if answered:
            return str(without_tag(str(answered), session.id_tag_text, who))
    return decision_says(who, behind.why, session.reason, session.id_tag_text)


# -- one order about many --------------------------------------------------------------------------------


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def act_on_many(request: HttpRequest) -> HttpResponse:
    """The preview of an order about many sessions, which names them; and giving it."""
    try:
        act = Act((request.POST if request.method == "POST" else request.GET).get("act", ""))
    except ValueError:
        raise Http404 from None
    if act not in FOR_MANY:
        raise Http404
    if request.method == "POST":
        return _order(request, act)
    back = _back(request.GET.get("next", ""))
    chosen = _chosen_sessions(request)
    if not chosen:
        messages.warning(request, _("No session was chosen: tick those that are meant, or take all of them."))
        return redirect(back)
    return _preview(request, act, chosen, FORMS[act](), back)


def _chosen_sessions(request: HttpRequest) -> list[ChargingSession]:
    """The sessions that the address names one by one, or as a cause."""
    source = settings.CONFIG.steve_source
    ids = [int(number) for number in request.GET.getlist("id") if number.isascii() and number.isdigit()]
    if ids or "selected" in request.GET:
        found = ChargingSession.objects.filter(
            source_id=source, pk__in=[each for each in ids if each < 2**63]
        )
        return list(found.order_by("-pk")[:MOST_AT_ONCE])
    chosen = Chosen.read(request.GET.get("state", ""), request.GET.get("reason", ""), request.GET)
    return list(chosen.sessions()[:MOST_AT_ONCE])


def _preview(
    request: HttpRequest,
    act: Act,
    sessions: Sequence[ChargingSession],
    form: forms.Form,
    back: str,
    *,
    status: int = 200,
) -> HttpResponse:
    open_acts = acts_of(sessions, closable=False)
    meant = [session for session in sessions if act in open_acts[session.pk]]
    behind = inbox.read_behind(meant)
    energy_wh = sum(at_stake_wh(session) for session in meant)
    evident = [wh for session in meant if (wh := evident_wh(session)) is not None]
    reasons = {session.reason for session in meant}
    reason = next(iter(reasons)) if len(reasons) == 1 else None
    twice = [s for s in meant if is_grave(act, s.reason)] if act is Act.ACCEPT and reason is None else []
    by_customer: dict[str | None, list[int]] = defaultdict(list)
    for session in meant:
        by_customer[behind[session.pk].customer].append(at_stake_wh(session))
    context = {
        "act": act.value,
        "words": act_words(act, reason),
        "will_do": will_do(act, reason, _sessions(len(meant)), energy_wh, sum(evident) if evident else None),
        "also": will_do(act, twice[0].reason, _sessions(len(twice)), sum(map(at_stake_wh, twice)))
        if twice
        else "",
        "is_grave": bool(twice) or is_grave(act, reason),
        "meant": [
            {
                "session": session,
                "behind": behind[session.pk],
                "evidence": _evidence(session, behind[session.pk], caller(request)),
                "at_stake_wh": at_stake_wh(session),
                "evident_wh": evident_wh(session),
            }
            for session in meant[:ROWS_OF_PREVIEW]
        ],
        "unlisted": max(len(meant) - ROWS_OF_PREVIEW, 0),
        "sessions": len(meant),
        "energy_wh": energy_wh,
        "evident_wh": sum(evident) if evident else None,
        "left_out": len(sessions) - len(meant),
        "customers_by_energy": sorted(
            ((customer, len(parts), sum(parts)) for customer, parts in by_customer.items()),
            key=lambda line: -abs(line[2]),
        ),
        "seen": json.dumps({session.pk: standing(session) for session in meant}),
        "most": MOST_AT_ONCE if len(sessions) == MOST_AT_ONCE else 0,
        "form": form,
        "back": back,
    } | (offered_payers() if act is Act.ASSIGN else {})
    return render(request, "portal/attention_act.html", context, status=status)


def _order(request: HttpRequest, act: Act) -> HttpResponse:
    back, user = _back(request.POST.get("next", "")), person(request)
    seen = _seen(request.POST.get("seen", ""))
    if seen is None:
        messages.error(request, _("The list of sessions was not understood: begin again."))
        return redirect(back)
    form = FORMS[act](request.POST)
    outcomes, known = None, True
    if form.is_valid():
        try:
            known = act is not Act.ASSIGN or is_payer_known(form.cleaned_data)
            outcomes = order_each(seen, _order_of(act, form.cleaned_data, user))
        except MappingError as error:
            form.add_error(None, str(error))
    if outcomes is None:
        sessions = ChargingSession.objects.filter(source_id=settings.CONFIG.steve_source, pk__in=seen)
        return _preview(request, act, list(sessions.order_by("-pk")), form, back, status=422)
    done = [outcome for outcome in outcomes if outcome.refused is None]
    refused = [outcome for outcome in outcomes if outcome.refused is not None]
    says = was_ordered(_KIND[act], _sessions(len(done)), kwh(sum(outcome.energy_wh for outcome in done)))
    if done:
        says = f"{says} {'' if known else f'{UNASKED} '}{ask_for_run(request)}"
    if not refused:
        messages.success(request, says)
        return redirect(back)
    context = {"says": says if done else "", "refused": refused, "words": act_words(act, None), "back": back}
    return render(request, "portal/attention_outcome.html", context)


_KIND = {
    Act.ACCEPT: "accept",
    Act.EXCLUDE: "exclude",
    Act.ASSIGN: "assign",
    Act.CREDIT: "credit",
    Act.RETRY: "retry",
}


def _seen(text: str) -> dict[int, str] | None:
    """Which sessions the person has seen, and how each stood; None = that cannot be read."""
    try:
        seen = {int(session_id): str(stood) for session_id, stood in json.loads(text).items()}
    except (ValueError, AttributeError):
        return None
    known = ChargingSession.objects.filter(source_id=settings.CONFIG.steve_source, pk__in=seen)
    return {session_id: seen[session_id] for session_id in known.values_list("pk", flat=True)[:MOST_AT_ONCE]}


def _order_of(act: Act, given: dict[str, Any], user: User) -> Callable[[int], None]:
    """The order about one session."""
    who: dict[str, Any] = {"by": user.email, "user": user}
    note = given["note"]
    if act is Act.ACCEPT:
        return lambda session_id: review.accept(session_id, note=note, **who)
    if act is Act.EXCLUDE:
        return lambda session_id: review.exclude(session_id, note=note, **who)
    if act is Act.CREDIT:
        credit_note = given["credit_note"]
        return lambda session_id: settle_refund(session_id, credit_note=credit_note, note=note, **who)
    if act is Act.RETRY:
        return lambda session_id: review.retry_session(session_id, note=note, **who)
    customer, subscription = given["customer"].strip(), given["subscription"].strip() or None
    return lambda session_id: review.assign(
        session_id, customer=customer, subscription=subscription, note=note, **who
    )


@needs(Role.OPERATOR)
@require_POST
def undo(request: HttpRequest) -> HttpResponse:
    """Take back what was just ordered, as far as it was not carried out."""
    given, user, back = request.POST, person(request), _back(request.POST.get("next", ""))
    try:
        first, last = int(given.get("first", "")), int(given.get("last", ""))
    except ValueError:
        messages.error(request, _("What to take back was not understood. Nothing was changed."))
        return redirect(back)
    taken_back, refused = 0, []
    for ruling_id in inbox.rulings_of(
        user, given.get("kind", ""), given.get("note", ""), first, last, clock.now()
    ):
        try:
            revoke(ruling_id, by=user.email, user=user)
            taken_back += 1
        except ReviewError as error:
            refused.append(str(error))
    if taken_back:
        says = _("Taken back: %(sessions)s.") % {"sessions": _sessions(taken_back)}
        messages.success(request, f"{says} {ask_for_run(request)}")
    elif not refused:
        messages.warning(request, _("There was nothing left to take back."))
    for says in refused[:3]:
        messages.warning(request, says)
    if len(refused) > 3:
        messages.warning(request, _("And %(n)s more.") % {"n": len(refused) - 3})
    return redirect(back)


def _back(given: str) -> str:
    return way_back(given, reverse("portal:attention"))
