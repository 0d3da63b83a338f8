"""Structured logs: one line per event, an ``action`` on each, no secret in any, none that others wrote.

Tags, charge boxes, customers' names, Lago's words and addresses that are asked for end up in logs and on
terminals. A line break in one of them would begin a line of its own, and an escape sequence could recolour,
overwrite or empty the terminal that shows it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_SECRET_NAME = re.compile(
    r"secret|passw|api[-_]?key|token|authorization|cookie|credential|database_url", re.IGNORECASE
)
# Whoever has one of these addresses comes in by it, and Django logs every address that it refuses.
_SECRET_ADDRESS = re.compile(r"(/invitation/|/password/reset/key/)[^\s\"'?]+", re.IGNORECASE)
# Control characters, line and paragraph separators, marks that turn the direction of writing, and halves of
# characters, which no stream takes.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_CONTROL_OR_BREAK = re.compile(f"[\t\n{_CONTROLS}]")


def printable(text: str, *, one_line: bool = False) -> str:
    r"""A text that is safe to show on a terminal: control characters as ``\u001b``, which JSON understands.

    Args:
        text: whatever it holds.
        one_line: line breaks and tabs, too, are such characters.
    """
    pattern = _CONTROL_OR_BREAK if one_line else _CONTROL
    return pattern.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def keep_to_one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """For the console: what a line tells cannot end it, and no line of a traceback looks like one."""
    told: dict[str, Any] = {}
    for key, value in event.items():
        if key == "exception":
            told[key] = "\n".join(f"  {line}" for line in printable(str(value)).split("\n"))
        elif isinstance(value, str):
            told[printable(key, one_line=True)] = printable(value, one_line=True)
        else:  # numbers, and structures, which are shown in Python's own notation
            told[printable(key, one_line=True)] = value
    return told


def hide_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Replace the value of every field whose name speaks of a secret, however deep it lies.

    In all others, addresses that let in whoever has them.
    """
    return {key: _shown(key, value) for key, value in event.items()}


def _shown(key: Any, value: Any) -> Any:
    if isinstance(key, str) and _SECRET_NAME.search(key):
        return "[hidden]"
    if isinstance(value, str):
        return _SECRET_ADDRESS.sub(r"\1[hidden]", value)
    if isinstance(value, Mapping):
        return {name: _shown(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shown(None, inner) for inner in value]
    return tuple(_shown(None, inner) for inner in value) if type(value) is tuple else value


_UNKNOWN_HOST = re.compile(r"You may need to add .* to ALLOWED_HOSTS\.")
_KNOWN_HOSTS = "AUTH_URL says under which host people come; a proxy must pass that host on."


def without_trace_of_refusals(record: logging.LogRecord) -> bool:
    """Keep the line of a refused request (403, 404, ...) and leave out where in our code it was refused.

    Of a foreign host name Django speaks of a setting of its own; ours is AUTH_URL.
    """
    if record.name == "django.security.DisallowedHost":
        record.msg, record.args = _UNKNOWN_HOST.sub(_KNOWN_HOSTS, record.getMessage()), None
        record.exc_info = record.exc_text = None
    elif record.name == "django.request" and record.levelno < logging.ERROR:
        record.exc_info = record.exc_text = None
    return True


def configure_logging(*, level: str = "info", json_lines: bool = False) -> None:
    """Send structlog and the standard library's logging through one formatter to standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderers: list[Any] = (
        [structlog.processors.JSONRenderer()]  # escapes what is not ASCII
        if json_lines
        else [keep_to_one_line, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Before the console's own formatter, which may print variables, and secrets in them.
            structlog.processors.format_exc_info,
            *renderers,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(without_trace_of_refusals)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per HTTP call is the client's own business, at debug level only.
    for name in ("httpx2", "httpcore2", "uvicorn.access"):
        logging.getLogger(name).setLevel("WARNING" if level != "debug" else "DEBUG")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; every message gets an ``action=`` so that logs can be counted and searched."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
