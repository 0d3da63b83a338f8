"""Every setting of the product: its name in the environment, its default, its meaning, its check.

Settings come from environment variables, and from the file ``.env`` for those that the environment
does not set. A wrong value is reported with the name of the variable and what it should look like;
all wrong values are reported at once. ``.env.example`` and the reference are generated from here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from dotenv import dotenv_values
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MIN_AUTH_SECRET_LENGTH = 32


class ConfigError(Exception):
    """One or more settings are missing or malformed.

    Attributes:
        problems: one sentence per setting, each naming the variable and what it should look like.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


# -- checks: text -> value, or ValueError that says what the value should look like ---------------


def _text(value: str) -> str:
    return value


def _http_url(value: str) -> str:
    expected = "an address such as https://example.org"
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises when it is no port
    except ValueError:  # its own words may quote a password
        raise ValueError(expected) from None
    if "@" in parts.netloc:
        raise ValueError("an address without a user name or password in it")
    plain = value.isprintable() and " " not in value and not parts.query and not parts.fragment
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise ValueError(expected)
    return value.rstrip("/?#")


def _webhook_url(value: str) -> str:
    address, mark, query = value.partition("?")
    if not query.isprintable() or " " in query or "#" in query:
        raise ValueError("an address such as https://example.org/hook")
    return _http_url(address) + mark + query


def _database_url(value: str) -> str:
    try:
        conninfo_to_dict(value)
        understood = value.startswith(("postgres://", "postgresql://"))
    except ProgrammingError:  # its own words may quote the password
        understood = False
    if not understood:
        raise ValueError(
            "a PostgreSQL address such as postgresql://user:password@host:5432/database, "
            "with special characters in the password percent-encoded"
        )
    return value


def _boolean(value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True}
    known |= {"false": False, "0": False, "no": False, "off": False}
    if value.lower() not in known:
        raise ValueError("true or false")
    return known[value.lower()]


def _integer(low: int, high: int) -> Callable[[str], int]:
    def check(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return check


def _amount(value: str) -> Decimal:
    # Down to a thousandth (1 Wh of a kWh), so that every comparison with integer Wh is exact.
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", value):
        raise ValueError("a number of 0 or more with at most 3 decimals, such as 12.5")
    return Decimal(value)


def _choice(*options: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in options:
            raise ValueError(" or ".join(options))
        return value

    return check


def _pattern(pattern: str, description: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(description)
        return value

    return check


def _cron(value: str) -> str:
    expected = "a cron schedule of five fields, such as */15 * * * *"
    if len(value.split()) != 5:  # with six fields cronsim counts in seconds
        raise ValueError(expected)
    try:
        next(CronSim(value, datetime(2026, 1, 1, tzinfo=UTC)))
    except StopIteration:
        raise ValueError(f"{expected}, that comes true at some time") from None
    except CronSimError:
        raise ValueError(expected) from None
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("a time zone name such as Europe/Berlin") from None
    return value


def _secret(value: str) -> str:
    if len(value) < MIN_AUTH_SECRET_LENGTH:
        raise ValueError(f"a random text of at least {MIN_AUTH_SECRET_LENGTH} characters")
    return value


def _addresses(value: str) -> str:
    addresses = [address.strip() for address in value.split(",")]
    if not all(
        re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+", address) for address in addresses
    ):
        raise ValueError("one or more e-mail addresses, separated by commas")
    return ",".join(addresses)


def _instant(value: str) -> str:
    parse_instant(value, UTC)
    return value


def parse_instant(value: str, zone: ZoneInfo | Any) -> datetime:
    """Read a date (00:00 in ``zone``) or a date-time (in ``zone`` unless it has an offset).

    Returns:
        An aware instant in UTC.

    Raises:
        ValueError: with what it should look like.
    """
    expected = "a date such as 2026-12-01, or a date-time such as 2026-12-01T06:00:00+01:00"
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(expected) from None
    if instant.year in {MINYEAR, MAXYEAR}:  # they begin and end outside the calendar in some zones
        raise ValueError(expected)
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=zone)
    return instant.astimezone(UTC)


def _option(check: Callable[[str], Any], default: Any, help_text: str, *, group: str) -> Any:
    return dataclasses.field(
        default=default, metadata={"check": check, "help": help_text, "group": group}, kw_only=True
    )


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """All settings, checked. The variable of a field is its name in upper case."""

    database_url: str | None = _option(
        _database_url,
        None,
        "PostgreSQL to keep the ledger in; unset = an embedded server in the data folder",
        group="Database",
    )
    ocpp_billing_data_dir: str | None = _option(
        _text,
        None,
        "Folder of the embedded database and generated secrets; unset = a folder of the user's",
        group="Database",
    )
    ocpp_billing_pg_bin: str | None = _option(
        _text, None, "Folder with PostgreSQL's programs, instead of the embedded ones", group="Database"
    )

    steve_api_url: str | None = _option(
        _http_url,
        None,
        "Address of StEvE, with or without its context path, such as https://steve.example.org/steve",
        group="StEvE",
    )
    steve_api_key: str | None = _option(
        _text, None, "StEvE's API secret: webapi.value (<= 3.7) or the API password (>= 3.8)", group="StEvE"
    )
    steve_api_username: str | None = _option(
        _text, None, "StEvE >= 3.8: name of the web user whose API password is given", group="StEvE"
    )
    steve_api_key_header: str = _option(
        _pattern(r"[A-Za-z0-9-]{1,64}", "a header name such as STEVE-API-KEY"),
        "STEVE-API-KEY",
        "StEvE <= 3.7: name of the API key header (webapi.key)",
        group="StEvE",
    )
    steve_source: str = _option(
        _pattern(r"[a-z0-9-]{1,20}", "1 to 20 characters of a-z, 0-9 and -"),
        "main",
        "Name of this StEvE in the ledger and in Lago's transaction ids; never change it later",
        group="StEvE",
    )
    steve_release: str | None = _option(
        _pattern(r"3\.[0-9]{1,2}(\.[0-9]{1,2})?", "a StEvE release such as 3.9 or 3.14.1"),
        None,
        "Overrides what was found out about StEvE's release",
        group="StEvE",
    )
    steve_read_timeout_seconds: int = _option(
        _integer(1, 3600),
        120,
        "How long an answer of StEvE may take (a complete read of a big site needs minutes)",
        group="StEvE",
    )

    lago_api_url: str = _option(
        _http_url, "https://api.getlago.com", "Address of Lago, with its path prefix if any", group="Lago"
    )
    lago_api_key: str | None = _option(_text, None, "Lago's API key", group="Lago")
    lago_front_url: str | None = _option(
        _http_url,
        None,
        "Address of Lago's own pages, such as https://app.getlago.com; set = a session's page links to its "
        "customer there",
        group="Lago",
    )
    lago_metric_code: str = _option(
        _pattern(r"[A-Za-z0-9_.:-]{1,100}", "a billable metric code such as ev_charging_kwh"),
        "ev_charging_kwh",
        "Code of the billable metric that usage events are sent for",
        group="Lago",
    )
    lago_send_id_tag: bool = _option(
        _boolean,
        False,
        "Send the whole id tag to Lago (it is a credential, and Lago cannot delete an event)",
        group="Lago",
    )
    lago_read_timeout_seconds: int = _option(
        _integer(1, 600), 30, "How long an answer of Lago may take", group="Lago"
    )

    billing_start: str | None = _option(
        _instant,
        None,
        "Live from this instant, whatever was chosen in the portal (an earlier one bills what the later one "
        "excluded; without it again, billing goes on); never set = shadow mode until an admin goes live",
        group="Billing",
    )
    late_policy: Literal["hold", "current_period"] = _option(
        _choice("hold", "current_period"),
        "hold",
        "What becomes of a session whose billing period is closed already: hold = a person decides, "
        "current_period = it is billed in the open one",
        group="Billing",
    )
    max_session_kwh: Decimal = _option(
        _amount, Decimal(500), "A session with more is held as implausible", group="Billing"
    )
    max_power_kw: Decimal = _option(
        _amount, Decimal(400), "A session with more on average is held as implausible", group="Billing"
    )
    max_session_hours: Decimal = _option(
        _amount, Decimal(72), "A session that lasted longer is held as implausible", group="Billing"
    )
    min_session_kwh: Decimal = _option(
        _amount, Decimal(0), "A session with less is excluded as below the minimum", group="Billing"
    )
    max_auto_correction_kwh: Decimal = _option(
        _amount,
        Decimal(50),
        "A larger correction of a billed session waits for approval",
        group="Billing",
    )
    stuck_after_hours: int = _option(
        _integer(1, 8760),
        48,
        "An open session is stuck when it is older and no meter value came for so long",
        group="Billing",
    )

    delivery_events_per_second: int = _option(
        _integer(0, 100_000), 50, "Pace towards Lago; 0 = as fast as Lago takes them", group="Delivery"
    )
    delivery_concurrency: int = _option(
        _integer(1, 16), 2, "How many batches are under way to Lago at once", group="Delivery"
    )
    confirm_settle_seconds: int = _option(
        _integer(0, 86_400),
        60,
        "How long Lago gets to digest an event before its count is compared",
        group="Delivery",
    )

    sync_cron_schedule: str = _option(
        _cron, "*/15 * * * *", "When the worker runs a full synchronization", group="Synchronization"
    )
    sync_timezone: str = _option(
        _timezone,
        "UTC",
        "Time zone of the schedule, of dates given without one and of the pages",
        group="Synchronization",
    )
    sync_on_startup: bool = _option(
        _boolean, False, "Whether the worker runs once when it starts", group="Synchronization"
    )
    sync_watch_seconds: int = _option(
        _integer(0, 3600),
        15,
        "How often StEvE is asked for stops between two runs; 0 = only on schedule",
        group="Synchronization",
    )

    run_retention_days: int = _option(
        _integer(1, 36_500),
        90,
        "How long runs and their logs are kept; the newest are kept however old they are",
        group="Synchronization",
    )
    run_watch_retention_days: int = _option(
        _integer(1, 36_500),
        14,
        "The same for the short runs between two scheduled ones (watch, delivery, confirm)",
        group="Synchronization",
    )

    alert_email_to: str | None = _option(
        _addresses, None, "Who gets alerts by e-mail, separated by commas; needs EMAIL_HOST", group="Alerts"
    )
    alert_webhook_url: str | None = _option(
        _webhook_url, None, "Address that alerts are posted to; needs ALERT_WEBHOOK_SECRET", group="Alerts"
    )
    alert_webhook_secret: str | None = _option(
        _secret, None, "Signs alerts to the webhook (HMAC-SHA256); 32 characters or more", group="Alerts"
    )
    alert_held_days: int = _option(
        _integer(1, 3650),
        3,
        "A session that is held or stuck for longer raises an alert",
        group="Alerts",
    )
    alert_outage_minutes: int = _option(
        _integer(0, 10_080),
        15,
        "How long StEvE, Lago or synchronization may fail before an alert is raised",
        group="Alerts",
    )
    alert_worker_seconds: int = _option(
        _integer(30, 86_400),
        120,
        "How long no worker may be heard of before the web application raises an alert",
        group="Alerts",
    )

    email_host: str | None = _option(_text, None, "Mail server (SMTP); unset = no e-mail", group="E-mail")
    email_port: int = _option(_integer(1, 65_535), 587, "Port of the mail server", group="E-mail")
    email_security: Literal["starttls", "tls", "none"] = _option(
        _choice("starttls", "tls", "none"),
        "starttls",
        "How the connection to the mail server is secured: starttls (587), tls (465) or none",
        group="E-mail",
    )
    email_username: str | None = _option(
        _text, None, "User name at the mail server; unset = no sign-in", group="E-mail"
    )
    email_password: str | None = _option(_text, None, "Password at the mail server", group="E-mail")
    email_from: str | None = _option(
        _addresses, None, "Sender of e-mail; needed when EMAIL_HOST is set", group="E-mail"
    )

    auth_secret: str | None = _option(
        _secret,
        None,
        "Signs sessions and tokens, 32 characters or more; `ocpp-billing up` makes one, `web` alone needs it",
        group="Web",
    )
    auth_url: str = _option(
        _http_url,
        "http://localhost:8000",
        "Address of the portal as people type it: decides hosts, origins and secure cookies",
        group="Web",
    )

    log_level: str = _option(
        _choice("debug", "info", "warning", "error"),
        "info",
        "Least level that is logged: debug, info, warning or error",
        group="Logs",
    )
    log_format: str = _option(
        _choice("console", "json"),
        "console",
        "How a log line looks: console (for people) or json",
        group="Logs",
    )

    @property
    def timezone(self) -> ZoneInfo:
        """The organisation's time zone."""
        return ZoneInfo(self.sync_timezone)

    @property
    def billing_start_at(self) -> datetime | None:
        """The go-live instant from the environment, in UTC, or None."""
        return None if self.billing_start is None else parse_instant(self.billing_start, self.timezone)

    def missing(self, *names: str) -> list[str]:
        """One sentence for each of these variables that is not set."""
        return [f"{name} is not set: {_help(name)}." for name in names if getattr(self, name.lower()) is None]


def _help(name: str) -> str:
    return str(Config.__dataclass_fields__[name.lower()].metadata["help"])


def is_text(value: str) -> bool:
    """Whether a text of the environment or the command line was one in the encoding that counts here."""
    return not re.search("[\ud800-\udfff]", value)


def read_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment, and below it the file ``.env``.

    ``OCPP_BILLING_ENV_FILE`` names another file; empty = none. A variable that the environment sets to
    nothing hides the one in the file.

    Raises:
        ConfigError: when the file cannot be read, or another one was named and is not there.
    """
    env = dict(os.environ if environ is None else environ)
    named = env.get("OCPP_BILLING_ENV_FILE")
    path = ".env" if named is None else named
    try:
        if not path or (named is None and not Path(path).is_file()):
            return env
        with Path(path).open(encoding="utf-8") as file:
            from_file = dotenv_values(stream=file)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"The settings in {path} cannot be read: {why}."]) from None
    return {**{key: value for key, value in from_file.items() if value is not None}, **env}


def load_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read and check every setting.

    An empty variable counts as unset, as in a compose file that passes all of them on.

    Raises:
        ConfigError: naming each malformed setting and what it should look like.
    """
    env = read_environment(environ)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in dataclasses.fields(Config):
        name = field.name.upper()
        text = env.get(name, "").strip()
        if not text:
            continue
        if not is_text(text):
            problems.append(f"{name} is no text in {sys.getfilesystemencoding()}.")
            continue
        try:
            values[field.name] = field.metadata["check"](text)
        except ValueError as error:
            shown = "" if name.endswith(("_KEY", "_SECRET", "_URL")) else f" is {text!r}, but"
            problems.append(f"{name}{shown} must be {error}.")
    if problems:
        raise ConfigError(problems)
    return Config(**values)


def describe_settings() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The settings by group: (group, [(variable, default as text, meaning)]), in order."""
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for field in dataclasses.fields(Config):
        default = field.default
        text = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        rows = groups.setdefault(field.metadata["group"], [])
        rows.append((field.name.upper(), text, field.metadata["help"]))
    return list(groups.items())
