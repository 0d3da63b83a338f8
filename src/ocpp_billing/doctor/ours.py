"""Our own side: the settings, the database, the worker."""

from __future__ import annotations

import difflib
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.alerts.channels import channels_of, incomplete
from ocpp_billing.alerts.conditions import DO_NOT_STOP_MONEY, conditions
from ocpp_billing.billing import control
from ocpp_billing.billing.balance import counted_balance, last_proof
from ocpp_billing.config import Config
from ocpp_billing.database import (
    DISK_IS_FULL,
    LITTLE_ROOM_DO,
    MAKE_ROOM,
    free_bytes,
    has_room,
    little_room,
)
from ocpp_billing.doctor.findings import Finding, judge_clock, ok, problem, warning
from ocpp_billing.effects import effect
from ocpp_billing.energy import say_kwh
from ocpp_billing.proxies import is_this_machine
from ocpp_billing.sync.liveness import worker_alive
from ocpp_billing.sync.schedule import next_scheduled
from ocpp_billing.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

OLDEST_POSTGRESQL = 14
FRONT_DOOR_TIMEOUT_S = 5.0
# Variables that begin like this are meant for us, or are a misspelling of one that is.
OUR_PREFIXES = ("STEVE_", "LAGO_", "SYNC_", "DELIVERY_", "BILLING_", "OCPP_BILLING_", "ALERT_", "AUTH_")
RESEMBLES = 0.8
# A full run is seldom longer, once the history was read.
MAY_TAKE = timedelta(minutes=10)
# Alerts that other findings tell, with the same words or better ones.
HAVE_FINDINGS = {"delivery_paused", "balance_unexplained", "disk_low"}


def look_at_settings(config: Config, environment: Mapping[str, str]) -> list[Finding]:
    """What can be said about the settings without asking anybody."""
    found = [
        problem(
            "settings", "setting_missing", sentence, "Set it in the environment or in .env, then restart."
        )
        for sentence in config.missing("STEVE_API_URL", "STEVE_API_KEY", "LAGO_API_KEY")
    ]
    if not found:
        found.append(ok("settings", "connections", "StEvE and Lago are configured."))
    found += [_misspelled(name, setting) for name, setting in misspelled_settings(environment)]
    found += _plain_text(config)
    channels = [name for name in channels_of(config) if name != "log"]
    found += [
        warning("settings", "alerts_incomplete", sentence, "Set it, or take the other settings of it away.")
        for sentence in incomplete(config)
    ]
    if channels:
        found.append(ok("settings", "alerts", f"Alerts go to the log and by {' and '.join(channels)}."))
    else:
        found.append(
            warning(
                "settings",
                "alerts_log_only",
                "Alerts go to the log only.",
                "Set ALERT_EMAIL_TO or ALERT_WEBHOOK_URL, so that somebody hears of an outage.",
            )
        )
    next_run = next_scheduled(config, clock.now())
    found.append(
        ok(
            "settings",
            "schedule",
            f"Full runs: {config.sync_cron_schedule} in {config.sync_timezone}, the next at "
            f"{_said(next_run, config)}.",
        )
    )
    return found


def misspelled_settings(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that are no settings and look like one: (name, the setting that it resembles)."""
    settings = [name.upper() for name in Config.__dataclass_fields__]
    known = {*settings, "OCPP_BILLING_ENV_FILE"}
    return [
        (name, near[0])
        for name in sorted(environment)
        if name.startswith(OUR_PREFIXES)
        and name not in known
        and (near := difflib.get_close_matches(name, settings, 1, RESEMBLES))
    ]


def _misspelled(name: str, setting: str) -> Finding:
    return warning(
        "settings", "setting_unknown", f"{name} is set and is no setting.", f"Do you mean {setting}?"
    )


def _plain_text(config: Config) -> list[Finding]:
    """Addresses over which secrets would go unencrypted."""
    return [
        warning(
            "settings",
            "plain_http",
            f"{name} is http: {what} unencrypted.",
            "Use https, unless that network is trusted.",
        )
        for name, url, what in (
            ("STEVE_API_URL", config.steve_api_url, "StEvE's credentials travel"),
            ("LAGO_API_URL", config.lago_api_url, "Lago's key travels"),
            ("AUTH_URL", config.auth_url, "passwords and sessions travel"),
        )
        if url is not None
        and urlsplit(url).scheme == "http"
        and not is_this_machine(urlsplit(url).hostname or "")
    ]


def look_at_front_door(config: Config, ask: Callable[[str], int | None] | None = None) -> list[Finding]:
    """Whether figures that are meant for this machine are open to all who come through the proxy before it.

    A proxy that says nothing of itself cannot be told from a program on this machine.

    Args:
        config: the settings.
        ask: gives the status that an address answers, None when it does not; only tests say another one.
    """
    if is_this_machine(urlsplit(config.auth_url).hostname or ""):
        return []
    status = (ask or _status_of)(f"{config.auth_url.rstrip('/')}/metrics")
    if status == HTTPStatus.OK:
        return [
            warning(
                "settings",
                "metrics_open",
                f"{config.auth_url}/metrics is open to everybody.",
                "Let the proxy set X-Forwarded-For, and close /metrics there.",
            )
        ]
    if status == HTTPStatus.UNAUTHORIZED:
        return [ok("settings", "metrics_closed", f"{config.auth_url}/metrics wants a token.")]
    return []


def _status_of(address: str) -> int | None:
    try:
        with effect("http self GET /metrics"):
            return httpx2.get(address, timeout=FRONT_DOOR_TIMEOUT_S, verify=tls_context()).status_code
    except httpx2.HTTPError:
        return None


def look_at_database() -> list[Finding]:
    """The server and its clock. The schema has been checked by whoever opened the ledger.

    Raises:
        django.db.DatabaseError: when it does not answer.
    """
    before = clock.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int / 10000, clock_timestamp()")
        version, theirs = cursor.fetchone()
    now = clock.now()
    if version < OLDEST_POSTGRESQL:
        found = problem(
            "database",
            "postgresql_old",
            f"PostgreSQL {version} is older than {OLDEST_POSTGRESQL}.",
            "Upgrade PostgreSQL.",
        )
    else:
        found = ok("database", "postgresql", f"PostgreSQL {version} answers and has this version's schema.")
    disk = [*_disk()] if has_room() else [disk_full()]
    return [found, *disk, *judge_clock("database", theirs, now, now - before)]


def _disk() -> Iterable[Finding]:
    """How much room the database has, where that can be known."""
    free = free_bytes()
    if free is None:
        return
    says = little_room()
    if says is not None:
        yield warning("database", "disk_low", says, LITTLE_ROOM_DO)
    else:
        yield ok("database", "disk", f"The disk of the database has {free / 10**9:.1f} GB left.")


def disk_full() -> Finding:
    """The database answers, and cannot write."""
    return problem("database", "disk_full", DISK_IS_FULL, MAKE_ROOM)


def look_at_worker(config: Config, now: datetime) -> list[Finding]:
    """Whether anybody will synchronize, whether anything is sent, and whether the balance adds up."""
    worker = worker_alive(config.steve_source, now)
    if worker.alive:
        when = (
            ""
            if worker.next_run_at is None
            else f"; the next full run is due at {_said(worker.next_run_at, config)}"
        )
        found = [ok("worker", "worker", f"A worker is alive{when}.")]
    else:
        since = f" since {_said(worker.since, config)}" if worker.since else ""
        found = [
            problem(
                "worker",
                "worker_gone",
                f"No worker is alive{since}.",
                "Start it: ocpp-billing worker (or up). Triggers are kept meanwhile.",
            )
        ]
    if worker.last_completed is None:
        found.append(warning("worker", "never_run", "No run has read StEvE yet.", "Run: ocpp-billing sync"))
    else:
        found.append(_last_run(config, worker.last_completed, now))
    return [*found, _delivery(config), *_balance(config), *_of_alerts(config, now)]


def _of_alerts(config: Config, now: datetime) -> Iterable[Finding]:
    """What people are alerted of, but for what has a finding of its own; without looking, as it is known."""
    for condition in conditions(config, now):
        if condition.code not in HAVE_FINDINGS:
            judge = warning if condition.code in DO_NOT_STOP_MONEY else problem
            yield judge("worker", condition.code, condition.says, condition.do)


def _last_run(config: Config, completed_at: datetime, now: datetime) -> Finding:
    """When StEvE was last read, whatever else failed in that run; whether two more were due since."""
    says = f"The last run that read StEvE ended at {_said(completed_at, config)}"
    second_due_at = next_scheduled(config, next_scheduled(config, completed_at))
    if second_due_at + MAY_TAKE < now:
        return warning(
            "worker",
            "last_run",
            f"{says}, and two more were due by {_said(second_due_at, config)}.",
            "Look at the latest runs and their errors on the portal's page Sync, or run: ocpp-billing sync",
        )
    return ok("worker", "last_run", f"{says}.")


def _delivery(config: Config) -> Finding:
    status = control.read_status(config)
    if status.mode == "shadow":
        paused = "" if status.paused_at is None else f" It is paused, too: {status.pause_reason}"
        return warning(
            "worker",
            "shadow",
            f"Shadow mode: nothing is sent to Lago.{paused}",
            "Look at what would be billed and go live: ocpp-billing go-live --from DATE",
        )
    if status.mode == "paused":
        return problem(
            "worker",
            "paused",
            f"Delivery is paused by {status.paused_by}: {status.pause_reason}",
            control.how_it_goes_on(status.paused_by, status.pause_reason),
        )
    assert status.live_from is not None  # noqa: S101 - that is what live means
    return ok("worker", "live", f"Billing is live from {_said(status.live_from, config)}.")


def _balance(config: Config) -> Iterable[Finding]:
    proof = last_proof(config.steve_source)
    unexplained = counted_balance(config.steve_source).unexplained
    if unexplained:
        yield problem(
            "worker",
            "balance_unexplained",
            f"{unexplained.sessions} sessions and {say_kwh(unexplained.energy_wh)} kWh are unexplained.",
            "Pause delivery (ocpp-billing pause) and report it with the output of: ocpp-billing balance "
            "--json",
        )
    elif proof is not None:
        yield ok(
            "worker",
            "balance",
            f"Every watt-hour is accounted for, proved at {_said(proof.proved_at, config)}.",
        )


def _said(at: datetime, config: Config) -> str:
    return f"{at.astimezone(config.timezone):%Y-%m-%d %H:%M %Z}"
