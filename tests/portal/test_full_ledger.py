"""What holds for every page over a ledger that is in use: no foreign address, few queries, numbers in full."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from ocpp_billing import clock
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.sync.models import SyncRun
from tests.portal import ledger
from tests.portal.test_every_page import OPEN_PAGES, PAGES, Page
from tests.world import empty_ledger

pytestmark = pytest.mark.django_db

FIRST = 1_000_001
ADDRESSES = [
    *PAGES,
    "/attention/act?act=exclude&id={session}",
    "/mappings/{mapping}",
    "/mappings/{mapping}/end",
    "/mappings/{mapping}/move",
    "/sessions/{session}",
    "/sessions/{session}/exclude",
    "/sessions/{session}/move",
    "/sync/{run}",
]


@pytest.fixture(scope="module")
def filled(django_db_setup, django_db_blocker):
    """A ledger that all tests here read. Every number in it that names something has seven digits."""
    with django_db_blocker.unblock():
        now = clock.now()
        with connection.cursor() as cursor:
            for model in (ChargingSession, SyncRun, TagMapping):
                name = connection.ops.quote_name(model._meta.db_table)
                cursor.execute(f"ALTER TABLE {name} ALTER COLUMN id RESTART WITH {FIRST}")
        session = ledger.add_session(now, reason="unmapped_tag", tag="TAG-7", steve_id=FIRST)
        ledger.fill(now)
        run = ledger.add_run(now, ago=timedelta(seconds=5), status="running")
        names = {"session": session.pk, "run": run.pk, "mapping": TagMapping.objects.earliest("pk").pk}
    yield names
    with django_db_blocker.unblock():
        empty_ledger()


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_keeps_to_this_site_and_to_few_queries_and_writes_numbers_as_they_are_typed(
    filled, signed_in, address
):
    """A separator in a number that names something breaks forms and addresses, and nobody could search for it."""
    client = signed_in()
    with CaptureQueriesContext(connection) as queries:
        answer = client.get(address.format(**filled))
    assert answer.status_code == 200
    text = answer.content.decode()
    assert (Page(text).foreign, Page(text).inline) == ([], [])
    assert len(queries) <= 30
    assert re.findall(r".{0,60}\b1,000,0\d\d.{0,40}", text) == []


@pytest.mark.parametrize("address", [*OPEN_PAGES, "/there-is-no-such-page"])
def test_a_page_before_sign_in_keeps_to_this_site(filled, address):
    text = Client().get(address).content.decode()
    assert (Page(text).foreign, Page(text).inline) == ([], [])


def test_the_numbers_are_there(filled, signed_in):
    text = signed_in().get("/sync/{run}".format(**filled)).content.decode()
    assert f"Run {filled['run']}: Running" in text
