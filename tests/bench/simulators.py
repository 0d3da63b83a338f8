"""Both simulated systems as one process, told as JSON what to be: ``python -m tests.bench.simulators``."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime

from ocpp_billing.simulators.lago import LagoSimulator
from ocpp_billing.simulators.steve import SteveSimulator
from ocpp_billing.simulators.steve_store import STATION, to_ms


def main() -> None:
    given = json.loads(sys.argv[1])
    if given.get("core") is not None:
        os.sched_setaffinity(0, {given["core"]})
    steve = SteveSimulator(given["release"], cost_model=given.get("cost", 0.0))
    steve.keep_requests = False
    steve.generate(
        given["count"],
        seed=given.get("seed", 1),
        days=given.get("days", 25),
        open_count=given.get("open_count", 20),
        stuck_count=given.get("stuck_count", 0),
        tag_count=given.get("tag_count", 500),
    )
    if given.get("only_open") is not None:
        end_all_but(steve, given["only_open"])
    tags = sorted(tag.id_tag for tag in steve.store.tags.values())
    lago = LagoSimulator()
    lago.keep_requests = False
    lago.create_metric()
    lago.create_plan()
    for tag in tags if given.get("customers", True) else []:
        lago.create_customer(f"c-{tag}")
        lago.subscribe(
            f"c-{tag}",
            "ev_payg",
            f"s-{tag}",
            subscription_at=datetime.fromisoformat(given["begins_at"]),
            billing_time="anniversary",
        )
    with steve, lago:
        environment = {
            "STEVE_API_URL": steve.base_url,
            "STEVE_API_USERNAME": "admin",
            "STEVE_API_KEY": "steve-secret",
            "LAGO_API_URL": lago.url,
            "LAGO_API_KEY": lago.api_key,
            "DELIVERY_EVENTS_PER_SECOND": "0",
            "CONFIRM_SETTLE_SECONDS": "0",
        }
        print(json.dumps({"environment": environment, "tags": tags}), flush=True)
        sys.stdin.read()


def end_all_but(steve: SteveSimulator, running: int) -> None:
    """Stop what was made as running, but for the last so many; sessions without an end stay as they are."""
    store, now_ms = steve.store, to_ms(steve.now())
    rows = sorted(row for row in store.open_rows if not store.ended[row])
    for row in rows[: len(rows) - running]:
        store.ended[row] = 1
        store.set_stop(row, now_ms, store.start_wh[row] + store.delivered_wh[row], "Local", STATION, now_ms)


if __name__ == "__main__":
    main()
