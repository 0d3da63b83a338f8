"""Make a mapping, or let somebody else pay from a day on: a form, then what it would do, then saving.

Each step is a whole page that the server draws from what was sent, so it works without JavaScript. Scripts
only fetch the same page sooner and put parts of it in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing import clock
from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.control import read_status
from ocpp_billing.billing.customers import refresh_customers, search_customers, verify_payer
from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.models import IdTag
from ocpp_billing.config import parse_instant
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.mappings import store
from ocpp_billing.mappings.listing import MappingFilter, list_mappings, total_sent
from ocpp_billing.mappings.models import LagoCustomer, TagMapping
from ocpp_billing.mappings.preview import preview_mapping, waiting_for
from ocpp_billing.mappings.store import MAX_ID_TAG_LENGTH, MappingError
from ocpp_billing.mappings.tags import list_tags
from ocpp_billing.portal.access import find_here, needs, person
from ocpp_billing.portal.format import count, kwh, stamp
from ocpp_billing.portal.mapping_payer import Payer, find_payer, remarks_about
from ocpp_billing.portal.mappings import month_start
from ocpp_billing.portal.sync_now import ask_for_run
from ocpp_billing.portal.wording import STATES, of_reason

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.accounts.models import User
    from ocpp_billing.mappings.preview import MappingPreview, Waiting

# Without a script, as many are offered by the browser itself; the rest by "Find".
OFFERED = 200
FOUND = 12
SESSIONS_SHOWN = 20


def find_mapping(mapping_id: int) -> TagMapping:
    """A mapping of this source, with its tag.

    Raises:
        Http404: when there is none of that number.
    """
    missing = _("There is no mapping %(id)s: it may have been deleted.") % {"id": mapping_id}
    rows = TagMapping.objects.select_related("id_tag", "created_by")
    return find_here(rows, mapping_id, missing, source="id_tag__source")


@dataclass(frozen=True, slots=True)
class Beginning:
    """One choice of when a mapping begins: ``at`` is None for a date of one's own."""

    code: str
    label: str
    at: datetime | None
    says: str = ""


class MappingForm(forms.Form):
    """Who pays for which tag, from when, until when.

    Which subscriptions and beginnings there are to choose from depends on the rest; the views know.
    """

    tag = forms.CharField(
        label=gettext_lazy("Tag"),
        max_length=MAX_ID_TAG_LENGTH,
        error_messages={"required": gettext_lazy("Which tag? Choose one, or type it as it is in StEvE.")},
        widget=forms.TextInput(
            attrs={
                "autocomplete": "off",
                "autocapitalize": "off",
                "spellcheck": "false",
                "list": "known-tags",
            }
        ),
    )
    customer = forms.CharField(
        label=gettext_lazy("Customer"),
        max_length=255,
        error_messages={"required": gettext_lazy("Who pays? Choose a customer of Lago.")},
        widget=forms.TextInput(
            attrs={
                "autocomplete": "off",
                "autocapitalize": "off",
                "spellcheck": "false",
                "list": "known-customers",
            }
        ),
    )
    subscription = forms.CharField(label=gettext_lazy("Subscription"), max_length=255, required=False)
    beginning = forms.CharField(
        error_messages={
            "required": gettext_lazy("From when? Nothing is chosen for you, because it is money.")
        }
    )
    beginning_at = forms.CharField(label=gettext_lazy("Date and time"), required=False, max_length=40)
    ending = forms.ChoiceField(
        required=False, choices=[("open", "open"), ("next", "next"), ("at", "at")], initial="open"
    )
    ending_at = forms.CharField(label=gettext_lazy("Date and time"), required=False, max_length=40)
    note = forms.CharField(label=gettext_lazy("Note"), required=False, max_length=NOTE_LENGTH)


def read_local(text: str) -> datetime:
    """A date and time as a form gives it, in the organisation's zone unless it says another.

    Raises:
        ValueError: with what it should look like.
    """
    return parse_instant(text.strip(), settings.CONFIG.timezone)


def beginnings(
    now: datetime, payer: Payer, subscription: str | None, waiting: Waiting | None, mapping: TagMapping | None
) -> list[Beginning]:
    """The sensible beginnings; none of them is chosen for anybody.

    Args:
        now: the present.
        payer: whose billing period may be one.
        subscription: of the payer; None = their only one.
        waiting: what waits for a mapping of the tag, when one is made.
        mapping: the mapping that is changed, else None.
    """
    found = [Beginning("now", _("Now"), now)]
    found.append(Beginning("month", _("The beginning of this month"), month_start(now)))
    row = payer.row_of(subscription)
    if row is not None and row.period_from is not None:
        found.append(
            Beginning(
                "period",
                _("The beginning of the current billing period of %(name)s") % {"name": row.external_id},
                row.period_from,
            )
        )
    if waiting is not None and waiting.rows:
        found.append(Beginning("first", _("The first session that waits for it"), waiting.rows[0].began_at))
    if mapping is not None:
        found = [one for one in found if one.at is not None and one.at > mapping.valid_from]
        found.append(Beginning("start", _("The mapping's own beginning: it was wrong"), mapping.valid_from))
    named = [
        Beginning(one.code, one.label, one.at, _catches(one.at, waiting))
        for one in found
        if one.at is not None
    ]
    return [*named, Beginning("at", _("Another date and time"), None)]


def _catches(at: datetime, waiting: Waiting | None) -> str:
    if waiting is None or not waiting.rows:
        return ""
    caught = waiting.since(at)
    if not caught.rows:
        return _("none of the waiting sessions")
    return _("%(n)s of %(all)s waiting sessions, %(kwh)s kWh") % {
        "n": count(caught.sessions),
        "all": count(waiting.sessions),
        "kwh": kwh(caught.energy_wh),
    }


@dataclass(frozen=True, slots=True)
class Proposal:
    """What somebody wants, with its instants fixed: a preview and the saving mean the same."""

    tag: str
    customer: str
    subscription: str | None
    valid_from: datetime
    valid_to: datetime | None
    note: str


class _Draft:
    """What was sent so far, and what is known about it."""

    def __init__(self, request: HttpRequest, mapping: TagMapping | None) -> None:
        self.now = clock.now()
        self.mapping = mapping
        self.posted = request.method == "POST"
        sent = request.POST if self.posted else request.GET
        self.do = request.POST.get("do", "show") if self.posted else "show"
        values = {name: sent.get(name, "") for name in MappingForm.base_fields}
        for name in ("tag", "customer"):
            if sent.get(f"pick_{name}"):
                values[name] = sent[f"pick_{name}"]
                self.do = "show"
        if sent.get("pick_customer"):
            values["subscription"] = ""
        if mapping is not None:
            values["tag"] = mapping.id_tag.text
            if not self.posted:
                values["customer"] = mapping.customer_external_id
                values["subscription"] = mapping.subscription_external_id or ""
        values["ending"] = values["ending"] or "open"
        self.values = values
        self.payer = find_payer(settings.CONFIG, values["customer"], refresh=self.do == "refresh")
        known = {row.external_id for row in self.payer.subscriptions}
        if values["subscription"] not in known and not self.payer.unreachable:
            # Somebody else's: the customer was changed after it was chosen.
            values["subscription"] = ""
        source, text = settings.CONFIG.steve_source, values["tag"].strip()
        self.known_tag = (
            IdTag.objects.filter(source_id=source, folded=fold_id_tag(text)).first() if text else None
        )
        self.intervals = (
            list(TagMapping.objects.filter(id_tag=self.known_tag).order_by("valid_from"))
            if self.known_tag is not None
            else []
        )
        self.waiting = waiting_for(source, text) if text and mapping is None else None
        self.beginnings = beginnings(
            self.now, self.payer, values["subscription"] or None, self.waiting, mapping
        )
        self.form = MappingForm(values) if self.do in {"preview", "save"} else MappingForm(initial=values)

    def proposal(self) -> Proposal | None:
        """What is asked for; None when the form is not whole (then it says what is missing)."""
        form = self.form
        if not form.is_valid():
            return None
        given = form.cleaned_data
        valid_from = self._instant(given["beginning"], "beginning_at")
        valid_to = None
        if valid_from is not None and given["ending"] == "at":
            valid_to = self._instant("at", "ending_at")
        elif valid_from is not None and given["ending"] == "next":
            later = [one.valid_from for one in self.intervals if one.valid_from > valid_from]
            valid_to = min(later, default=None)
        if valid_from is None or form.errors:
            return None
        if valid_to is not None and valid_to <= valid_from:
            form.add_error("ending_at", _("It would end before it begins."))
            return None
        return Proposal(
            given["tag"].strip(),
            given["customer"].strip(),
            given["subscription"].strip() or None,
            valid_from,
            valid_to,
            given["note"].strip(),
        )

    def _instant(self, code: str, of_field: str) -> datetime | None:
        if code != "at":
            for one in self.beginnings:
                if one.code == code and one.at is not None:
                    return one.at
            self.form.add_error("beginning", _("That beginning is no longer there: choose again."))
            return None
        try:
            return read_local(self.form.cleaned_data[of_field])
        except ValueError as error:
            self.form.add_error(of_field, _("Give %(what)s.") % {"what": error})
            return None

    def context(self) -> dict[str, Any]:
        """What the form page shows."""
        found: dict[str, Any] = {}
        if self.do == "find_tag":
            found["found_tags"] = list_tags(
                settings.CONFIG.steve_source, self.now, search=self.values["tag"].strip(), limit=FOUND
            )
        if self.do == "find_customer":
            found["found_customers"] = search_customers(settings.CONFIG, self.values["customer"], limit=FOUND)
        offered_tags = IdTag.objects.filter(source=settings.CONFIG.steve_source, vanished_at=None)
        return found | {
            "form": self.form,
            "values": self.values,
            "payer": self.payer,
            "remarks": [
                one
                for one in remarks_about(self.payer, self.values["subscription"] or None, verified=True)
                if self.payer.external_id and not self.payer.error and not self.payer.unreachable
            ],
            "known_tag": self.known_tag,
            "intervals": self.intervals,
            "waiting": self.waiting,
            "beginnings": self.beginnings,
            "offered_tags": [] if self.mapping else list(offered_tags.order_by("text")[:OFFERED]),
            "offered_customers": list(LagoCustomer.objects.order_by("name")[:OFFERED]),
            "mapping": self.mapping,
        }


def seen_at(request: HttpRequest) -> datetime | None:
    """When the mapping had last been changed as the posted page showed it; None = the page did not say.

    Raises:
        MappingError: when that is no instant.
    """
    text = request.POST.get("seen", "")
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        raise MappingError(_("The page was not understood: look at the mapping again.")) from None


def _frozen(request: HttpRequest) -> Proposal:
    """What was previewed, as the preview's own form sends it.

    Raises:
        MappingError: when it is not what a preview sends.
    """
    sent = request.POST
    try:
        valid_from = read_local(sent.get("valid_from", ""))
        valid_to = read_local(sent["valid_to"]) if sent.get("valid_to") else None
    except ValueError:
        raise MappingError(_("From when? Nothing is chosen for you, because it is money.")) from None
    return Proposal(
        sent.get("tag", "").strip(),
        sent.get("customer", "").strip(),
        sent.get("subscription", "").strip() or None,
        valid_from,
        valid_to,
        sent.get("note", "").strip(),
    )


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_new(request: HttpRequest) -> HttpResponse:
    """Map a tag to a customer; ``?tag=`` and ``?customer=`` fill the form."""
    if request.method == "POST" and request.POST.get("do") == "save":
        try:
            proposal = _frozen(request)
            mapping = _create(proposal, person(request))
        except MappingError as error:
            messages.error(request, str(error))
            return _form_page(request, None, show=True)
        released = preview_released(mapping)
        messages.success(request, f"{_made_says(mapping, *released)} {ask_for_run(request)}")
        return redirect("portal:mapping", mapping.pk)
    return _form_page(request, None)


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_change(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Let another customer or subscription pay from an instant on: one interval ends, another begins."""
    mapping = find_mapping(mapping_id)
    user = person(request)
    if request.method == "POST" and request.POST.get("do") == "save":
        try:
            proposal = _frozen(request)
            changed = store.change_mapping(
                mapping.pk,
                at=proposal.valid_from,
                customer=proposal.customer,
                subscription=proposal.subscription,
                verified=verify_payer(settings.CONFIG, proposal.customer, proposal.subscription),
                seen=seen_at(request),
                by=user.email,
                user=user,
            )
        except MappingError as error:
            messages.error(request, str(error))
            return _form_page(request, mapping, show=True)
        says = _("From %(at)s, %(customer)s pays for %(tag)s.") % {
            "at": stamp(changed.valid_from, clock.now()),
            "customer": changed.customer_external_id,
            "tag": changed.id_tag.text,
        }
        messages.success(request, f"{says} {ask_for_run(request)}")
        return redirect("portal:mapping", changed.pk)
    return _form_page(request, mapping)


def _create(proposal: Proposal, user: User) -> TagMapping:
    return store.create_mapping(
        source=settings.CONFIG.steve_source,
        id_tag=proposal.tag,
        customer=proposal.customer,
        subscription=proposal.subscription,
        valid_from=proposal.valid_from,
        valid_to=proposal.valid_to,
        note=proposal.note,
        verified=verify_payer(settings.CONFIG, proposal.customer, proposal.subscription),
        by=user.email,
        user=user,
    )


def preview_released(mapping: TagMapping) -> tuple[int, int]:
    """How many sessions, and how many Wh, wait for a mapping that exists by now."""
    preview = preview_mapping(
        source=settings.CONFIG.steve_source,
        id_tag=mapping.id_tag.text,
        customer=mapping.customer_external_id,
        valid_from=mapping.valid_from,
        valid_to=mapping.valid_to,
        replaces=mapping.pk,
    )
    return preview.sessions, preview.energy_wh


def _made_says(mapping: TagMapping, sessions: int, energy_wh: int) -> str:
    named = {"tag": mapping.id_tag.text, "customer": mapping.customer_external_id}
    if not sessions:
        return _("%(tag)s is mapped to %(customer)s. No session waited for it.") % named
    says = ngettext(
        "%(tag)s is mapped to %(customer)s. %(n)s session, %(kwh)s kWh, is decided in the next run.",
        "%(tag)s is mapped to %(customer)s. %(n)s sessions, %(kwh)s kWh, are decided in the next run.",
        sessions,
    )
    return says % {**named, "n": count(sessions), "kwh": kwh(energy_wh)}


def _form_page(request: HttpRequest, mapping: TagMapping | None, *, show: bool = False) -> HttpResponse:
    draft = _Draft(request, mapping)
    if draft.do == "refresh_customers":
        _refresh_customers(request)
    if draft.do == "preview" and not show:
        proposal = draft.proposal()
        if proposal is not None:
            try:
                verified = verify_payer(settings.CONFIG, proposal.customer, proposal.subscription)
            except MappingError as error:
                draft.form.add_error("customer", str(error))
            else:
                return render(
                    request, "portal/mapping_confirm.html", _confirmation(draft, proposal, verified=verified)
                )
    action = (
        reverse("portal:mapping_new")
        if mapping is None
        else reverse("portal:mapping_change", args=[mapping.pk])
    )
    return render(request, "portal/mapping_form.html", draft.context() | {"action": action})


def _refresh_customers(request: HttpRequest) -> None:
    try:
        number = refresh_customers(settings.CONFIG)
    except LagoError as error:
        messages.error(request, _("Lago cannot be asked: %(why)s") % {"why": error})
        return
    says = ngettext("%(n)s customer of Lago can be chosen.", "%(n)s customers of Lago can be chosen.", number)
    messages.success(request, says % {"n": count(number)})


def _confirmation(draft: _Draft, proposal: Proposal, *, verified: bool) -> dict[str, Any]:
    """What saving would do, in words and figures."""
    mapping = draft.mapping
    source = settings.CONFIG.steve_source
    preview = preview_mapping(
        source=source,
        id_tag=proposal.tag,
        customer=proposal.customer,
        valid_from=proposal.valid_from,
        valid_to=proposal.valid_to if mapping is None else mapping.valid_to,
        active=True if mapping is None else mapping.active,
        replaces=None if mapping is None else mapping.pk,
    )
    remarks = remarks_about(draft.payer, proposal.subscription, verified=verified)
    remarks += _late_remarks(draft.payer, proposal, preview)
    earlier = draft.waiting.until(proposal.valid_from) if draft.waiting is not None else None
    chosen = MappingFilter(
        source=source,
        now=draft.now,
        month_from=month_start(draft.now),
        whole_tags=True,
        tag_id=draft.known_tag.pk if draft.known_tag is not None else -1,
    )
    inheriting = [tag for row in list_mappings(chosen) for tag in row.inheriting] if mapping else []
    sent = total_sent(mapping.pk, since=proposal.valid_from) if mapping is not None else None
    refused = ""
    if (
        mapping is not None
        and proposal.valid_from <= mapping.valid_from
        and sent is not None
        and sent.sessions
    ):
        refused = _(
            "Sessions of this mapping were sent to Lago, so its past cannot be rewritten. Choose a later "
            "beginning, and move the billed sessions afterwards."
        )
    return {
        "proposal": proposal,
        "values": draft.values,
        "payer": draft.payer,
        "known_tag": draft.known_tag,
        "preview": preview,
        "groups": group_rows(preview),
        "released": preview.released[:SESSIONS_SHOWN] if mapping is None else [],
        "in_the_way": [find_mapping(one.mapping_id) for one in preview.in_the_way],
        "remarks": remarks,
        "earlier": earlier,
        "inheriting": inheriting,
        "shadow": read_status(settings.CONFIG).live_from is None,
        "mapping": mapping,
        "sent": sent,
        "refused": refused,
        "verified": verified,
        "action": reverse("portal:mapping_new")
        if mapping is None
        else reverse("portal:mapping_change", args=[mapping.pk]),
    }


def group_rows(preview: MappingPreview) -> list[dict[str, Any]]:
    """The groups of a preview with their words, and whether the mapping is all that each waits for."""
    return [
        {
            "group": group,
            "state": STATES[group.state],
            "words": of_reason(group.state, group.reason),
            "released": group.state == "queued" or group.reason in {"unmapped_tag", "mapping_inactive"},
        }
        for group in preview.groups
    ]


def _late_remarks(payer: Payer, proposal: Proposal, preview: MappingPreview) -> list[str]:
    row = payer.row_of(proposal.subscription)
    if row is None or row.period_from is None:
        return []
    late = [one for one in preview.paid if one.stopped_at < row.period_from]
    if not late:
        return []
    figures = {
        "n": count(len(late)),
        "kwh": kwh(sum(one.energy_wh for one in late)),
        "at": stamp(row.period_from, clock.now()),
        "name": row.external_id,
    }
    if settings.CONFIG.late_policy == "current_period":
        says = ngettext(
            "%(n)s session, %(kwh)s kWh, stopped before the billing period of %(name)s began (%(at)s): "
            "in time that is invoiced. By LATE_POLICY it is billed in the current period, dated now.",
            "%(n)s sessions, %(kwh)s kWh, stopped before the billing period of %(name)s began (%(at)s): "
            "in time that is invoiced. By LATE_POLICY they are billed in the current period, dated now.",
            len(late),
        )
    else:
        says = ngettext(
            "%(n)s session, %(kwh)s kWh, stopped before the billing period of %(name)s began (%(at)s). "
            "Lago has invoiced that time, so it will be held as “Period already closed” until you decide.",
            "%(n)s sessions, %(kwh)s kWh, stopped before the billing period of %(name)s began (%(at)s). "
            "Lago has invoiced that time, so they will be held as “Period already closed” until you decide.",
            len(late),
        )
    return [says % figures]
