"""When a full run is due: a cron schedule in a named time zone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING

from cronsim import CronSim

from ocpp_billing import clock

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.config import Config


def next_scheduled(config: Config, after: datetime) -> datetime:
    """The next time of the schedule after an instant, in the instant's own zone; the schedule's zone decides.

    Times that a night of changing clocks skips come right after it, times that it repeats come once
    (``30 2 * * *``), and a schedule that runs on throughout (``*/15 * * * *``) runs on.
    """
    local = after.astimezone(config.timezone)
    # Within an hour that repeats, what the schedule names next may be its first coming, which is over.
    times = (at.astimezone(UTC) for at in CronSim(config.sync_cron_schedule, local))
    return next(at for at in times if at > after).astimezone(after.tzinfo)


@dataclass(slots=True)
class Schedule:
    """The next scheduled run of a worker that leads.

    What was missed while nobody led is made good by one run, not by many.
    """

    config: Config
    due_at: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.due_at = next_scheduled(self.config, clock.now())

    def look(self, now: datetime) -> datetime:
        """When the next one is due: also after the machine's clock was put back."""
        self.due_at = min(self.due_at, next_scheduled(self.config, now))
        return self.due_at

    def begun(self, now: datetime) -> None:
        """The run that was due has been asked for."""
        self.due_at = next_scheduled(self.config, now)
