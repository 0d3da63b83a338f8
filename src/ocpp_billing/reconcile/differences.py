"""What a reconciliation says: lines of amounts, and what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ocpp_billing.billing.balance import Amount
from ocpp_billing.charging.models import SessionState

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.reconcile.ledger import LedgerSession

Between = Literal["StEvE and ledger", "ledger and Lago"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sides that do not say the same.

    Attributes:
        between: which two.
        code: what it is, for scripts.
        subscription: Lago's external subscription id; None where nobody's.
        what: StEvE's transaction id, our usage event's id, or a billing period.
        says: what differs.
        do: what to do about it.
    """

    between: Between
    code: str
    subscription: str | None
    what: str
    says: str
    do: str

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "between": self.between,
            "code": self.code,
            "subscription_id": self.subscription,
            "what": self.what,
            "says": self.says,
            "do": self.do,
        }


@dataclass(frozen=True, slots=True)
class Period:
    """What Lago counts in a billing period that overlaps the window, against what it was sent for it.

    ``uncounted_wh`` are the events that it took minutes ago and does not count yet: it agrees but for them.
    """

    from_: datetime
    to: datetime
    invoiced: bool
    counted_kwh: str
    ours_wh: int
    others_kwh: str | None
    agrees: bool
    uncounted_wh: int = 0

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "from": self.from_.isoformat(),
            "to": self.to.isoformat(),
            "invoiced": self.invoiced,
            "counted_kwh": self.counted_kwh,
            "ours_wh": self.ours_wh,
            "others_kwh": self.others_kwh,
            "agrees": self.agrees,
            "uncounted_wh": self.uncounted_wh,
        }


@dataclass(slots=True)
class Line:
    """One subscription, or what belongs to none.

    Attributes:
        subscription: Lago's external id; None = nobody pays (yet).
        customer: Lago's external id.
        steve: sessions that StEvE holds as stopped in the window.
        ledger: by state, sessions counted once under the state that names them, energy by its parts.
        lago: usage events of ours that Lago holds, counted as sessions.
        periods: what Lago counts.
    """

    subscription: str | None
    customer: str | None = None
    steve: Amount = field(default_factory=Amount)
    ledger: dict[str, Amount] = field(default_factory=dict)
    lago: Amount = field(default_factory=Amount)
    periods: list[Period] = field(default_factory=list)

    def add(self, state: str, sessions: int, energy_wh: int) -> None:
        """Count a part of a session in."""
        self.ledger.setdefault(state, Amount()).add(sessions, energy_wh)

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "subscription_id": self.subscription,
            "customer_id": self.customer,
            "steve": self.steve.to_json(),
            "ledger": {state: amount.to_json() for state, amount in self.ledger.items()},
            "lago": {"events": self.lago.sessions, "energy_wh": self.lago.energy_wh},
            "periods": [period.to_json() for period in self.periods],
        }


@dataclass(slots=True)
class Reconciliation:
    """All three sides of a window.

    Attributes:
        from_: begin, inclusive.
        to: end, exclusive.
        lines: by subscription; what belongs to nobody comes last.
        differences: what does not agree.
    """

    from_: datetime
    to: datetime
    lines: list[Line]
    differences: list[Difference]

    @property
    def agrees(self) -> bool:
        """Whether all three sides say the same."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "from": self.from_.isoformat(),
            "to": self.to.isoformat(),
            "agrees": self.agrees,
            "subscriptions": [line.to_json() for line in self.lines],
            "differences": [difference.to_json() for difference in self.differences],
        }


class Lines:
    """The lines while they are filled."""

    def __init__(self) -> None:
        self._lines: dict[str | None, Line] = {}

    def of(self, subscription: str | None, customer: str | None) -> Line:
        """The line of a subscription, or of nobody."""
        line = self._lines.setdefault(subscription, Line(subscription))
        if subscription is not None:
            line.customer = line.customer or customer
        return line

    def count(self, session: LedgerSession) -> None:
        """Count a session's parts where they stand."""
        self.of(*session.payer).add(session.state, 1, 0)
        if session.rest_state is not None:
            self.of(session.subscription, session.customer).add(session.rest_state, 0, session.rest_wh)
        for part in session.parts:
            self.of(part.subscription, part.customer).add(part.state, 0, part.energy_wh)

    def ordered(self) -> list[Line]:
        """By subscription; what belongs to nobody comes last."""
        order = [state.value for state in SessionState]
        for line in self._lines.values():
            line.ledger = {state: line.ledger[state] for state in order if line.ledger.get(state)}
        return sorted(
            self._lines.values(), key=lambda line: (line.subscription is None, line.subscription or "")
        )
