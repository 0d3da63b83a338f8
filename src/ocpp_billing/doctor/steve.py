"""StEvE: does it answer, where, as what, with what it can do, and is it still the one that we know?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing import clock
from ocpp_billing.charging.known import KnownSessions
from ocpp_billing.doctor.findings import Finding, judge_clock, ok, problem, warning
from ocpp_billing.steve.capabilities import Capabilities, from_settings, probe
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.steve.identity import IDENTITY_SAMPLE
from ocpp_billing.steve.wire import fingerprint

if TYPE_CHECKING:
    from ocpp_billing.config import Config
    from ocpp_billing.steve.client import SteveClient


def look_at_steve(config: Config, steve: SteveClient, *, with_ledger: bool) -> list[Finding]:
    """Everything about StEvE, in a handful of cheap calls; the first error ends it.

    Args:
        config: the settings.
        steve: asks.
        with_ledger: the ledger can be read, so that its sessions can be looked for.
    """
    found: list[Finding] = []
    try:
        before = clock.now()
        found.append(_where(config, steve.locate()))
        found += judge_clock("StEvE", steve.last_date, now := clock.now(), now - before)
        latest = KnownSessions(config.steve_source).latest_ids(IDENTITY_SAMPLE) if with_ledger else []
        capabilities = probe(steve, latest[0] if latest else None)
        found += judge_capabilities(config, capabilities)
        found += judge_openness(is_open=steve.lets_anybody_in())
        if latest:
            found.append(_identity(config, steve, capabilities, latest))
    except SteveError as error:
        found.append(_failed(error))
    return found


def _failed(error: SteveError) -> Finding:
    says, _, advice = str(error).partition(". ")
    return problem("StEvE", f"steve_{type(error).__name__}", f"{says.rstrip('.')}.", advice or "See above.")


def _where(config: Config, api_url: str) -> Finding:
    given = (config.steve_api_url or "").removesuffix("/api/v1")
    works = api_url.removesuffix("/api/v1")
    if works == given:
        return ok("StEvE", "address", f"The API answers at {api_url}.")
    return ok(
        "StEvE", "address", f"The API answers at {api_url}; STEVE_API_URL may as well say {works} itself."
    )


def judge_capabilities(config: Config, capabilities: Capabilities) -> list[Finding]:
    """What the release that was found can do, and whether STEVE_RELEASE says something else."""
    found = []
    can = [
        words
        for words, there in (
            ("lists of ids", capabilities.id_lists),
            ("STOPPED filter", capabilities.stopped_filter),
            ("meter values", capabilities.details),
            ("closing a session", capabilities.manual_stop),
            ("report of stops", capabilities.csv_report),
        )
        if there
    ]
    by = (
        f"windows by {capabilities.window_basis} time" if capabilities.window_basis else "windows unknown yet"
    )
    found.append(ok("StEvE", "release", f"Release {capabilities.release}: {', '.join([by, *can])}."))
    if not capabilities.complete:
        found.append(
            warning(
                "StEvE",
                "release_unsure",
                "Which of 3.8, 3.9 and 3.10 it is shows only once there is a session to ask for.",
                "Nothing; until then it is treated as the most difficult of them.",
            )
        )
    meant = from_settings(config)
    if meant is not None:
        differs = [
            name
            for name in ("id_lists", "stopped_filter", "window_basis", "details")
            if getattr(meant, name) != getattr(capabilities, name)
        ]
        if differs and capabilities.complete:
            found.append(
                problem(
                    "StEvE",
                    "release_overridden",
                    f"STEVE_RELEASE says {config.steve_release}, but StEvE behaves as {capabilities.release} "
                    f"(in {', '.join(differs)}).",
                    "Take STEVE_RELEASE away, or set it to the release that runs.",
                )
            )
    return found


def judge_openness(*, is_open: bool) -> list[Finding]:
    """Whether whoever reaches the API may use it."""
    if not is_open:
        return []
    return [
        warning(
            "StEvE",
            "open_api",
            "The API answers without credentials: StEvE up to 3.7 runs with its development or test profile, "
            "or a proxy adds them.",
            "Run StEvE with its production profile, and make sure that nobody else can reach it: whoever can "
            "may delete tags, and with them all their sessions, and close sessions from 3.12 on.",
        )
    ]


def _identity(config: Config, steve: SteveClient, capabilities: Capabilities, latest: list[int]) -> Finding:
    """Whether the last known sessions are still there and still who they were."""
    known = KnownSessions(config.steve_source).fingerprints(latest)
    shown = steve.transactions_by_id(latest, id_lists=capabilities.id_lists)
    matching = [row for row in shown.rows if known.get(row.steve_id) == fingerprint(row)]
    if len(matching) == len(latest):
        return ok("StEvE", "identity", f"It is the StEvE that the source {config.steve_source} has read.")
    says = f"Of the last {len(latest)} sessions that were read, {len(matching)} are there as they were."
    if matching:
        return warning(
            "StEvE",
            "identity_doubt",
            says,
            "Was StEvE restored from a backup, or a tag deleted? The next full run finds out.",
        )
    return problem(
        "StEvE",
        "another_steve",
        says,
        "Was StEvE restored from a backup, or does STEVE_API_URL lead to another one? The next full run "
        "finds out, and delivery pauses where that is in doubt.",
    )
