"""What the pages that move billed sessions share: where they belong, what that does, and doing it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import messages
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.billing.customers import ask_lago, search_customers
from ocpp_billing.billing.move import Move, MoveError, carry_out_move, preview_move
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.portal.access import person
from ocpp_billing.portal.format import count, kwh
from ocpp_billing.portal.mapping_form import FOUND, OFFERED
from ocpp_billing.portal.mapping_payer import find_payer, remarks_about_customer
from ocpp_billing.portal.sync_now import ask_for_run
from ocpp_billing.sync.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.accounts.models import User
    from ocpp_billing.portal.mapping_payer import Payer

# Each session may cost a question to Lago, and a person waits.
AT_ONCE = 100


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


@dataclass(slots=True)
class MoveForm:
    """Where sessions shall be billed, as a person has filled it in so far.

    Attributes:
        do: what was pressed: ``show``, ``refresh``, ``find_customer``, ``preview`` or ``move``.
        values: customer, subscription and note.
        payer: what Lago says about the customer.
    """

    do: str
    values: dict[str, str]
    payer: Payer

    @classmethod
    def read(cls, request: HttpRequest) -> MoveForm:
        """The form as it was sent, or an empty one. A subscription of somebody else is dropped."""
        do = request.POST.get("do", "show")
        values = {name: request.POST.get(name, "").strip() for name in ("customer", "subscription", "note")}
        if request.POST.get("pick_customer"):
            values |= {"customer": request.POST["pick_customer"], "subscription": ""}
            do = "show"
        payer = find_payer(settings.CONFIG, values["customer"], refresh=do == "refresh")
        known = {row.external_id for row in payer.subscriptions}
        if values["subscription"] not in known and not payer.unreachable:
            values["subscription"] = ""
        return cls(do, values, payer)

    @property
    def wants_plan(self) -> bool:
        """Whether the person wants to see what it does, or to do it."""
        return self.do in {"preview", "move"}

    def errors(self) -> dict[str, str]:
        """What stands in the way of a preview, by field."""
        if not self.values["customer"]:
            return {"customer": _("Who pays? Choose a customer of Lago.")}
        return {"customer": self.payer.error} if self.payer.error else {}

    def context(self) -> dict[str, Any]:
        """What ``parts/move_where.html`` shows."""
        payer = self.payer
        context: dict[str, Any] = {
            "values": self.values,
            "payer": payer,
            "remarks": remarks_about_customer(payer) if payer.external_id and not payer.error else [],
            "offered_customers": list(LagoCustomer.objects.order_by("name")[:OFFERED]),
        }
        if self.do == "find_customer":
            customer = self.values["customer"]
            context["found_customers"] = search_customers(settings.CONFIG, customer, limit=FOUND)
        return context


def preview_or_move(
    request: HttpRequest,
    form: MoveForm,
    chosen: list[int],
    *,
    subject: str,
    back: str,
    take_all: bool = False,
) -> HttpResponse | None:
    """The preview of moving these sessions, or, once that was seen, the redirect after moving them.

    Args:
        request: from an operator.
        form: where they shall be billed.
        chosen: our numbers of the sessions; more than :data:`AT_ONCE` are cut, and that is said.
        subject: what the page is about, for its title.
        back: the page to go to after moving.
        take_all: the sessions were not named one by one.

    Returns:
        None = Lago cannot be asked, which was said.
    """
    more, chosen = len(chosen) > AT_ONCE, sorted(chosen[:AT_ONCE])
    values, move = form.values, form.do == "move"
    try:
        with ask_lago(settings.CONFIG, ask_now=True) as client:
            directory = LagoDirectory(client, settings.CONFIG.lago_metric_code)
            plan = plan_moves(chosen, values["customer"], values["subscription"] or None, directory)
            changed = move and plan.digest != request.POST.get("previewed")
            noted = bool(values["note"])
            too_long = len(values["note"]) > NOTE_LENGTH
            if move and plan.moves and not changed and noted and not too_long:
                _carry_out(request, plan, directory, values["note"], person(request))
                return redirect(back)
    except LagoError as error:
        messages.error(
            request,
            _("Nothing was moved: a move needs Lago, and it cannot be asked. %(why)s") % {"why": error},
        )
        return None
    note_error = ""
    if move and not noted:
        note_error = _("Say why: a move needs a note.")
    elif move and too_long:
        note_error = _("A note has at most %(n)s characters.") % {"n": count(NOTE_LENGTH)}
    context = {
        "subject": subject,
        "plan": plan,
        "chosen": chosen,
        "more": more,
        "most": AT_ONCE,
        "take_all": take_all,
        "values": values,
        "changed": changed,
        "note_error": note_error,
        "note_length": NOTE_LENGTH,
        "payer": find_payer(settings.CONFIG, values["customer"]),
    }
    return render(request, "portal/move_confirm.html", context)


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
