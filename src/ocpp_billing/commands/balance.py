"""``ocpp-billing balance``: where every watt-hour stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import (
    DONE,
    Commands,
    UsageError,
    add_range,
    ledger,
    out,
    out_json,
    range_of,
)

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from ocpp_billing.config import Config

# Those of billing.balance, which can only be imported when Django is set up.
BREAKDOWNS = ("day", "reason", "tag", "customer", "subscription")


def add_commands(commands: Commands) -> None:
    """Add ``balance``."""
    added = commands.add(
        "balance",
        balance,
        "show where every watt-hour stands",
        "Always added up in full, never taken from counters.",
    )
    added.add_argument("--json", action="store_true", help="print it as JSON")
    added.add_argument("--prove", action="store_true", help="compare the counters with it and put them right")
    added.add_argument("--by", choices=BREAKDOWNS, help="break it down")
    add_range(added, "with --by: sessions that stopped {}")


def balance(config: Config, args: argparse.Namespace) -> int:
    """Print where every watt-hour stands, by a full recount, or broken down."""
    if args.by is None and (args.from_ or args.to):
        raise UsageError("--from and --to choose sessions for --by; the balance itself is always whole.")
    if args.by is not None and args.prove:
        raise UsageError("--prove is about the whole balance: leave --by away.")
    from_, to = range_of(args, config)
    with ledger(config):
        if args.by is not None:
            _print_breakdown(config, args, from_, to)
        elif args.prove:
            _print_proof(config, as_json=args.json)
        else:
            from ocpp_billing.billing.balance import last_proof, read_balance
            from ocpp_billing.report import format_balance, format_proof

            result, proof = read_balance(config.steve_source), last_proof(config.steve_source)
            if args.json:
                proved_at = None if proof is None else proof.proved_at.isoformat()
                out_json({**result.to_json(), "proved_at": proved_at})
            else:
                out(format_balance(result))
                if proof is not None:
                    out("\n" + format_proof(proof))
    return DONE


def _print_breakdown(
    config: Config, args: argparse.Namespace, from_: datetime | None, to: datetime | None
) -> None:
    from ocpp_billing.billing.balance import balance_by
    from ocpp_billing.report import format_breakdown

    rows = balance_by(config.steve_source, args.by, from_=from_, to=to, zone=config.timezone)
    if args.json:
        out_json({"by": args.by, "rows": [row.to_json() for row in rows]})
    else:
        out(format_breakdown(rows, args.by))


def _print_proof(config: Config, *, as_json: bool) -> None:
    from ocpp_billing.billing.balance import prove_balance
    from ocpp_billing.report import format_balance, format_proof

    proof = prove_balance(config.steve_source)
    if as_json:
        proved_at = proof.proved_at.isoformat()
        out_json({**proof.balance.to_json(), "proved_at": proved_at, "proof": proof.to_json()})
    else:
        out(f"{format_balance(proof.balance)}\n{format_proof(proof)}")
