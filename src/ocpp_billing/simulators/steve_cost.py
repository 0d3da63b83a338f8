"""How long a real StEvE takes, as measured on 3.9.0 and 3.14.1 with 300,000 transactions on two cores.

Off by default. What matters to a poller: calls by id cost the same however long the history is, the list
of active transactions and the list of tags grow with it, and since 3.8 each call pays for bcrypt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ocpp_billing.simulators.steve_release import Release

Call = Literal["refused", "by_id", "active", "window", "all", "tags", "other"]

BCRYPT_S = 0.065
CALL_S = 0.005
ROW_BY_ID_S = 0.0005
ROW_S = 13e-6
SLOW_VIEW_S = 3e-6
HISTORY_S: dict[Call, float] = {"active": 3.2e-6, "tags": 9e-6}
WINDOW_S = {True: 2.0e-6, False: 1.1e-6}


@dataclass(frozen=True, slots=True)
class CostModel:
    """Delays of a real server times ``factor``."""

    factor: float = 1.0

    def delay_s(self, release: Release, call: Call, *, history: int, rows: int) -> float:
        """Seconds that a call takes.

        Args:
            release: 3.8 and later check a password with bcrypt; 3.6 reads all stops in every call.
            call: what is asked.
            history: transactions in the database.
            rows: transactions in the answer.
        """
        seconds = CALL_S + (BCRYPT_S if release.basic_auth else 0.0)
        if call == "refused":
            return seconds * self.factor
        seconds += history * HISTORY_S.get(call, 0.0)
        if call == "window":
            seconds += history * WINDOW_S[release.period_field_by_type]
        if release.slow_view:
            seconds += history * SLOW_VIEW_S
        seconds += rows * (ROW_BY_ID_S if call == "by_id" else ROW_S)
        return seconds * self.factor
