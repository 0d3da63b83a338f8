"""A PostgreSQL server that ended by itself is started again, whichever command it belongs to."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Self

from ocpp_billing.embedded.errors import EmbeddedPostgresError
from ocpp_billing.log import get_logger

if TYPE_CHECKING:
    from types import TracebackType

    from ocpp_billing.embedded.postgres import EmbeddedPostgres

log = get_logger(__name__)

# What dies is started again, ever more slowly while it keeps dying soon.
FIRST_RESTART_S, LONGEST_RESTART_S = 0.5, 30.0
HEALTHY_AFTER_S = 20.0
LOOKS_EVERY_S: Final = 0.2


class Keeper:
    """Keeps a server alive for the time of a command, in a thread; a context manager.

    It ends itself when it cannot write its log of changes any more, because the disk is full, and others end
    it when the machine runs out of memory. Whoever uses it waits meanwhile, and finds it at the same address.

    Args:
        server: that this process has started.
    """

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._restart_s = FIRST_RESTART_S
        self._started_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="embedded-postgres-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._over.wait(LOOKS_EVERY_S):
            if self._server.ended_by_itself:
                self._restart()

    def _restart(self) -> None:
        """Start it again, as often as that takes."""
        if time.monotonic() - self._started_at > HEALTHY_AFTER_S:
            self._restart_s = FIRST_RESTART_S
        log.error(
            "PostgreSQL ended",
            action="services.database_ended",
            exit_code=self._server.returncode,
            restart_in_s=self._restart_s,
        )
        while not self._over.wait(self._rest_s()):
            try:
                self._server.revive()
            except EmbeddedPostgresError as error:
                log.error(  # noqa: TRY400 - the sentence says all
                    "PostgreSQL does not start", action="services.database_failed", error=str(error)
                )
            except Exception:  # the outermost frame of the thread: no memory, no threads; that may pass
                log.exception("PostgreSQL does not start", action="services.database_failed")
            else:
                self._started_at = time.monotonic()
                log.warning("PostgreSQL runs again", action="services.database_started", pid=self._server.pid)
                return

    def _rest_s(self) -> float:
        rest_s, self._restart_s = self._restart_s, min(self._restart_s * 2, LONGEST_RESTART_S)
        return rest_s
