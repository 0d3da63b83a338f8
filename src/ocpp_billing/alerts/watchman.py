"""Who looks: a thread of the leader's for everything, and one of the web application's for the worker."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from django.db import connection

from ocpp_billing import clock
from ocpp_billing.alerts import book
from ocpp_billing.alerts.channels import channels_of, incomplete
from ocpp_billing.alerts.conditions import OF_THE_LEADER, WORKER_GONE, conditions, judge_worker
from ocpp_billing.log import get_logger
from ocpp_billing.sync.heartbeat import DATABASE_GONE
from ocpp_billing.sync.liveness import worker_alive
from ocpp_billing.sync.models import Alert, WorkerHeartbeat

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.alerts.conditions import Condition
    from ocpp_billing.config import Config

log = get_logger(__name__)

LOOKS_EVERY_S = 60.0
# After something has happened: at once, but not oftener than this.
LOOKS_SOONEST_S = 5.0
SENDS_EVERY_S = 15.0


class _Watch(ABC):
    """A thread that looks now and then, and sends what is due; it never holds up anybody else's work."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._channels = channels_of(config)
        self._ended, self._wanted = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def __enter__(self) -> Self:
        for sentence in incomplete(self._config):
            log.warning(sentence, action="alerts.incomplete")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._wanted.set()

    def look_soon(self) -> None:
        """Something happened that may open or resolve an alert."""
        self._wanted.set()

    @abstractmethod
    def _look(self) -> None:
        """Look, and write down what opened and what is over."""

    def _write(self, present: list[Condition], competence: tuple[str, ...]) -> None:
        book.write(self._config.steve_source, present, competence, list(self._channels), clock.now())

    def _run(self) -> None:
        looked_s = 0.0
        try:
            while not self._ended.is_set():
                now_s = time.monotonic()
                rest_s = LOOKS_SOONEST_S if self._wanted.is_set() else LOOKS_EVERY_S
                if now_s - looked_s >= rest_s:
                    self._wanted.clear()
                    looked_s = now_s
                    self._guarded(self._look)
                self._guarded(self._send)
                if self._wanted.is_set():
                    self._ended.wait(LOOKS_SOONEST_S)
                else:
                    self._wanted.wait(SENDS_EVERY_S)
        finally:
            connection.close()

    def _send(self) -> None:
        book.send_due(self._config.steve_source, self._channels, self._config.auth_url, clock.now())

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except DATABASE_GONE as error:
            log.debug("database away", action="alerts.database", error=str(error).strip())
            connection.close()
        except Exception:  # the outermost loop: alerts go on whatever happens
            log.exception("alerts failed", action="alerts.error")
            connection.close()


class Watchman(_Watch):
    """The leader's: looks at everything, as long as it leads."""

    def __init__(self, config: Config, worker: str) -> None:
        super().__init__(config)
        self._worker = worker

    def _look(self) -> None:
        if not WorkerHeartbeat.objects.filter(worker=self._worker, leader=True).exists():
            return
        self._write(conditions(self._config, clock.now()), OF_THE_LEADER)


class WorkerGuard(_Watch):
    """The web application's: notices that no worker is there, and that one is there again."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._since = clock.now()

    def _look(self) -> None:
        source, now = self._config.steve_source, clock.now()
        patience = timedelta(seconds=self._config.alert_worker_seconds)
        gone = judge_worker(worker_alive(source, now), now, patience, self._since)
        open_now = Alert.objects.filter(source_id=source, condition=WORKER_GONE, resolved_at=None).exists()
        if (gone is not None) != open_now:
            self._write([gone] if gone else [], (WORKER_GONE,))
