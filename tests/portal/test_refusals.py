"""What is refused is told in the organisation's time, and no note is longer than it may be, wherever it comes from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.billing import control, review
from ocpp_billing.billing.control import ControlError
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings import store
from ocpp_billing.mappings.csv import import_mappings
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.sync.models import WorkerHeartbeat
from ocpp_billing.sync.triggers import request_run
from tests.portal import ledger

pytestmark = pytest.mark.django_db

MIDNIGHT_UTC = datetime(2026, 7, 1, tzinfo=UTC)
LONG = "x" * (NOTE_LENGTH + 1)


@pytest.fixture
def berlin():
    """Two hours ahead of UTC in July."""
    with timezone.override(ZoneInfo("Europe/Berlin")):
        yield


def mapped(**given):
    return store.create_mapping(
        source="main", id_tag="TAG-1", customer="alice", subscription=None, by="test", **given
    )


def test_a_mapping_is_refused_in_the_organisations_time(berlin):
    mapping = mapped(valid_from=MIDNIGHT_UTC, valid_to=MIDNIGHT_UTC + timedelta(days=1))
    with pytest.raises(MappingError, match=r"begins at 1 Jul 2026, 02:00: end it after that"):
        store.end_mapping(mapping.pk, at=MIDNIGHT_UTC, by="test")
    with pytest.raises(MappingError, match=r"ends already, at 2 Jul 2026, 02:00\."):
        store.end_mapping(mapping.pk, at=MIDNIGHT_UTC + timedelta(days=2), by="test")
    with pytest.raises(MappingError, match="its end must be after its beginning"):
        mapped(valid_from=MIDNIGHT_UTC, valid_to=MIDNIGHT_UTC)


def test_going_live_twice_is_refused_in_the_organisations_time(berlin, settings):
    control.go_live(settings.CONFIG, MIDNIGHT_UTC, by="test")
    with pytest.raises(ControlError, match=r"already live, from 1 Jul 2026, 02:00\."):
        control.go_live(settings.CONFIG, MIDNIGHT_UTC, by="test")


def test_that_no_worker_is_alive_is_told_in_the_organisations_time(berlin):
    ledger.add_source()
    WorkerHeartbeat.objects.create(
        worker="gone", source_id="main", leader=True, seen_at=MIDNIGHT_UTC, stopped_at=MIDNIGHT_UTC
    )
    says = request_run("main", trigger="manual", requested_by="test").says
    assert says.startswith("No worker is alive since 1 Jul 2026, 02:00.")


def test_a_line_of_an_import_with_too_long_a_note_is_left_out():
    lines = [
        "id_tag,customer_id,valid_from,note",
        f"TAG-1,alice,2026-01-01,{LONG}",
        "TAG-2,alice,2026-01-01,short",
    ]
    report = import_mappings(lines, source="main", zone=ZoneInfo("UTC"), by="test")
    assert report.errors == [(2, "A note has at most 2,000 characters.")]
    assert TagMapping.objects.get().note == "short"


def test_no_act_keeps_too_long_a_note():
    session = ledger.add_session(datetime.now(UTC), reason="implausible")
    for act in (review.accept, review.exclude):
        with pytest.raises(ReviewError, match="at most 2,000 characters"):
            act(session.pk, note=LONG, by="test")
    with pytest.raises(ReviewError, match="at most 2,000 characters"):
        review.enter_reading(session.pk, stop_wh=5_000, stopped_at=session.stopped_at, note=LONG, by="test")
    with pytest.raises(ReviewError, match="at most 2,000 characters"):
        review.acknowledge_identity(session.id_tag_id, note=LONG, by="test")
    session.refresh_from_db()
    assert not ChargingSession.objects.get().rulings.exists()
    mapping = mapped(valid_from=MIDNIGHT_UTC)
    with pytest.raises(MappingError, match="at most 2,000 characters"):
        store.note_mapping(mapping.pk, note=LONG, by="test")
