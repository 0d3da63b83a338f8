"""A StEvE that takes as long as a real one with a long history, by a clock of its own; and days that pass.

Shared by the tests and the benchmark of what cycles ask while nothing happens. Nobody waits: what a call
would take (:mod:`ocpp_billing.simulators.steve_cost`) is added to the clock that the engine goes by.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from ocpp_billing.charging.models import Source
from ocpp_billing.simulators.steve_cost import CostModel
from ocpp_billing.steve.client import SteveClient
from ocpp_billing.steve.discovery import Discovery, night_is_due
from ocpp_billing.sync.journal import RunJournal, begin_run
from ocpp_billing.sync.reading import discover_and_record
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.watch import look

if TYPE_CHECKING:
    from datetime import timedelta

    from ocpp_billing.config import Config
    from ocpp_billing.simulators.steve_release import Release
    from tests.world import WorldClock

KINDS = (
    ("tags", lambda target, _: "/ocppTags" in target),
    ("details", lambda target, _: "/transactions/" in target),
    ("by_id", lambda _, asked: "transactionPk" in asked),
    ("window", lambda _, asked: "from" in asked),
    ("active", lambda _, asked: asked.get("type") == ["ACTIVE"]),
)


class SlowSteve(SteveClient):
    """Asks the simulated StEvE, and takes as long as with a real one's history by the clock given.

    Attributes:
        spent_s: StEvE's time so far.
        kinds: calls by what they ask.
        seconds: StEvE's time by the same.
    """

    def __init__(self, settings: Any, release: Release, clock: WorldClock, *, history: int) -> None:
        self.release, self.world_clock, self.history = release, clock, history
        self.spent_s: float = 0.0
        self.kinds: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        super().__init__(settings, clock=lambda: self.spent_s)

    def _exchange(self, method: str, base: str, target: str, headers: Any) -> Any:
        answer = super()._exchange(method, base, target, headers)
        asked = parse_qs(urlsplit(target).query)
        kind = next((kind for kind, of in KINDS if of(target, asked)), "other")
        rows = answer.body.count(b'"chargeBoxPk"')
        took_s = CostModel().delay_s(
            self.release, "by_id" if kind == "details" else kind, history=self.history, rows=rows
        )
        self.spent_s += took_s
        self.kinds[kind] += 1
        self.seconds[kind] = self.seconds.get(kind, 0.0) + took_s
        self.world_clock.advance(seconds=took_s)
        return answer


class Days:
    """Cycles one after the other, each with what it asked; in a ``with`` block.

    Attributes:
        between: from the beginning of one cycle to that of the next.
        calls: of the last cycle, without those that read stops again, which have a budget of their own.
        rechecks: calls of the last cycle that read stops again.
        share: of StEvE's time that the last cycle took, all its calls together.
    """

    def __init__(self, config: Config, clock: WorldClock, steve: SlowSteve, between: timedelta) -> None:
        self.config, self.clock, self.steve, self.between = config, clock, steve, between
        self.calls, self.share, self.rechecks = 0, 0.0, 0

    def __enter__(self) -> Self:
        recheck = Discovery._recheck_stops

        def counted(discovery: Discovery) -> None:
            before = self.steve.calls
            recheck(discovery)
            self.rechecks += self.steve.calls - before

        self._counting = patch.object(Discovery, "_recheck_stops", counted)
        self._counting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._counting.stop()

    def cycle(self) -> None:
        """What a run of the worker asks StEvE and records of it; then time passes until the next one."""
        source = self.config.steve_source
        asked = request_run(source, trigger="schedule", requested_by="test")
        run = begin_run(asked.run_id, source=source, trigger="schedule", requested_by="test", worker="test")
        assert run is not None
        journal = RunJournal(run)
        began, calls, spent_s = self.clock.now(), self.steve.calls, self.steve.spent_s
        self.rechecks = 0
        discover_and_record(self.config, self.steve, journal)
        assert journal.finish("live").status == "completed"
        self.calls = self.steve.calls - calls - self.rechecks
        self.share = (self.steve.spent_s - spent_s) / self.between.total_seconds()
        self.clock.set(began + self.between)

    def is_nightly(self) -> bool:
        """Whether the next cycle reads what is read each night: it may ask more."""
        progress = Source.objects.get(name=self.config.steve_source).progress
        return night_is_due(progress, self.config.timezone)

    def tick(self, every: timedelta, *, worker: str = "test") -> None:
        """One look of the watch lane, by the leader of that name; then time passes until the next one."""
        began = self.clock.now()
        look(self.config, self.steve, worker=worker)
        self.clock.set(max(began + every, self.clock.now()))
