"""Tags that are gone become unreadable everywhere, once nothing waits for them, and no amount changes."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection

from ocpp_billing.accounts import audit
from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.billing import review
from ocpp_billing.billing.models import Decision
from ocpp_billing.charging.models import ChargingSession, IdTag
from ocpp_billing.charging.pseudonyms import PseudonymError, Wording, find_prospect, pseudonymise
from ocpp_billing.cli import main
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import create_mapping, end_mapping, find_or_add_tag
from ocpp_billing.sync.models import Alert, SyncLog
from tests.world import NOON, Crash

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def command(world, monkeypatch, capsys):
    """Run a command in this process: (exit code, all that it said)."""

    def run(*arguments):
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()  # what was logged before
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


# -- words for what the tests do and see -------------------------------------------------------------------


def row(steve_id):
    return ChargingSession.objects.get(steve_id=steve_id, superseded_at=None)


def a_night(world):
    world.clock.advance(DAY)
    world.sync()


def charge(world, tag="TAG-ALICE", **given):
    """A session that is billed, beside one of somebody else that stays in StEvE."""
    charged = world.session(tag, **given)
    world.session("TAG-BOB", "CP-2", energy_wh=1_000)
    world.sync()
    world.sync()
    return charged


def let_go(world, tag="TAG-ALICE"):
    """Its mapping ends and StEvE deletes the tag, and we have noticed."""
    mapping = TagMapping.objects.get(id_tag__text=tag)
    end_mapping(mapping.pk, at=world.clock.now(), by="test")
    world.steve.snapshot()
    world.steve.delete_tag(tag)
    a_night(world)


def against(world):
    """What speaks against making Alice's tag unreadable."""
    return find_prospect(world.config().steve_source, "TAG-ALICE", world.clock.now()).against


def forget(world, text="TAG-ALICE"):
    """Pseudonymise a tag, as the command does; returns the pseudonym."""
    source, now = world.config().steve_source, world.clock.now()
    prospect = find_prospect(source, text, now)
    return pseudonymise(source, prospect.tag_id, by="test", now=now).pseudonym


def mentions(text):
    """The tables in which a text occurs, in any case: the whole database is read."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema")
        tables = [name for (name,) in cursor.fetchall()]
        found = set()
        for table in tables:
            with cursor.copy(f"COPY {table} TO STDOUT") as copy:
                if text.lower().encode() in b"".join(bytes(piece) for piece in copy).lower():
                    found.add(table)
    return found


# -- it can be done ----------------------------------------------------------------------------------------


def test_nothing_names_the_tag_any_more_and_no_amount_changes(live, command):
    IdTag.objects.filter(text="TAG-ALICE").update(note="Alice's blue card")
    charged = charge(live, energy_wh=4_000)
    charge(live, "tag-Alice", energy_wh=500)
    broken = live.start("TAG-ALICE", at=3 * HOUR)
    live.show_as(broken, startValue="x")
    live.sync()
    tag = IdTag.objects.get(folded="tag-alice")
    says = "StEvE now shows tag TAG-ALICE as number 9; it was 1"
    IdTag.objects.filter(pk=tag.pk).update(identity_conflict=says)
    Decision.objects.filter(session__steve_id=charged).update(says=says)
    review.acknowledge_identity(tag.pk, note="TAG-ALICE is Alice's", by="test")
    IdTag.objects.filter(text="TAG-BOB").update(
        identity_conflict="StEvE's tag number 2 was TAG-BOB and is now tag-alice"
    )
    run = SyncLog.objects.latest("pk").run
    log = SyncLog.objects.create(run=run, level="info", action="x", message="TAG-ALICE and TAG-ALICE-2")
    alert = {"condition": "x", "says": "of TAG-ALICE.", "do": "see", "opened_at": live.clock.now()}
    Alert.objects.create(source=tag.source, **alert)
    let_go(live)
    named = {"id_tag", "charging_session", "malformed_row", "decision", "audit_entry", "sync_log", "alert"}
    assert mentions("tag-alice") == named
    balance, fingerprint = live.balance(), bytes(row(charged).fingerprint)

    code, said = command("pseudonymise", "--tag", "tag-alice", "--yes")

    pseudonym = IdTag.objects.get(pk=tag.pk).text
    assert code == 0
    assert said.startswith(f"{pseudonym}: 2 sessions and ")
    assert "alice" not in said.lower()
    log.refresh_from_db()
    assert log.message == f"{pseudonym} and TAG-ALICE-2"
    log.delete()
    assert mentions("tag-alice") == mentions("blue card") == set()
    found = row(charged)
    assert (found.id_tag_text, found.raw["ocppIdTag"]) == (pseudonym, pseudonym)
    assert bytes(found.fingerprint) == fingerprint
    assert live.balance().to_json() == balance.to_json()
    assert live.lago_wh("sub-alice") == 4_500
    entry = AuditEntry.objects.latest("pk")
    assert (entry.action, entry.target) == ("tag.pseudonymise", f"tag:{pseudonym}")
    assert entry.actor.startswith("command line (")
    assert command("pseudonymise", "--tag", pseudonym, "--yes")[0] == 0
    assert command("pseudonymise", "--tag", "TAG-ALICE", "--yes")[0] == 1
    assert AuditEntry.objects.filter(action="tag.pseudonymise").count() == 1


def test_a_tag_stays_while_anybody_may_need_it(live, command):
    live.settings["LAGO_SEND_ID_TAG"] = "true"
    live.pause()
    charge(live, energy_wh=4_000)
    assert [says.split(".")[0] for says in against(live)] == [
        "StEvE still shows it",
        "StEvE still showed 1 of its sessions when they were last read, such as 1",
        "1 of its sessions still wait for something, such as 1 (queued)",
        "It is still mapped to a customer",
    ]
    let_go(live)
    code, said = command("pseudonymise", "--gone-for", "0", "--yes")
    assert (code, said) == (
        0,
        f"Tag TAG-ALICE stays as it is: {against(live)[0]}\nNothing was changed.\n",
    )
    with pytest.raises(
        PseudonymError, match=r"1 of its sessions still wait for something, such as 1 \(queued"
    ):
        forget(live)
    live.resume()
    live.sync()
    live.sync()
    assert against(live) == ()
    assert command("pseudonymise", "--gone-for", "1", "--yes") == (0, "Nothing was changed.\n")
    would = "Tag TAG-ALICE with 1 sessions would get a pseudonym.\nNothing was changed.\n"
    assert command("pseudonymise", "--gone-for", "0", "--dry-run") == (0, would)
    assert IdTag.objects.filter(text="TAG-ALICE").exists()
    code, said = command("pseudonymise", "--gone-for", "0", "--yes")
    assert (code, said.splitlines()[1]) == (
        0,
        "Lago was sent the whole tag in 1 usage events: both keep that.",
    )
    assert mentions("tag-alice") == {"usage_event"}


def test_sessions_that_come_back_keep_the_pseudonym_and_the_tag_is_a_new_one(live):
    same, other = charge(live, energy_wh=4_000), charge(live, energy_wh=2_000)
    let_go(live)
    pseudonym = forget(live)
    live.steve.restore()
    live.show_as(other, stopValue=str(row(other).stop_wh + 1_000))
    live.clock.advance(DAY)
    run = live.sync()
    live.sync()
    assert (run.status, run.delivery, run.counts["changed"]) == ("completed", "live", 1)
    for steve_id, revision in ((same, 1), (other, 2)):
        found = row(steve_id)
        assert (found.revision, found.vanished_at) == (revision, None)
        assert (found.id_tag_text, found.raw["ocppIdTag"]) == (pseudonym, pseudonym)
    assert row(other).raw["stopValue"] == str(row(other).stop_wh)
    assert live.lago_wh_by_session()[other] == 3_000
    assert mentions("tag-alice") == {"id_tag"}
    old, new = IdTag.objects.get(text=pseudonym), IdTag.objects.get(text="TAG-ALICE")
    assert (old.vanished_at is None, old.identity_conflict) == (False, None)
    assert (new.vanished_at, new.identity_conflict) == (None, None)
    unmapped = live.session("TAG-ALICE", "CP-3", energy_wh=700)
    live.sync()
    assert live.state_of(unmapped) == ("held", "unmapped_tag")
    live.assert_conserved()


@pytest.mark.parametrize("days", ["-1", "1.5", "36501", "a year"])
def test_days_are_a_number_of_days(days, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pseudonymise", f"--gone-for={days}"])
    assert "is not a number of days from 0 to 36500" in capsys.readouterr().err


# -- it happens once and wholly ------------------------------------------------------------------------------


def test_what_dies_halfway_has_changed_nothing_and_of_two_at_once_one_does_it(engine_database, monkeypatch):
    tag = find_or_add_tag("main", "TAG-ALICE")
    mapping = {"source": "main", "id_tag": "TAG-ALICE", "customer": "alice", "subscription": None}
    since = NOON - DAY
    create_mapping(**mapping, valid_from=since, valid_to=NOON, note="lost by TAG-ALICE", by="test")

    def act():
        return pseudonymise("main", tag.pk, by="test", now=NOON)

    def die(*_args, **_given):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(audit, "record", die)  # the last that is written
        with pytest.raises(Crash):
            act()
    assert mentions("tag-alice") == {"id_tag", "tag_mapping", "audit_entry"}

    ended = []

    def one_of_two():
        try:
            ended.append(act().pseudonym)
        except PseudonymError as error:
            ended.append(str(error))
        finally:
            connection.close()

    both = [threading.Thread(target=one_of_two) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    pseudonym = IdTag.objects.get(pk=tag.pk).text
    assert sorted(ended) == [pseudonym, f"{pseudonym} is a pseudonym already."]
    assert mentions("tag-alice") == set()
    assert AuditEntry.objects.filter(action="tag.pseudonymise").count() == 1


# -- where a tag is named ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "text", "without"),
    [
        ("TAG-1", "tag-1, TAG-12, MY-TAG-1, TAG-1.5 and TAG-1.", "*, TAG-12, MY-TAG-1, TAG-1.5 and *."),
        (
            "12",
            "StEvE now shows tag 12 as number 12; it was 9",
            "StEvE now shows tag * as number 12; it was 9",
        ),
        ("12", "StEvE's tag number 12 was 12 and is now 12", "StEvE's tag number 12 was * and is now *"),
        ("12", '{"id":12,"ocppIdTag": "12"', '{"id":12,"ocppIdTag": "*"'),
        ("12", "12 sessions, 12 kWh", "12 sessions, 12 kWh"),
        ("tag:12", "tag:12", "*"),
        ("täg-1", r'{"idTag":"t\u00e4g-1"}, Täg-1 and tag-1', '{"idTag":"*"}, * and *'),
        ("", "tag  as number 1", "tag  as number 1"),
    ],
)
def test_a_tag_is_found_where_it_is_named_and_nowhere_else(tag, text, without):
    assert Wording.of([tag]).replace(text, "*") == without


def test_in_json_a_short_tag_is_found_by_its_key():
    value = {"id_tag": "12", "note": "12", "billed": [["12", 12]], "customer_id": "12"}
    assert Wording.of(["12"]).replace_in(value, "*") == {**value, "id_tag": "*"}
