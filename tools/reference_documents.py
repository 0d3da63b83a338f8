"""Writes what is generated from code: ``python -m tools.reference_documents``.

``docs/reference/cli.md`` comes from the parser, ``docs/reference/api.md`` from the routes of the API, and
``docs/reference/states-and-reasons.md`` from the portal's words; a test compares them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

CLI_HEAD = """\
# Command line

<!-- Written by: python -m tools.reference_documents -->

`ocpp-billing COMMAND`; in a checkout `./run ocpp-billing COMMAND`; in Docker
`docker compose exec app ocpp-billing COMMAND`. Settings come from the environment and from `.env`
([settings](settings.md)).

Answers go to standard output, everything else (progress, logs, errors) to standard error. Exit codes:

| code | meaning |
|---|---|
| 0 | done; for `doctor` and `reconcile`: nothing is wrong; for what serves (`up`, `web`, `worker`, `demo`, `simulate`): told to end by Ctrl-C or SIGTERM, and ended in order |
| 1 | failed, or refused; for `doctor` and `reconcile`: something is wrong |
| 2 | wrong usage: an argument or a setting that the command needs is missing, malformed, or does not go with another; nothing was done (`doctor` tells of settings as it tells of everything, with 1) |
| 3 | a synchronization or an import that left something: a malformed row, a rejected event, a line with an error |
| 130 | ended by Ctrl-C before it was done |

Where a date is asked for, `2026-12-01` means 00:00 in `SYNC_TIMEZONE`; a date-time may have an offset. Commands
that change something which cannot be undone show it first and ask; `--yes` answers for scripts.

What `--json` prints is one line, whose keys never change their meaning:

* `sync`: `run_id`, `status`, `trigger`, `delivery` (`live`, `shadow`, `paused`), counts of this run, `steve_calls`,
  `lago_calls`, `duration_s`, `errors`
* `balance`: `read`, `states` (all eight), `reasons`, `negative`, `malformed`, `unexplained`; amounts are
  `{"sessions", "energy_wh"}`; `proved_at`: when a full recount last proved the counters (null: not yet)
* `doctor`: `fine`, `findings` of `area`, `code`, `level` (`ok`, `warning`, `problem`), `says`, `do`
* `reconcile`: `from`, `to`, `agrees`, `subscriptions` of `subscription_id` (null: nobody's), `customer_id`, `steve`,
  `ledger` by state, `lago`, `periods`; `differences` of `between`, `code`, `subscription_id`, `what`, `says`, `do`
* `stuck`: a list of sessions with `id`, `session_id` (the API's), where, whose (`id_tag_last4`, `mapping`,
  `customer_id`, `subscription_id`), since when (`stuck_since`, `vanished_at`, `superseded_at`), `evidence` with its
  `source`, `energy_wh`, and what `can` be done, also as a sentence (`says`)
"""

API_HEAD = """\
# HTTP API

<!-- Written by: python -m tools.reference_documents -->

JSON over HTTP, below the address of the portal. The whole description, with every field, is served as OpenAPI
at `/api/docs` (to read and to try) and `/api/openapi.json`.

* **Who calls.** `Authorization: Bearer obs_…`, a token made in the portal, or the session of somebody signed
  in. The role of a token is at most that of its person; *viewer* reads, *operator* maps and resolves, *admin*
  does everything. A session must send the CSRF token with everything but GET.
* **Errors** are `{"error": {"code", "message", "fields"}}` with a fitting status; the message says what to do.
* **Lists** come in pages: `limit` (at most 500), and `cursor`, which is the `next` of the page before. Their
  order does not change while rows arrive, so whoever reads all pages sees each row once.
* **Files.** Sessions and billing events also come as CSV: `format=csv`, or `Accept: text/csv`.
* **Units.** Energies are whole Wh (`energy_wh`), instants are UTC (ISO 8601).
* **Id tags** are credentials: a viewer sees their last four characters only.
"""

API_TAIL = """\

## Outside `/api`

| route | who | says |
|---|---|---|
| `GET /healthz` | everybody | this process lives |
| `GET /readyz` | everybody; details for this machine and bearers of a token | the database answers and has this version's schema; worker and balance, room on the disk |
| `GET /metrics` | this machine and bearers of a token | figures for Prometheus |
"""

STATES_HEAD = """\
# States and reasons

<!-- Written by: python -m tools.reference_documents -->

Every session that was ever read from StEvE is in exactly one of these states, and so is every watt-hour of it
(`ocpp-billing balance`). A session whose parts are in different states, such as one with a correction that waits,
bears the state of its least advanced part, in the order open, stuck, held, rejected, queued, accepted, confirmed,
excluded. The codes are those of the API, of the CSV files and of the metrics; they are fixed.

## States
"""

REASONS_HEAD = """\

## Reasons

Why a session is held or excluded. What is held is decided anew by itself when its cause may be gone: at once when
a mapping is made or changed, in every full run where it waits for Lago, when a threshold is changed, and all of it
once a night. A person can decide at any time, with a note. Of several reasons that apply the first one counts.
"""

STATES_TAIL = """\

A session that was rejected bears Lago's own code in the place of a reason.

## What StEvE says and we cannot read

A row of StEvE without what a session needs (an id, a register value that is a number) is *malformed*: it is set
aside with its text and its fault, counted beside the states (`malformed`), and no other row waits for it. It is
settled when StEvE shows it well-formed.

## Runs
"""

# Reasons of what is deliberately not billed; all others hold.
OF_EXCLUSION = ("zero_energy", "below_minimum", "before_go_live", "by_operator", "credited")


def cli_reference() -> str:
    """The text of ``docs/reference/cli.md``."""
    from ocpp_billing.cli import build_parser

    lines = CLI_HEAD.splitlines()
    for words, parser in _commands(build_parser(), ()):
        lines += ["", f"## `ocpp-billing {' '.join(words)}`", "", _sentence(parser.description or "")]
        rows = [_argument(action) for action in parser._actions if _is_shown(action)]  # noqa: SLF001
        if rows:
            lines += ["", "| argument | meaning |", "|---|---|", *rows]
    return "\n".join([*lines, ""])


def _commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command, with those below it after it."""
    for action in _below(parser):
        helps = {choice.dest: choice.help for choice in action._choices_actions}  # noqa: SLF001
        for name, child in action.choices.items():
            said, more = helps.get(name) or "", child.description or ""
            if said.lower() not in more.lower():
                child.description = ". ".join(filter(None, (said, more)))
            if not any(below.required for below in _below(child)):
                yield (*words, name), child
            yield from _commands(child, (*words, name))


def _below(parser: argparse.ArgumentParser) -> list[Any]:
    """Where a parser goes on with commands of its own; at most one."""
    actions = parser._actions  # noqa: SLF001
    return [action for action in actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001


def _is_shown(action: argparse.Action) -> bool:
    return not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))  # noqa: SLF001


def _argument(action: argparse.Action) -> str:
    value = str(action.metavar or "") or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices is not None:
        value = "{" + ", ".join(map(str, action.choices)) + "}"
    name = action.option_strings[-1] if action.option_strings else ""
    shown = " ".join(part for part in (name, value) if part)
    if action.nargs == "+":
        shown += " …"
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    required = " (required)" if action.required and action.option_strings else ""
    return f"| `{shown}` | {_cell(text)}{required} |"


def api_reference() -> str:
    """The text of ``docs/reference/api.md``."""
    from ocpp_billing.api.application import api

    lines = API_HEAD.splitlines()
    group = ""
    for route in _routes(api):
        if route["group"] != group:
            group = route["group"]
            lines += ["", f"## {group}", "", "| route | who | does |", "|---|---|---|"]
        lines.append(f"| `{route['method']} {route['path']}` | {route['role']} | {_cell(route['does'])} |")
    return "\n".join([*lines, *API_TAIL.splitlines(), ""])


def _routes(api: Any) -> Iterator[dict[str, str]]:
    described = api.get_openapi_schema()["paths"]
    roles = {}
    for prefix, router in api._routers:  # noqa: SLF001
        for path, view in router.path_operations.items():
            whole = "/api" + "".join(f"/{part.strip('/')}" for part in (prefix, path) if part.strip("/"))
            for operation in view.operations:
                roles |= {
                    (method.lower(), whole): operation.auth_callbacks[0].needs for method in operation.methods
                }
    for path, operations in described.items():
        for method, operation in operations.items():
            does = operation.get("description", "").split("\n\n")[0].replace("``", "`")
            yield {
                "group": operation["tags"][0],
                "method": method.upper(),
                "path": path,
                "role": str(roles[method, path]),
                "does": " ".join(does.split()),
            }


def states_reference() -> str:
    """The text of ``docs/reference/states-and-reasons.md``."""
    from ocpp_billing.alerts.conditions import TITLES
    from ocpp_billing.portal.run_words import STATUS
    from ocpp_billing.portal.wording import REASONS, REJECTED, STATES, STUCK

    lines = STATES_HEAD.splitlines()
    lines += ["", "| state | called | means |", "|---|---|---|"]
    lines += [f"| `{each.code}` | {each.label} | {each.means} |" for each in STATES.values()]
    lines += REASONS_HEAD.splitlines()
    for state, excludes in (("Held", False), ("Excluded", True)):
        lines += ["", f"### {state}", "", "| reason | called | means | what to do |", "|---|---|---|---|"]
        lines += [
            f"| `{each.code}` | {each.label} | {each.means} | {each.do} |"
            for each in REASONS.values()
            if (each.code in OF_EXCLUSION) is excludes
        ]
    lines += [
        "",
        "### Stuck and rejected",
        "",
        "| state | called | means | what to do |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{each.code}` | {each.label} | {each.means} | {each.do} |" for each in (STUCK, REJECTED)]
    lines += STATES_TAIL.splitlines()
    lines += ["", "| status | called |", "|---|---|"]
    lines += [f"| `{code}` | {words[0]} |" for code, words in STATUS.items()]
    lines += [
        "",
        "What triggers a run: [the sync worker](../SYNC-WORKER.md#what-it-does).",
        "",
        "## Alerts",
        "",
    ]
    lines += [
        "| alert | title |",
        "|---|---|",
        *(f"| `{code}` | {title} |" for code, title in TITLES.items()),
    ]
    lines += ["", "When each is sent, and by which way: [alerts](../SYNC-WORKER.md#alerts)."]
    return "\n".join([*lines, ""])


def _sentence(text: str) -> str:
    text = " ".join(text.split()).replace("%%", "%")
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def documents() -> dict[Path, str]:
    """Every generated document with what it should say. All but the first need Django to be set up."""
    reference = ROOT / "docs" / "reference"
    return {
        reference / "cli.md": cli_reference(),
        reference / "api.md": api_reference(),
        reference / "states-and-reasons.md": states_reference(),
    }


def main() -> int:
    """Write them all."""
    import django

    os.environ |= {"OCPP_BILLING_ENV_FILE": "", "AUTH_SECRET": "x" * 40, "DATABASE_URL": "postgresql://x/x"}
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
    django.setup()
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
