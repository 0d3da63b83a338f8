"""How long the embedded PostgreSQL takes to start: ``python -m tests.bench.bench_embedded_postgres``.

Cold = an empty data folder until the database takes connections (aim: 1.5 s at most); warm = the same
folder again (aim: 0.3 s at most). Both with the durability of production, on the disk of the temporary
folder; the median counts.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ocpp_billing.embedded.postgres import EmbeddedPostgres

ROUNDS = 5
AIM_S = {"cold": 1.5, "warm": 0.3}


def measure() -> dict[str, list[float]]:
    """Seconds of each start, by kind."""
    taken: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(ROUNDS):
        folder = Path(tempfile.mkdtemp(prefix="ocpp-bench-"))
        if os.geteuid() == 0:
            folder.chmod(0o711)  # the server's user has to get in
        postgres = EmbeddedPostgres(folder / "data")
        try:
            for kind in ("cold", "warm"):
                began = time.perf_counter()
                postgres.start()
                taken[kind].append(time.perf_counter() - began)
                postgres.stop()
        finally:
            postgres.stop()
            shutil.rmtree(folder)
    return taken


def main() -> int:
    missed = 0
    for kind, seconds in measure().items():
        median = statistics.median(seconds)
        missed += median > AIM_S[kind]
        sys.stdout.write(
            f"embedded PostgreSQL, {kind} start: {median:.2f} s (aim {AIM_S[kind]} s), "
            f"{min(seconds):.2f} to {max(seconds):.2f} s in {ROUNDS} rounds\n"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
