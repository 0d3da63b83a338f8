"""What a person does about one session: each act on a page of its own, which says what it will do.

The pages of sessions include ``portal/parts/session_acts.html``, which leads here.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import Http404
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing import clock
from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.accounts.models import Role
from ocpp_billing.billing import review
from ocpp_billing.billing.bulk import ChangedMeanwhileError, at_stake_wh, order_as_seen, standing
from ocpp_billing.billing.closing import (
    ClosingError,
    close_in_steve,
    finding_of,
    known_capabilities,
    preview_close,
)
from ocpp_billing.billing.customers import verify_payer
from ocpp_billing.billing.models import Decision, LagoSubscription
from ocpp_billing.billing.offers import Act, acts_of
from ocpp_billing.billing.refunds import settle_refund
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.config import ConfigError
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.portal import wording
from ocpp_billing.portal.access import find_here, needs, person
from ocpp_billing.portal.act_words import act_words, close_words, is_grave, was_done, will_do
from ocpp_billing.portal.decision_words import in_peoples_units
from ocpp_billing.portal.format import kwh, stamp
from ocpp_billing.portal.inbox import read_behind
from ocpp_billing.portal.sync_now import ask_for_run
from ocpp_billing.portal.way_back import way_back
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.sync.clients import steve_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.accounts.models import User
    from ocpp_billing.billing.closing import ClosePreview
    from ocpp_billing.mappings.models import TagMapping
    from ocpp_billing.steve.client import SteveClient

# A person waits for the preview.
STEVE_TIMEOUT_S = 15
# So many of Lago's customers are offered while typing.
OFFERED_CUSTOMERS = 300
UNASKED = gettext_lazy("Lago could not be asked whether it knows that customer; the next run will see.")
# What cannot be right is told; anything else is a fault of ours.
REFUSALS = (review.ReviewError, MappingError, ClosingError, SteveError, ConfigError)


# -- forms -----------------------------------------------------------------------------------------------


def _note(*, required: bool) -> forms.CharField:
    return forms.CharField(
        label=gettext_lazy("Note"),
        help_text=gettext_lazy("Why; it is kept with the session and in the audit log."),
        widget=forms.Textarea(attrs={"rows": 3}),
        max_length=NOTE_LENGTH,
        required=required,
    )


class NoteForm(forms.Form):
    """An act that needs nothing but a note, and may do without."""

    note = _note(required=False)


class ReasonForm(forms.Form):
    """An act that has to be explained."""

    note = _note(required=True)


class CreditForm(forms.Form):
    """A refund that was given in Lago."""

    credit_note = forms.CharField(
        label=gettext_lazy("Number of the credit note"),
        help_text=gettext_lazy("As Lago shows it, such as LAG-0042-CN001."),
        max_length=100,
    )
    note = _note(required=False)


class AssignForm(forms.Form):
    """Who pays for one session."""

    customer = forms.CharField(
        label=gettext_lazy("Customer"),
        help_text=gettext_lazy("Lago's external customer id."),
        max_length=255,
        widget=forms.TextInput(attrs={"list": "known-customers", "autocomplete": "off"}),
    )
    subscription = forms.CharField(
        label=gettext_lazy("Subscription"),
        help_text=gettext_lazy("Lago's external subscription id; empty = the customer's only one."),
        max_length=255,
        required=False,
        widget=forms.TextInput(attrs={"list": "known-subscriptions", "autocomplete": "off"}),
    )
    note = _note(required=False)


class ReadingForm(forms.Form):
    """What the meter showed at the end."""

    stop_kwh = forms.DecimalField(
        label=gettext_lazy("Meter at the end, in kWh"),
        help_text=gettext_lazy("The whole register as the meter shows it, not the energy of the session."),
        max_digits=10,
        decimal_places=3,
        min_value=0,
    )
    stopped_at = forms.DateTimeField(
        label=gettext_lazy("End of the session"),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S"),
        input_formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"],
    )
    note = forms.CharField(
        label=gettext_lazy("Where the reading comes from"),
        help_text=gettext_lazy("Such as: photo of the meter, 21 November. It is kept with the session."),
        widget=forms.Textarea(attrs={"rows": 3}),
        max_length=NOTE_LENGTH,
    )


class CloseForm(forms.Form):
    """Closing in StEvE as it was foretold."""

    expected_stop_wh = forms.IntegerField(widget=forms.HiddenInput)
    revision = forms.IntegerField(widget=forms.HiddenInput)


FORMS: dict[Act, type[forms.Form]] = {
    Act.ACCEPT: NoteForm,
    Act.ACKNOWLEDGE: ReasonForm,
    Act.ASSIGN: AssignForm,
    Act.CLOSE: CloseForm,
    Act.CREDIT: CreditForm,
    Act.EXCLUDE: ReasonForm,
    Act.READING: ReadingForm,
    Act.RETRY: NoteForm,
}


# -- what is offered -------------------------------------------------------------------------------------


def offered_acts(session: ChargingSession, *, back: str, sent: bool) -> list[dict[str, Any]]:
    """The open acts of a session as links, the one to suggest first.

    Args:
        session: whose.
        back: the page to come back to.
        sent: an event of it was attempted and stands.
    """
    acts = acts_of([session], closable=can_close_in_steve(), sent=[session.pk] if sent else [])
    return act_links(session, acts[session.pk], find_switched_off([session]).get(session.pk), back=back)


def find_session(session_id: int) -> ChargingSession:
    """A session of this StEvE, with its tag.

    Raises:
        Http404: when there is none of that number.
    """
    missing = _("There is no session %(id)s. Search for StEvE's number instead.") % {"id": session_id}
    return find_here(ChargingSession.objects.select_related("id_tag"), session_id, missing)


def can_close_in_steve() -> bool:
    """Whether this StEvE can be told to close a session."""
    capabilities = known_capabilities(settings.CONFIG)
    return capabilities is not None and capabilities.manual_stop


def act_links(
    session: ChargingSession, acts: list[Act], switched_off: TagMapping | None, *, back: str
) -> list[dict[str, Any]]:
    """These acts of a session as links.

    Args:
        session: whose.
        acts: the open ones.
        switched_off: of :func:`find_switched_off`.
        back: the page to come back to.
    """
    links = []
    for act in acts:
        if act is Act.MAP:
            links.append(map_link(session.id_tag_text, switched_off))
            continue
        words = act_words(act, session.reason)
        address = f"{reverse('portal:session_act', args=[session.pk, act.value])}?{_query(next=back)}"
        links.append({"act": act, "label": words.label, "icon": words.icon, "address": address})
    return links


def find_switched_off(sessions: Iterable[ChargingSession]) -> dict[int, TagMapping]:
    """Of sessions held because their tag's own mapping is switched off, that mapping, by their number."""
    held = [session.pk for session in sessions if session.reason == Reason.MAPPING_INACTIVE]
    if not held:
        return {}
    decisions = Decision.objects.filter(session__in=held).order_by("session_id", "-pk").distinct("session_id")
    return {
        decision.session_id: decision.mapping
        for decision in decisions.select_related("mapping", "session")
        if decision.mapping is not None
        and not decision.mapping.active
        and decision.mapping.id_tag_id == decision.session.id_tag_id
    }


def map_link(id_tag: str, switched_off: TagMapping | None) -> dict[str, Any]:
    """Where a tag is mapped; or, where its own mapping is switched off, where that is switched on."""
    if switched_off is None:
        words = act_words(Act.MAP, None)
        label, icon = words.label, words.icon
        address = f"{reverse('portal:mapping_new')}?{_query(tag=id_tag)}"
    elif switched_off.valid_to is not None and switched_off.valid_to <= clock.now():
        label, icon = _("Look at the mapping"), "tags"
        address = reverse("portal:mapping", args=[switched_off.pk])
    else:
        label, icon = _("Switch the mapping on"), "player-play"
        address = reverse("portal:mapping_switch", args=[switched_off.pk])
    return {"act": Act.MAP, "label": label, "icon": icon, "address": address}


def _query(**given: str) -> str:
    return urlencode(given)


def evident_wh(session: ChargingSession) -> int | None:
    """What a stuck session is shown to have delivered, 0 = nothing shows it; None = it is not stuck."""
    if session.state != "stuck":
        return None
    finding = finding_of(session)
    return 0 if finding is None or finding.stop_wh is None else max(finding.stop_wh - session.start_wh, 0)


def evidence_words(session: ChargingSession) -> str:
    """What shows how much a session delivered, in a sentence with its numbers."""
    finding = finding_of(session)
    if finding is None:
        return _("StEvE has not been asked for its meter values yet: the next run does.")
    if finding.stop_wh is None:
        return _("Nothing shows what was delivered.")
    given = {
        "register": kwh(finding.stop_wh),
        "energy": kwh(finding.stop_wh - session.start_wh),
        "at": stamp(finding.at, clock.now()) if finding.at else "?",
    }
    if finding.source == "next_start":
        return (
            _("The next session on the connector started at %(register)s kWh: ≈\xa0%(energy)s kWh.") % given
        )
    return _("Its last meter value was %(register)s kWh (%(at)s): ≈\xa0%(energy)s kWh.") % given


# -- doing it --------------------------------------------------------------------------------------------


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def session_act(request: HttpRequest, session_id: int, act: str) -> HttpResponse:
    """The page of one act about one session: what it will do, its form, and doing it."""
    session = find_session(session_id)
    chosen = next((form for form in FORMS if form.value == act), None)
    if chosen is None:
        raise Http404
    back = _back(request, session)
    if chosen not in acts_of([session], closable=can_close_in_steve())[session.pk]:
        return _show(request, session, chosen, None, back, status=409)
    if request.method == "GET":
        return _ask(request, session, chosen, back)
    seen = request.POST.get("seen", standing(session))
    if seen != standing(session):
        return _ask_anew(request, session, chosen, back)
    return _order(request, session, chosen, back, seen)


def _order(request: HttpRequest, session: ChargingSession, chosen: Act, back: str, seen: str) -> HttpResponse:
    """Take the form, and do what it says if the session still stands as it was seen."""
    form = FORMS[chosen](request.POST)
    context: dict[str, Any] = {}
    if form.is_valid():
        if chosen is Act.READING and not _is_seen(session, form, context):
            return _show(request, session, chosen, form, back, **context)
        try:
            says = _carry_out(session, chosen, form.cleaned_data, person(request), seen)
        except ChangedMeanwhileError:
            return _ask_anew(request, find_session(session.pk), chosen, back)
        except REFUSALS as error:
            form.add_error(None, str(error))
        else:
            messages.success(request, f"{says} {ask_for_run(request)}")
            return redirect(back)
    if chosen is Act.CLOSE:
        return _ask(request, session, chosen, back, refused=[str(error) for error in form.non_field_errors()])
    return _show(request, session, chosen, form, back, status=422, **context)


def _ask_anew(request: HttpRequest, session: ChargingSession, act: Act, back: str) -> HttpResponse:
    """The form for what the session is now, when it is not what was shown."""
    if act not in acts_of([session], closable=can_close_in_steve())[session.pk]:
        return _show(request, session, act, None, back, status=409)
    refused = [_("The session has changed since this page was made. Look at it as it is now.")]
    return _ask(request, session, act, back, refused=refused, status=409)


def _ask(
    request: HttpRequest,
    session: ChargingSession,
    act: Act,
    back: str,
    *,
    refused: list[str] | None = None,
    status: int = 200,
) -> HttpResponse:
    """The form as it is first seen."""
    initial: dict[str, Any] = {}
    context: dict[str, Any] = {"refused": refused or []}
    if act is Act.READING:
        finding = finding_of(session)
        if finding is not None and finding.stop_wh is not None:
            initial["stop_kwh"] = Decimal(finding.stop_wh).scaleb(-3)
            initial["stopped_at"] = finding.at
        elif session.stopped_at is not None:
            initial["stopped_at"] = session.stopped_at
    if act is Act.CLOSE:
        try:
            preview = _preview_close(session)
        except REFUSALS as error:
            context["refused"] = [*context["refused"], str(error)]
            return _show(request, session, act, None, back, status=409, **context)
        initial = {"expected_stop_wh": preview.stop_wh, "revision": session.revision}
        context["foretold"] = close_words(preview, clock.now())
    return _show(request, session, act, FORMS[act](initial=initial), back, status=status, **context)


def _show(
    request: HttpRequest,
    session: ChargingSession,
    act: Act,
    form: forms.Form | None,
    back: str,
    *,
    status: int = 200,
    **context: Any,
) -> HttpResponse:
    named = _("session %(id)s") % {"id": session.steve_id}
    if act is Act.ASSIGN:
        context |= offered_payers()
    if act is Act.READING:
        context["evidence"] = evidence_words(session)
    context |= {
        "session": session,
        "standing": standing(session),
        "act": act.value,
        "words": act_words(act, session.reason),
        "is_grave": is_grave(act, session.reason),
        "will_do": will_do(act, session.reason, named, at_stake_wh(session), evident_wh(session)),
        "state": wording.STATES[session.state],
        "reason": wording.of_reason(session.state, session.reason),
        "says": in_peoples_units(read_behind([session])[session.pk].why),
        "form": form,
        "back": back,
    }
    return render(request, "portal/session_act.html", context, status=status)


def offered_payers() -> dict[str, Any]:
    """What the form of assigning offers: customers and subscriptions that Lago has shown."""
    subscriptions = LagoSubscription.objects.filter(status="active").order_by("external_id")
    return {
        "customers": LagoCustomer.objects.order_by("name")[:OFFERED_CUSTOMERS],
        "subscriptions": subscriptions[:OFFERED_CUSTOMERS],
    }


def _back(request: HttpRequest, session: ChargingSession) -> str:
    here = reverse("portal:session", args=[session.pk])
    return way_back(request.POST.get("next") or request.GET.get("next"), here)


def _is_seen(session: ChargingSession, form: forms.Form, context: dict[str, Any]) -> bool:
    """Whether the person has seen what the reading makes of the session; puts that into the context."""
    energy_wh = _wh(form.cleaned_data["stop_kwh"]) - session.start_wh
    if energy_wh < 0:
        return True  # the domain says why not
    context["seen_wh"] = energy_wh
    stopped_at: datetime = form.cleaned_data["stopped_at"]
    if session.started_at is not None and stopped_at >= session.started_at:
        context["lasted"] = stopped_at - session.started_at
    return form.data.get("seen_wh") == str(energy_wh)


def _wh(kwh_read: Decimal) -> int:
    return int(kwh_read.scaleb(3))


def _hasty_steve() -> SteveClient:
    """A client of StEvE that gives up while a person still waits."""
    seconds = min(STEVE_TIMEOUT_S, settings.CONFIG.steve_read_timeout_seconds)
    return steve_client(dataclasses.replace(settings.CONFIG, steve_read_timeout_seconds=seconds))


def _preview_close(session: ChargingSession) -> ClosePreview:
    with _hasty_steve() as steve:
        return preview_close(settings.CONFIG, steve, session)


def _carry_out(session: ChargingSession, act: Act, given: dict[str, Any], user: User, seen: str) -> str:
    """Do it, if the session still stands as it was ``seen``; returns what was done, in a sentence.

    Raises:
        ChangedMeanwhileError: when it does not.
        ReviewError: and whatever else :data:`REFUSALS` names, when it cannot be done.
    """
    if act in _LOCK_THEMSELVES:
        done = _DO[act](session, given, user)
    else:
        given = given | {"verified": is_payer_known(given)} if act is Act.ASSIGN else given
        done = order_as_seen(session.pk, seen, lambda: _DO[act](session, given, user))
    named = _("Session %(id)s") % {"id": session.steve_id}
    return done or was_done(act, named)


def _accept(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    review.accept(session.pk, note=given["note"], by=user.email, user=user)
    return ""


def _exclude(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    review.exclude(session.pk, note=given["note"], by=user.email, user=user)
    return ""


def _credit(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    settle_refund(session.pk, credit_note=given["credit_note"], note=given["note"], by=user.email, user=user)
    return ""


def is_payer_known(given: dict[str, Any]) -> bool:
    """Whether Lago knows whoever shall pay, asked before anything is locked; False = it cannot be asked.

    Raises:
        MappingError: when Lago says that there is no such customer or subscription.
    """
    return verify_payer(settings.CONFIG, given["customer"].strip(), given["subscription"].strip() or None)


def _assign(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    review.assign(
        session.pk,
        customer=given["customer"],
        subscription=given["subscription"],
        note=given["note"],
        by=user.email,
        user=user,
    )
    done = was_done(Act.ASSIGN, _("Session %(id)s") % {"id": session.steve_id})
    return done if given["verified"] else f"{done} {UNASKED}"


def _read(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    review.enter_reading(
        session.pk,
        stop_wh=_wh(given["stop_kwh"]),
        stopped_at=given["stopped_at"],
        note=given["note"],
        by=user.email,
        user=user,
    )
    return ""


def _retry(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    review.retry_session(session.pk, note=given["note"], by=user.email, user=user)
    return ""


def _acknowledge(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    review.acknowledge_identity(session.id_tag_id, note=given["note"], by=user.email, user=user)
    return ""


def _close(session: ChargingSession, given: dict[str, Any], user: User) -> str:
    if session.revision != given["revision"]:
        raise ClosingError(
            _("Session %(id)s has changed meanwhile: look at it again.") % {"id": session.steve_id}
        )
    with _hasty_steve() as steve:
        closed = close_in_steve(
            settings.CONFIG,
            steve,
            session,
            expected_stop_wh=given["expected_stop_wh"],
            by=user.email,
            user=user,
        )
    return _("Session %(id)s is closed in StEvE: %(energy)s kWh.") % {
        "id": closed.steve_id,
        "energy": kwh(closed.energy_wh),
    }


_DO: dict[Act, Callable[[ChargingSession, dict[str, Any], User], str]] = {
    Act.ACCEPT: _accept,
    Act.ACKNOWLEDGE: _acknowledge,
    Act.ASSIGN: _assign,
    Act.CLOSE: _close,
    Act.CREDIT: _credit,
    Act.EXCLUDE: _exclude,
    Act.READING: _read,
    Act.RETRY: _retry,
}
# Closing asks StEvE, and nothing is locked while somebody outside is asked: it compares by itself. That a tag
# is the same one is an order about the tag, which is locked before its sessions.
_LOCK_THEMSELVES = (Act.CLOSE, Act.ACKNOWLEDGE)
