"""Web and worker as child processes of ``up``, ``demo`` and ``dev``: kept alive, gone with their owner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ocpp_billing.embedded.keeper import FIRST_RESTART_S, HEALTHY_AFTER_S, LONGEST_RESTART_S
from ocpp_billing.log import get_logger

log = get_logger(__name__)

LAUNCH = Path(__file__).with_name("launch.py")
STOP_WITHIN_S = 12.0


@dataclass(slots=True)
class Service:
    """One child: ``ocpp-billing <arguments>`` of this very installation."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_s: float = FIRST_RESTART_S
    restart_at: float = 0.0

    def start(self) -> None:
        """Start it; the kernel ends it when the thread that started it ends, whatever the reason."""
        command = [sys.executable, "-m", "ocpp_billing.cli", *self.arguments]
        launch = [sys.executable, "-I", "-S", str(LAUNCH), "exec", str(os.getpid()), "-", "-", *command]
        self.process = subprocess.Popen(launch, stdin=subprocess.DEVNULL)  # noqa: S603 - our own program
        self.started_at = time.monotonic()

    def stop(self, deadline: float) -> None:
        """End it: politely, and at the deadline by force."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class Services:
    """The children of one owner. Use it in the main thread: children die with the thread."""

    services: list[Service]
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())

    def start(self) -> None:
        """Start all of them."""
        for service in self.services:
            service.start()

    def restart(self) -> None:
        """Stop and start all of them, when the code has changed."""
        self._stop_all()
        self.start()

    def watch(self, *, every_s: float = 0.2) -> None:
        """Keep them alive until a signal comes."""
        while not self.stopping.wait(every_s):
            self.revive()

    def wait_for_port(self, host: str, port: int) -> bool:
        """Keep them alive until one of them takes connections there; False when a signal came first."""
        while not self.stopping.wait(0.05):
            try:
                socket.create_connection((host, port), timeout=1).close()
            except OSError:
                self.revive()
            else:
                return True
        return False

    def revive(self) -> None:
        """Start those again that have ended by themselves."""
        for service in self.services:
            self._revive(service)

    def _revive(self, service: Service) -> None:
        process = service.process
        now = time.monotonic()
        if process is not None and process.poll() is None:
            return
        if process is not None:
            if now - service.started_at > HEALTHY_AFTER_S:
                service.restart_s = FIRST_RESTART_S
            log.error(
                "service ended",
                action="services.ended",
                service=service.name,
                exit_code=process.returncode,
                restart_in_s=service.restart_s,
            )
            service.process, service.restart_at = None, now + service.restart_s
            service.restart_s = min(service.restart_s * 2, LONGEST_RESTART_S)
        elif now >= service.restart_at:
            service.start()

    def stop(self) -> None:
        """End all of them."""
        self.stopping.set()
        self._stop_all()

    def _stop_all(self) -> None:
        deadline = time.monotonic() + STOP_WITHIN_S
        for service in self.services:
            if service.process is not None and service.process.poll() is None:
                service.process.send_signal(signal.SIGTERM)
        for service in self.services:
            service.stop(deadline)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
