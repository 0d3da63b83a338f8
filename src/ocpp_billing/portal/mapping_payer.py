"""Who could pay: a customer as Lago knows them, their subscriptions, and what speaks against a choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _

from ocpp_billing.billing.customers import subscriptions_of, verify_payer
from ocpp_billing.lago.client import breaks_path
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.mappings.store import MappingError

if TYPE_CHECKING:
    from ocpp_billing.billing.models import LagoSubscription
    from ocpp_billing.config import Config

# Rows of one external id: the one in force names the plan and the period.
_RANK = {"active": 0, "pending": 1, "terminated": 2, "canceled": 3}


@dataclass(frozen=True, slots=True)
class Payer:
    """A customer that somebody chose or typed.

    Attributes:
        external_id: as chosen; empty = nobody yet.
        customer: as Lago showed them last; None = never.
        subscriptions: one row per external id, those in force first; canceled ones are left out.
        unreachable: why Lago cannot be asked now, and what to do; None = it could.
        error: what Lago says against the customer.
    """

    external_id: str
    customer: LagoCustomer | None = None
    subscriptions: list[LagoSubscription] = field(default_factory=list)
    unreachable: str | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """What to call them."""
        return self.customer.name if self.customer is not None else self.external_id

    @property
    def active(self) -> list[LagoSubscription]:
        """Subscriptions in force now."""
        return [row for row in self.subscriptions if row.status == "active"]

    @property
    def dotted(self) -> bool:
        """Whether Lago takes the id for another one in an address."""
        return breaks_path(self.external_id)

    def row_of(self, subscription: str | None) -> LagoSubscription | None:
        """The row in force that a mapping to this subscription (None: to their only one) leads to."""
        active = self.active
        if subscription:
            return next((row for row in active if row.external_id == subscription), None)
        return active[0] if len(active) == 1 else None


def find_payer(config: Config, external_id: str, *, refresh: bool = False) -> Payer:
    """Ask Lago about a customer, or remember what it said.

    Args:
        config: the settings.
        external_id: Lago's external customer id.
        refresh: ask Lago now, however fresh the last answer is.
    """
    external_id = external_id.strip()
    if not external_id:
        return Payer("")
    customer = LagoCustomer.objects.filter(pk=external_id).first()
    if customer is None or refresh:
        try:
            verify_payer(config, external_id, None)
        except MappingError as error:
            return Payer(external_id, error=str(error))
        customer = LagoCustomer.objects.filter(pk=external_id).first()
    found = subscriptions_of(config, external_id, refresh=refresh)
    rows: dict[str, LagoSubscription] = {}
    for row in sorted(found.rows, key=lambda row: _RANK.get(row.status, 9)):
        if row.status != "canceled":
            rows.setdefault(row.external_id, row)
    return Payer(external_id, customer, list(rows.values()), found.unreachable)


def remarks_about(payer: Payer, subscription: str | None, *, verified: bool) -> list[str]:
    """What somebody should know before a mapping to this customer and subscription is saved."""
    remarks = []
    if not verified:
        remarks.append(
            _(
                "Lago cannot be asked whether it knows this customer and subscription. The mapping is saved "
                "as not verified. The next run asks; if Lago does not know them, the sessions are held as "
                "“No subscription”."
            )
        )
    remarks += remarks_about_customer(payer)
    active = payer.active
    if verified and subscription is None and not active:
        remarks.append(
            _(
                "The customer has no active subscription in Lago. Their sessions are held as “No "
                "subscription”, and billed by themselves once one that was in force then exists."
            )
        )
    if subscription is None and len(active) > 1:
        remarks.append(
            _(
                "The customer has %(n)s active subscriptions (%(names)s). Where more than one of them "
                "charges the energy, choosing would be a guess: the sessions are held as “Several "
                "subscriptions”. Choose one."
            )
            % {"n": len(active), "names": ", ".join(row.external_id for row in active)}
        )
    if subscription is not None and payer.subscriptions:
        row = next((row for row in payer.subscriptions if row.external_id == subscription), None)
        if row is not None and row.status != "active":
            remarks.append(
                _(
                    "Subscription %(name)s is %(status)s in Lago: sessions of a time when it is not in "
                    "force are held as “No subscription”."
                )
                % {"name": subscription, "status": row.status}
            )
    return remarks


def remarks_about_customer(payer: Payer) -> list[str]:
    """What somebody should know before anything is billed to this customer."""
    if not payer.dotted:
        return []
    return [
        _(
            "The customer's id holds a dot or a slash. Lago (up to 1.51) cannot show the usage of such a "
            "customer: billing works, but what it counts cannot be checked back, and too much billed must be "
            "refunded by hand. Better give the customer an id without one in Lago."
        )
    ]
