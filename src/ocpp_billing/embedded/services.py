"""Web and worker as child processes of ``up``, ``demo`` and ``dev``: kept alive, gone with their owner."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from ocpp_billing.embedded.keeper import FIRST_RESTART_S, HEALTHY_AFTER_S, LONGEST_RESTART_S
from ocpp_billing.embedded.process import launch_command
from ocpp_billing.log import get_logger

log = get_logger(__name__)

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
        launch = launch_command("exec", command)
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


def obstacle_to_listening(host: str, port: int) -> str | None:
    """Why no server could listen there, and what to do; None when one could.

    A name may stand for several addresses, of IPv4 and of IPv6: a server listens on all of them.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"{host} is no address of this machine. Choose another with --host."
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # as the web server does: IPv4 has an address of its own
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            return _obstacle(error, host, port, str(address[0]))
    return None


def _obstacle(error: OSError, host: str, port: int, address: str) -> str:
    where = host if host == address else f"{host} ({address})"
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {where} is taken. Choose another with --port."
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"This user may not listen on port {port}. Choose one above 1023 with --port."
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return f"{where} is no address of this machine. Choose another with --host."
    return f"Nothing can listen on port {port} of {where}: {error.strerror}."
