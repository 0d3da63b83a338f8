"""The file for finance: a line for each part of a session, so that charged = the sum of what became of it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ocpp_billing.spreadsheet import csv_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocpp_billing.api.auth import Caller
    from ocpp_billing.billing.listing import LedgerFilter
    from ocpp_billing.billing.parts import Part, PartedSession

# charged_kwh stands once for a session, kwh once for a part, billed_kwh where Lago has that part: each
# column can be added up by itself.
COLUMNS = [
    *("steve_id", "charge_box_id", "connector_id", "id_tag", "started_at", "stopped_at", "charged_kwh"),
    *("kwh", "billed_kwh", "state", "reason", "customer_id", "subscription_id", "kind", "transaction_id"),
    *("lago_event_id", "event_at"),
]
BILLED = frozenset({"accepted", "confirmed"})


def part_lines(rows: Iterable[PartedSession], chosen: LedgerFilter, who: Caller) -> Iterator[str]:
    """Lines of the file, header first. A negative energy counts 0, as in every sum.

    Where the filter is about parts (state, reason, customer or subscription) only those are listed, and
    what was charged in whole sessions is left empty: it would not be the sum of them.
    """
    whole = not (chosen.states or chosen.reason or chosen.customer or chosen.subscription)
    return csv_lines(COLUMNS, _cells(rows, who, whole=whole))


def _cells(rows: Iterable[PartedSession], who: Caller, *, whole: bool) -> Iterator[list[Any]]:
    for row in rows:
        session = row.session
        for number, part in enumerate(row.matching):
            energy_wh = session.energy_wh if whole and number == 0 else None
            yield [
                session.steve_id,
                session.charge_box_id,
                session.connector_id,
                who.tag(session.id_tag),
                session.started_at,
                session.stopped_at,
                None if energy_wh is None else _kwh(max(energy_wh, 0)),
                *_amounts(part),
                part.state,
                part.reason,
                part.customer,
                part.subscription,
                part.kind,
                part.transaction_id,
                part.lago_event_id,
                part.timestamp,
            ]


def _amounts(part: Part) -> tuple[Decimal | None, Decimal | None]:
    if part.state in {"open", "stuck"}:  # not known yet
        return None, None
    return _kwh(part.energy_wh), _kwh(part.energy_wh if part.state in BILLED else 0)


def _kwh(energy_wh: int) -> Decimal:
    return Decimal(energy_wh).scaleb(-3)
