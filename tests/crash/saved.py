"""A world that one can return to: the ledger's rows, both systems and the clock as they were."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import connection

from tests.world import ledger_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.world import World


class SavedLedger:
    """A copy of every row of the ledger.

    Args:
        name: apart from other copies that exist at the same time.
    """

    def __init__(self, name: str) -> None:
        tables = ledger_tables()
        self._copies = {table: f"saved_{name}_{table}" for table in tables}
        restore = [f"DELETE FROM {table}" for table in tables]
        with connection.cursor() as cursor:
            for table, saved in self._copies.items():
                cursor.execute(f"CREATE UNLOGGED TABLE {saved} AS TABLE {table}")
            for table in reversed(tables):
                if table == "balance_delta":
                    continue
                cursor.execute(_COLUMNS, [table])
                columns = ", ".join(f'"{name}"' for (name,) in cursor.fetchall())
                restore.append(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {self._copies[table]}")
        # The triggers of the other tables have just written into this one.
        restore += [
            "DELETE FROM balance_delta",
            f"INSERT INTO balance_delta SELECT * FROM {self._copies['balance_delta']}",
        ]
        self._restore = "; ".join(restore)

    def restore(self) -> None:
        """Make the ledger what it was, in one transaction and round trip."""
        with connection.cursor() as cursor:
            cursor.execute(self._restore)

    def drop(self) -> None:
        """Forget it."""
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {', '.join(self._copies.values())}")


class SavedWorld:
    """The ledger, StEvE, Lago and the clock as they are now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._now = world.clock.now()
        self._settings = dict(world.settings)
        self._registers = dict(world._registers)
        self._systems = self._copied(self._read_systems())
        self._faults = copy.deepcopy((world.steve.faults, world.lago.faults))
        self._ledger = SavedLedger("world")

    def restore(self) -> None:
        """Make the world what it was."""
        world = self.world
        world.clock.set(self._now)
        world.settings.clear()
        world.settings.update(self._settings)
        world._registers = dict(self._registers)
        (
            (world.steve.central, world.steve.api, world.steve._snapshots),
            (world.lago.books, world.lago.api),
        ) = self._copied(self._systems)
        world.steve.faults[:], world.lago.faults[:] = copy.deepcopy(self._faults)
        world.steve.requests.clear()
        world.lago.requests.clear()
        self._ledger.restore()

    def drop(self) -> None:
        """Forget the copy of the ledger."""
        self._ledger.drop()

    def _read_systems(self) -> Any:
        steve, lago = self.world.steve, self.world.lago
        return (steve.central, steve.api, steve._snapshots), (lago.books, lago.api)

    def _copied(self, systems: Any) -> Any:
        """A deep copy of what the servers hold; the servers themselves and their locks stay who they are."""
        steve, lago = self.world.steve, self.world.lago
        stays = (steve, lago, steve.lock, lago.lock)
        return copy.deepcopy(systems, {id(part): part for part in stays})


@contextmanager
def saved(world: World) -> Iterator[SavedWorld]:
    """The world as it is now, to return to within the block."""
    kept = SavedWorld(world)
    try:
        yield kept
    finally:
        kept.drop()


_COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = %s AND is_generated = 'NEVER'
ORDER BY ordinal_position
"""
