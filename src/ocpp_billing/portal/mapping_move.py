"""Move sessions that were billed by a mapping to another subscription: choose, look, then do it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import messages
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.customers import ask_lago, search_customers
from ocpp_billing.billing.move import Move, MoveError, carry_out_move, preview_move
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.mappings.listing import sent_sessions, total_sent
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.format import count, kwh
from ocpp_billing.portal.mapping_form import FOUND, OFFERED, find_mapping
from ocpp_billing.portal.mapping_payer import find_payer, remarks_about_customer
from ocpp_billing.portal.paging import read_page
from ocpp_billing.portal.sync_now import ask_for_run
from ocpp_billing.sync.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.accounts.models import User
    from ocpp_billing.portal.mapping_payer import Payer

# Each session may cost a question to Lago, and a person waits.
AT_ONCE = 100
ROWS = 50


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What moving some sessions would do, and why some of them cannot be moved."""

    moves: list[Move]
    refused: list[str]

    @property
    def energy_wh(self) -> int:
        """What is billed to the other subscription then."""
        return sum(move.energy_wh for move in self.moves)

    @property
    def by_hand_wh(self) -> int:
        """Of what is taken back, the part that Lago would not honour: credit notes by hand."""
        return sum(wh for move in self.moves for _, old, wh in move.from_ if old in move.refund_by_hand)

    @property
    def digest(self) -> str:
        """Two plans that do the same have the same; the time of an event that is dated now aside."""
        same = [
            (move.session_id, move.energy_wh, move.from_, sorted(move.refund_by_hand), move.to.row.lago_id)
            for move in self.moves
        ]
        return hashlib.sha256(repr(same).encode()).hexdigest()


def plan_moves(
    session_ids: Sequence[int], customer: str, subscription: str | None, directory: LagoDirectory
) -> MovePlan:
    """Work out each session by itself, so that one that cannot be moved does not stop the others.

    Raises:
        LagoError: when Lago cannot be asked.
    """
    plan = MovePlan([], [])
    policy = policy_of(settings.CONFIG)
    for session_id in session_ids:
        try:
            plan.moves.extend(
                preview_move(
                    [session_id],
                    customer=customer,
                    subscription=subscription,
                    policy=policy,
                    directory=directory,
                )
            )
        except MoveError as error:
            plan.refused.append(str(error))
    plan.moves.sort(key=lambda move: move.steve_id)
    return plan


def _ticked(request: HttpRequest, mapping_id: int) -> list[int]:
    """Sessions that were ticked, on this page or another, as far as they were sent by this mapping."""
    wanted = {int(text) for text in request.POST.getlist("session") if text.isascii() and text.isdigit()}
    if not wanted:
        return []
    return [row.session_id for row in sent_sessions(mapping_id, only=wanted, limit=len(wanted))]


def _all_elsewhere(mapping_id: int, customer: str, subscription: str) -> list[int]:
    """The newest sessions of this mapping that are not billed there yet, and one more than go at once."""
    found: list[int] = []
    before = None
    while len(found) <= AT_ONCE and (rows := sent_sessions(mapping_id, before=before, limit=1_000)):
        found += [
            row.session_id
            for row in rows
            if row.customer != customer or (subscription and row.subscription != subscription)
        ]
        before = rows[-1].session_id
    return found[: AT_ONCE + 1]


def _missing(chosen: list[int], values: dict[str, str], payer: Payer) -> dict[str, str]:
    """What stands in the way of a preview, by field."""
    errors = {}
    if not chosen:
        errors["session"] = _("Choose at least one session that is not billed there yet.")
    if not values["customer"]:
        errors["customer"] = _("Who pays? Choose a customer of Lago.")
    elif payer.error:
        errors["customer"] = payer.error
    return errors


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_move(request: HttpRequest, mapping_id: int) -> HttpResponse:
    """Choose sessions and where they belong; then what moving does; then moving."""
    mapping = find_mapping(mapping_id)
    do = request.POST.get("do", "show")
    values = {name: request.POST.get(name, "").strip() for name in ("customer", "subscription", "note")}
    if request.POST.get("pick_customer"):
        values |= {"customer": request.POST["pick_customer"], "subscription": ""}
        do = "show"
    ticked = _ticked(request, mapping.pk) if request.method == "POST" else []
    take_all = request.POST.get("all") == "true"
    payer = find_payer(settings.CONFIG, values["customer"], refresh=do == "refresh")
    if (
        values["subscription"] not in {row.external_id for row in payer.subscriptions}
        and not payer.unreachable
    ):
        values["subscription"] = ""
    chosen = ticked
    if take_all and do == "preview":
        chosen = _all_elsewhere(mapping.pk, values["customer"], values["subscription"])
    errors = _missing(chosen, values, payer) if do in {"preview", "move"} else {}
    if do in {"preview", "move"} and not errors:
        answer = _preview_or_move(request, mapping.pk, chosen, values, move=do == "move")
        if answer is not None:
            return answer
    page = read_page(
        request,
        "sent",
        lambda before, limit: sent_sessions(mapping.pk, before=before, limit=limit),
        lambda row: row.session_id,
        size=ROWS,
    )
    context: dict[str, Any] = {
        "mapping": mapping,
        "page": page,
        "sent": total_sent(mapping.pk),
        "ticked": ticked,
        "ticked_elsewhere": sorted(set(ticked) - {row.session_id for row in page.rows}),
        "take_all": take_all,
        "most": AT_ONCE,
        "values": values,
        "payer": payer,
        "remarks": remarks_about_customer(payer) if payer.external_id and not payer.error else [],
        "errors": errors,
        "offered_customers": list(LagoCustomer.objects.order_by("name")[:OFFERED]),
    }
    if do == "find_customer":
        context["found_customers"] = search_customers(settings.CONFIG, values["customer"], limit=FOUND)
    return render(request, "portal/mapping_move.html", context)


def _preview_or_move(
    request: HttpRequest, mapping_id: int, chosen: list[int], values: dict[str, str], *, move: bool
) -> HttpResponse | None:
    """The preview, or the redirect after moving; None = Lago cannot be asked, which was said."""
    mapping = find_mapping(mapping_id)
    more, chosen = len(chosen) > AT_ONCE, sorted(chosen[:AT_ONCE])
    try:
        with ask_lago(settings.CONFIG, ask_now=True) as client:
            directory = LagoDirectory(client, settings.CONFIG.lago_metric_code)
            plan = plan_moves(chosen, values["customer"], values["subscription"] or None, directory)
            changed = move and plan.digest != request.POST.get("previewed")
            noted = bool(values["note"])
            if move and plan.moves and not changed and noted:
                _carry_out(request, plan, directory, values["note"], person(request))
                return redirect("portal:mapping", mapping.pk)
    except LagoError as error:
        messages.error(
            request,
            _("Nothing was moved: a move needs Lago, and it cannot be asked. %(why)s") % {"why": error},
        )
        return None
    context = {
        "mapping": mapping,
        "plan": plan,
        "chosen": chosen,
        "more": more,
        "most": AT_ONCE,
        "take_all": request.POST.get("all") == "true",
        "values": values,
        "changed": changed,
        "note_missing": move and not noted,
        "note_length": NOTE_LENGTH,
        "payer": find_payer(settings.CONFIG, values["customer"]),
    }
    return render(request, "portal/mapping_move_confirm.html", context)


def _carry_out(request: HttpRequest, plan: MovePlan, directory: LagoDirectory, note: str, user: User) -> None:
    moved = moved_wh = 0
    for move in plan.moves:
        try:
            carry_out_move(
                move,
                policy=policy_of(settings.CONFIG),
                directory=directory,
                note=note,
                by=user.email,
                user=user,
            )
        except MoveError as error:
            messages.error(request, str(error))
        else:
            moved += 1
            moved_wh += move.energy_wh
    if moved:
        says = ngettext(
            "%(n)s session, %(kwh)s kWh, is moved. Its events go out with the next run.",
            "%(n)s sessions, %(kwh)s kWh, are moved. Their events go out with the next run.",
            moved,
        )
        says %= {"n": count(moved), "kwh": kwh(moved_wh)}
        messages.success(request, f"{says} {ask_for_run(request)}")
