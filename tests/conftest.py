"""Fixtures that every ring of the tests shares."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture(scope="session")
def engine_database_setup(django_db_setup, django_db_blocker):
    """The test database, also when no test that pytest-django knows to need one was chosen."""
    from django.db import connection
    from django.db.backends.base.creation import TEST_DATABASE_PREFIX
    from django.test.utils import setup_databases, teardown_databases

    if connection.settings_dict["NAME"].startswith(TEST_DATABASE_PREFIX):
        yield
        return
    with django_db_blocker.unblock():
        made = setup_databases(verbosity=0, interactive=False, aliases={"default"})
    yield
    with django_db_blocker.unblock():
        teardown_databases(made, verbosity=0)


@pytest.fixture
def engine_database(engine_database_setup, django_db_blocker):
    """The test database for an engine that commits: no transaction around the test, an empty ledger after it."""
    from tests.world import empty_ledger

    with django_db_blocker.unblock():
        yield
        empty_ledger()


@pytest.fixture
def release():
    """StEvE's release; a test chooses by parametrizing ``release``."""
    return "3.14.1"


@pytest.fixture
def store():
    """Lago's event store; a test chooses by parametrizing ``store``."""
    return "postgres"


@pytest.fixture
def now():
    """What time it is in the world; a test chooses by parametrizing ``now``."""
    from tests.world import NOON

    return NOON


@pytest.fixture
def world(engine_database, release, store, now):
    """One StEvE, one Lago, one clock, an empty ledger: see :class:`tests.world.World`."""
    from tests.world import open_world

    with open_world(release=release, store=store, now=now) as world:
        yield world


def pytest_terminal_summary(terminalreporter):
    """How many crashes were played: of the many that there are, the normal suite takes a sample."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    properties = [dict(report.user_properties) for report in reports if report.when == "call"]
    stories = [each for each in properties if "crash_plays" in each]
    if stories:
        plays, twice, boundaries = (sum(each.get(name, 0) for each in stories) for name in CRASH_COUNTS)
        terminalreporter.write_line(
            f"crashes: {plays} plays in {len(stories)} stories that pass {boundaries} boundaries, {twice} of them "
            "with a second crash in the recovery (everywhere, and everywhere in each recovery: --long)"
        )
    killed = [each for each in properties if "kills" in each]
    if killed:
        seeds = ", ".join(str(each["seed"]) for each in killed)
        terminalreporter.write_line(f"kills: {sum(each['kills'] for each in killed)}, seeds {seeds}")
    played = [each for each in properties if "stateful_seed" in each]
    if played:
        outcomes = Counter()
        for each in played:
            outcomes.update(each.get("stateful_outcomes", {}))
        seeds = ", ".join(str(seed) for seed in sorted({each["stateful_seed"] for each in played}))
        counted = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
        terminalreporter.write_line(f"operators' days: seeds {seeds}; sessions ended {counted}")


CRASH_COUNTS = ("crash_plays", "crash_plays_twice", "crash_boundaries")
