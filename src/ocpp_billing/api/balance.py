"""The balance: every watt-hour accounted for."""

from dataclasses import replace
from typing import Any

from django.conf import settings
from ninja import Query, Router

from ocpp_billing.accounts.models import Role
from ocpp_billing.api.auth import ApiRequest, allow
from ocpp_billing.api.queries import Range
from ocpp_billing.api.schemas import BalanceOut, Breakdown
from ocpp_billing.billing.balance import Dimension, balance_by, counted_balance, last_proof

router = Router(tags=["Balance"])


@router.get("", response=BalanceOut, auth=allow(Role.VIEWER))
def get_balance(request: ApiRequest) -> Any:  # noqa: ARG001 - ninja's signature
    """Sessions and energy by state and reason; ``unexplained`` must be 0.

    By counters that are kept with every change; ``proved_at`` is when a full recount last said the same.
    """
    source = settings.CONFIG.steve_source
    proof = last_proof(source)
    return {**counted_balance(source).to_json(), "proved_at": None if proof is None else proof.proved_at}


@router.get("/by/{dimension}", response=Breakdown, auth=allow(Role.VIEWER))
def get_breakdown(
    request: ApiRequest,
    dimension: Dimension,
    query: Query[Range],
) -> Any:
    """The balance broken down. A range is about when sessions stopped; without, it adds up to the balance."""
    rows = balance_by(settings.CONFIG.steve_source, dimension, from_=query.since, to=query.until)
    if dimension == "tag" and not request.auth.sees_tags:
        rows = [replace(row, key=row.key and request.auth.tag(row.key)) for row in rows]
        # Of equal energy in the order of what is seen: that of whole tags would tell about them.
        rows.sort(key=lambda row: (row.key is None, -row.total.energy_wh, row.key or ""))
    return {"by": dimension, "lines": [row.to_json() for row in rows]}
