"""The plumbing under both simulators: a threaded HTTP/1.1 server that can also misbehave.

It stands on the sockets of the standard library because the point of a simulator is to do what a
well-behaved framework forbids: hang, answer and drop the connection, answer half, send HTML.
Nothing here is shared with the engine.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import threading
import time
import zlib
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FaultKind = Literal["status", "html", "drop_before", "drop_after", "hang", "slow", "truncate", "garbage"]
REASONS = {520: "Web Server Returned an Unknown Error"}
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass(slots=True)
class Request:
    """One HTTP request as it arrived.

    ``query`` keeps order and repetition; ``path`` is still percent-encoded; ``body`` is raw bytes.
    """

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    url: str

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: when it is none.
        """
        return json.loads(self.body)

    def first(self, name: str) -> str | None:
        """The first value of a query parameter, or None."""
        return next((value for key, value in self.query if key == name), None)

    def all(self, name: str) -> list[str]:
        """Every value of a query parameter, in order."""
        return [value for key, value in self.query if key == name]


@dataclass(slots=True)
class Response:
    """One HTTP answer.

    Attributes:
        status: HTTP status.
        headers: with lower-case names.
        body: sent as it is (compressed when the client takes gzip).
        chunks: instead of ``body``, for answers too big to hold in memory: pieces that are made while
            they are sent, with chunked transfer encoding.
        delay_s: how long the original would have taken; the answer is held back until then, counted
            from the moment the request was taken up, without blocking other requests.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: Iterator[bytes] | None = None
    delay_s: float = 0.0

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """An ``application/json`` answer."""
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return cls(status, {"content-type": "application/json", **(headers or {})}, body)


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with the next ``times`` requests that match.

    Attributes:
        kind: ``status`` answers ``status`` without carrying the request out; ``html`` the same with an
            HTML page; ``drop_before`` closes the connection without carrying it out; ``drop_after``
            carries it out and closes the connection without an answer; ``hang`` never answers (until
            ``seconds`` are over), without carrying it out; ``slow`` waits ``seconds``, then serves
            normally; ``truncate`` carries it out and sends half the answer; ``garbage`` carries it out
            and answers 200 with something that is not JSON.
        method: only this method, or any when None.
        path: a regular expression searched in the path (with query), or any when empty.
        times: how many requests it hits; -1 = until removed.
        skip: how many matching requests pass before it begins.
        status: of ``status`` and ``html``.
        headers: sent with ``status`` and ``html``.
        body: the JSON body of ``status``.
        seconds: of ``hang`` and ``slow``.
        after: ``status`` and ``html`` only: carry the request out, then lie about it.
    """

    kind: FaultKind
    method: str | None = None
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    seconds: float = 0.0
    after: bool = False

    def matches(self, request: Request, target: str) -> bool:
        """Whether this fault hits the request; counts ``skip`` and ``times`` down."""
        if self.times == 0 or (self.method and self.method != request.method):
            return False
        if self.path and not re.search(self.path, target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times > 0:
            self.times -= 1
        return True


class _Drop(Exception):  # noqa: N818 - not an error: the connection is to be closed without an answer
    """Close the connection without an answer."""


class SimulatedServer:
    """Base of both simulators: an HTTP server in a thread, with faults, latency, a clock and a log.

    Subclasses implement :meth:`handle` for the system's own routes and :meth:`handle_control` for
    their routes below ``/_sim/``. Both are called under :attr:`lock`, so state needs no other guard.
    """

    control_prefix: ClassVar[str] = "/_sim/"

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.latency_s: float = 0.0
        self.requests: list[dict[str, Any]] = []
        self.keep_requests = True
        self.request_count = 0
        self._clock_offset = timedelta()
        self._clock_frozen_at: datetime | None = None
        outer = self

        class Handler(_Handler):
            simulator = outer

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is everyday life; anything else is a bug of the simulator."""
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)

        self._server = Server((host, port), Handler)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    # -- life ----------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Address of the server, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Serve in a thread of this process; returns itself."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and close the port."""
        self._stopping.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve in this thread until :meth:`stop` is called from another or a signal interrupts."""
        self._server.serve_forever(poll_interval=0.1)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- clock ---------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The simulator's own time, in UTC."""
        if self._clock_frozen_at is not None:
            return self._clock_frozen_at
        return datetime.now(UTC) + self._clock_offset

    def set_clock(self, now: datetime, *, frozen: bool = False) -> None:
        """Set the simulator's time; it goes on from there, or stands still when ``frozen``."""
        self._clock_frozen_at = now if frozen else None
        self._clock_offset = now - datetime.now(UTC)

    # -- to be filled by the two systems -------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer a request as the original would."""
        raise NotImplementedError

    def handle_control(self, request: Request, command: str) -> Response | None:
        """Answer ``/_sim/<command>``; None where there is no such command."""
        raise NotImplementedError

    # -- serving -------------------------------------------------------------------------------

    def add_fault(self, fault: Fault) -> Fault:
        """Add a fault; the first that matches a request wins."""
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Everything works again."""
        with self.lock:
            self.faults.clear()

    def respond(self, request: Request, client: str) -> tuple[Response, bool]:
        """The answer to a request, faults included, and whether only half of it is to be sent.

        Raises:
            _Drop: when the connection is to be closed without an answer.
        """
        if request.path.startswith(self.control_prefix):
            if client not in LOOPBACK:
                return Response.of_json({"error": "loopback only"}, 403), False
            return self._control(request), False
        target = request.url
        with self.lock:
            self.request_count += 1
            if self.keep_requests:
                self.requests.append({"method": request.method, "path": target, "at": time.time()})
            fault = next((f for f in self.faults if f.matches(request, target)), None)
        if self.latency_s:
            time.sleep(self.latency_s)
        if fault is None:
            return self._carry_out(request), False
        return self._misbehave(fault, request)

    def _carry_out(self, request: Request) -> Response:
        began = time.monotonic()
        with self.lock:
            response = self.handle(request)
        if response.delay_s:
            self._stopping.wait(max(0.0, response.delay_s - (time.monotonic() - began)))
        return response

    def _misbehave(self, fault: Fault, request: Request) -> tuple[Response, bool]:
        if fault.kind == "slow":
            time.sleep(fault.seconds)
            return self._carry_out(request), False
        if fault.kind == "hang":
            self._stopping.wait(fault.seconds or 3600)
            raise _Drop
        if fault.kind == "drop_before":
            raise _Drop
        if fault.kind in {"drop_after", "truncate", "garbage"}:
            response = self._carry_out(request)
            if fault.kind == "drop_after":
                raise _Drop
            if fault.kind == "garbage":
                return Response(200, {"content-type": "application/json"}, b"{not json"), False
            return response, True
        if fault.after:
            self._carry_out(request)
        if fault.kind == "html":
            page = b"<html><head><title>Bad gateway</title></head><body><h1>Bad gateway</h1></body></html>"
            return Response(fault.status, {"content-type": "text/html", **fault.headers}, page), False
        if fault.body is None:
            return Response(fault.status, dict(fault.headers)), False
        return Response.of_json(fault.body, fault.status, dict(fault.headers)), False

    # -- /_sim/ --------------------------------------------------------------------------------

    def _control(self, request: Request) -> Response:
        command = request.path.removeprefix(self.control_prefix).strip("/")
        try:
            with self.lock:
                response = self._shared_control(request, command) or self.handle_control(request, command)
        except (ValueError, KeyError, TypeError) as error:
            return Response.of_json({"error": f"{type(error).__name__}: {error}"}, 400)
        return response or Response.of_json({"error": f"no such command: {command}"}, 404)

    def _shared_control(self, request: Request, command: str) -> Response | None:
        commands: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "health"): lambda: {"ok": True},
            ("GET", "faults"): lambda: [asdict(fault) for fault in self.faults],
            ("POST", "faults"): lambda: asdict(self.add_fault(Fault(**request.json()))),
            ("DELETE", "faults"): self._control_clear_faults,
            ("GET", "requests"): lambda: self.requests,
            ("DELETE", "requests"): self._control_clear_requests,
            ("GET", "clock"): lambda: {"now": self.now().isoformat()},
            ("POST", "clock"): lambda: self._control_clock(request.json()),
            ("POST", "latency"): lambda: self._control_latency(request.json()),
        }
        act = commands.get((request.method, command))
        return None if act is None else Response.of_json(act())

    def _control_clock(self, body: dict[str, Any]) -> dict[str, str]:
        """``{"now": iso, "frozen": bool}`` or ``{"advance_s": seconds}``."""
        if "advance_s" in body:
            frozen = self._clock_frozen_at is not None
            self.set_clock(self.now() + timedelta(seconds=body["advance_s"]), frozen=frozen)
        else:
            self.set_clock(datetime.fromisoformat(body["now"]), frozen=bool(body.get("frozen")))
        return {"now": self.now().isoformat()}

    def _control_clear_faults(self) -> list[Any]:
        self.clear_faults()
        return []

    def _control_clear_requests(self) -> list[Any]:
        self.requests.clear()
        return []

    def _control_latency(self, body: dict[str, Any]) -> dict[str, float]:
        self.latency_s = float(body["seconds"])
        return {"seconds": self.latency_s}


class _Handler(BaseHTTPRequestHandler):
    """Parses a request, asks the simulator, writes the answer in one piece."""

    simulator: ClassVar[SimulatedServer]
    protocol_version = "HTTP/1.1"
    timeout = 120
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: the request log is :attr:`SimulatedServer.requests`."""

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=parts.path,
            query=parse_qsl(parts.query, keep_blank_values=True),
            headers={key.lower(): value for key, value in self.headers.items()},
            body=body,
            url=self.path,
        )
        try:
            response, half = self.simulator.respond(request, str(self.client_address[0]))
        except _Drop:
            self._drop()
            return
        self._write(request, response, half=half)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _write(self, request: Request, response: Response, *, half: bool) -> None:
        body = response.body
        headers = dict(response.headers)
        gzipped = "gzip" in request.headers.get("accept-encoding", "") and "content-encoding" not in headers
        if response.chunks is not None:
            self._write_chunks(response, response.chunks, headers, gzipped=gzipped, half=half)
            return
        if gzipped and len(body) > 1024:
            body = gzip.compress(body, compresslevel=1)
            headers["content-encoding"] = "gzip"
        headers["content-length"] = str(len(body))
        if half:
            body = body[: len(body) // 2]
        if request.method == "HEAD":
            body = b""
        self.wfile.write(self._head(response.status, headers) + body)
        self.wfile.flush()
        if half:
            self._drop()

    def _write_chunks(
        self,
        response: Response,
        chunks: Iterator[bytes],
        headers: dict[str, str],
        *,
        gzipped: bool,
        half: bool,
    ) -> None:
        """Send the pieces as they are made; ``half`` stops after the first, without an end mark."""
        headers["transfer-encoding"] = "chunked"
        if gzipped:
            headers["content-encoding"] = "gzip"
        self.wfile.write(self._head(response.status, headers))
        packer = zlib.compressobj(1, zlib.DEFLATED, 31) if gzipped else None
        for chunk in chunks:
            self._write_chunk(packer.compress(chunk) if packer else chunk)
            if half:
                self._drop()
                return
        if packer:
            self._write_chunk(packer.flush())
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _write_chunk(self, data: bytes) -> None:
        # An empty piece would be read as the end of the answer; the compressor holds data back.
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _head(self, status: int, headers: dict[str, str]) -> bytes:
        reason = REASONS.get(status) or self.responses.get(status, ("",))[0]
        if "date" not in headers:  # as Jetty does before StEvE, and a proxy before Lago
            headers = {**headers, "date": format_datetime(self.simulator.now(), usegmt=True)}
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def _drop(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
