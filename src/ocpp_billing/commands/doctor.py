"""``ocpp-billing doctor``: is everything there that billing needs?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ocpp_billing import clock
from ocpp_billing.commands.ground import DONE, FAILED, Commands, ledger, out, out_json
from ocpp_billing.config import Config, ConfigError, read_environment
from ocpp_billing.embedded.database import data_dir_of
from ocpp_billing.embedded.errors import EmbeddedPostgresError
from ocpp_billing.embedded.postgres import running_url
from ocpp_billing.schema import SchemaError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from ocpp_billing.doctor.findings import Finding

MARKS = {"ok": "ok      ", "warning": "look    ", "problem": "PROBLEM "}


def add_commands(commands: Commands) -> None:
    """Add ``doctor``."""
    added = commands.add(
        "doctor",
        doctor,
        "check settings, database, worker, StEvE, Lago and their contract; say what to do",
        "Changes nothing anywhere. Exit code 0 when nothing keeps sessions from being billed, else 1.",
    )
    added.add_argument("--json", action="store_true", help="print the findings as JSON")
    added.set_defaults(misconfigured=malformed_settings)


def doctor(config: Config, args: argparse.Namespace) -> int:
    """Look at everything, and say what to do."""
    with _ledger(config) as in_the_way:
        from ocpp_billing.doctor.lago import look_at_lago
        from ocpp_billing.doctor.ours import (
            look_at_database,
            look_at_front_door,
            look_at_settings,
            look_at_worker,
        )
        from ocpp_billing.doctor.steve import look_at_steve
        from ocpp_billing.sync.clients import lago_client, steve_client

        findings = look_at_settings(config, read_environment())
        findings += look_at_front_door(config)
        if in_the_way is None:
            findings += look_at_database()
            findings += look_at_worker(config, clock.now())
        else:
            findings.append(in_the_way)
        with_ledger = in_the_way is None
        try:
            with steve_client(config) as steve:
                findings += look_at_steve(config, steve, with_ledger=with_ledger)
        except ConfigError as error:
            findings += _unusable(config, error)
        try:
            with lago_client(config) as lago:
                findings += look_at_lago(config, lago, with_ledger=with_ledger)
        except ConfigError as error:
            findings += _unusable(config, error)
    return _report(findings, as_json=args.json)


def malformed_settings(error: ConfigError, args: argparse.Namespace) -> int:
    """Settings that cannot be read at all are findings, too."""
    from ocpp_billing.doctor.findings import problem

    do = "Correct it in the environment or in .env, then look again."
    return _report(
        [problem("settings", "setting_malformed", sentence, do) for sentence in error.problems],
        as_json=args.json,
    )


def _unusable(config: Config, error: ConfigError) -> list[Finding]:
    """Settings of a connection that are well-formed and cannot be right; missing ones were named already."""
    from ocpp_billing.doctor.findings import problem

    named = set(config.missing("STEVE_API_URL", "STEVE_API_KEY", "LAGO_API_KEY"))
    do = "Correct it in the environment or in .env, then look again."
    return [
        problem("settings", "setting_unusable", sentence, do)
        for sentence in error.problems
        if sentence not in named
    ]


@contextmanager
def _ledger(config: Config) -> Iterator[Finding | None]:
    """The ledger, or why it cannot be read; nothing is set up, started or migrated."""
    from ocpp_billing.commands.ground import set_up_django
    from ocpp_billing.doctor.findings import problem, warning

    if config.database_url is None and running_url(data_dir_of(config)) is None:
        set_up_django()
        yield warning(
            "database",
            "not_running",
            f"The embedded database in {data_dir_of(config)} is not running: neither worker nor ledger was "
            "looked at.",
            "Start it (ocpp-billing up), or set DATABASE_URL, and look again.",
        )
        return
    opened = ledger(config)
    try:
        opened.__enter__()
    except SchemaError as error:
        in_the_way = problem("database", error.code, error.says, error.do)
    except EmbeddedPostgresError as error:
        in_the_way = problem("database", "unusable", str(error), "See above.")
    except Exception as error:
        if not _is_of_the_database(error):
            raise
        in_the_way = _unusable_database(error)
    else:
        try:
            yield None
        finally:
            opened.__exit__(None, None, None)
        return
    yield in_the_way


def _unusable_database(error: Exception) -> Finding:
    from ocpp_billing.database import first_line, is_disk_full
    from ocpp_billing.doctor.findings import problem
    from ocpp_billing.doctor.ours import disk_full

    if is_disk_full(error):
        return disk_full()
    return problem(
        "database",
        "unreachable",
        f"The database cannot be used: {first_line(error)}.",
        "Check DATABASE_URL, and that PostgreSQL runs and is reachable from here: why the embedded one does "
        "not run is in the log of ocpp-billing up.",
    )


def _is_of_the_database(error: Exception) -> bool:
    from django.db import DatabaseError, InterfaceError

    return isinstance(error, (DatabaseError, InterfaceError))


def _report(findings: Sequence[Finding], *, as_json: bool) -> int:
    from ocpp_billing.doctor.findings import has_problem

    fine = not has_problem(findings)
    if as_json:
        out_json({"fine": fine, "findings": [finding.to_json() for finding in findings]})
        return DONE if fine else FAILED
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            out(area)
        out(f"  {MARKS[finding.level]}{finding.says}")
        if finding.do:
            out(f"          {finding.do}")
    problems = sum(finding.level == "problem" for finding in findings)
    word = "problem" if problems == 1 else "problems"
    out("Nothing keeps sessions from being billed." if fine else f"{problems} {word}.")
    return DONE if fine else FAILED
