"""Mappings between a StEvE and a Lago that answer: what is chosen is checked, and what was billed is moved."""

from __future__ import annotations

import re

from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.billing import review
from ocpp_billing.mappings.models import TagMapping
from tests.portal.test_mappings import draft, hidden, main_of


def test_lago_is_asked_about_whoever_is_chosen(world, operated):
    world.customer("alice")
    client = operated(Role.OPERATOR)
    unknown = client.post("/mappings/new", draft(customer="nobody"))
    assert "Lago has no customer with the external id" in main_of(unknown)
    form = client.post("/mappings/new", draft(do="refresh", customer="alice"))
    assert 'value="sub-alice"' in form.content.decode()
    preview = client.post("/mappings/new", draft(customer="alice", subscription="sub-alice"))
    assert "known to Lago" in main_of(preview)
    client.post("/mappings/new", hidden(preview) | {"do": "save"})
    assert TagMapping.objects.get().verified
    TagMapping.objects.update(verified=False)
    client.post(f"/mappings/{TagMapping.objects.get().pk}/verify")
    assert TagMapping.objects.get().verified
    assert "customer of Lago can be chosen" in main_of(
        client.post("/mappings/new", draft(do="refresh_customers"))
    )


def test_what_was_billed_to_the_wrong_one_is_moved_after_a_preview(world, operated):
    world.payer("TAG-7", "alice")
    world.customer("bob")
    world.go_live()
    moved, kept = world.session("TAG-7", energy_wh=8_000), world.session("TAG-7", "CP-2", energy_wh=3_000)
    world.sync()
    client = operated(Role.OPERATOR)
    path = f"/mappings/{TagMapping.objects.get().pk}/move"
    page = client.get(path)
    assert "2 in Lago by this mapping, 11.000 kWh" in main_of(page)
    chosen = str(world._session(moved).get().pk)
    assert "Choose at least one session" in main_of(client.post(path, {"do": "preview", "customer": "bob"}))
    sent = {"do": "preview", "customer": "bob", "session": [chosen, "999999"]}
    preview = client.post(path, sent)
    assert "1 session, 8.000 kWh , is billed to bob instead" in main_of(preview)
    assert "taken back" in main_of(preview)
    without_note = client.post(path, hidden(preview) | {"do": "move"})
    assert "a move needs a note" in main_of(without_note)
    long_note = client.post(path, hidden(preview) | {"do": "move", "note": "x" * (NOTE_LENGTH + 1)})
    assert "A note has at most 2,000 characters." in main_of(long_note)
    forged = client.post(path, hidden(preview) | {"do": "move", "note": "x", "previewed": "another"})
    assert "Something changed since the preview, so nothing was moved" in main_of(forged)
    done = client.post(path, hidden(preview) | {"do": "move", "note": "wrong driver"}, follow=True)
    assert "1 session, 8.000 kWh, is moved" in main_of(done)
    world.sync()
    assert (world.lago_wh("sub-alice"), world.lago_wh("sub-bob")) == (3_000, 8_000)
    assert world.lago_wh_by_session() == {moved: 8_000, kept: 3_000}
    world.assert_conserved()
    entry = AuditEntry.objects.get(action="session.move")
    assert (entry.actor, entry.note) == ("operator@example.org", "wrong driver")
    again = client.post(path, sent)
    assert "is billed to sub-bob already" in main_of(again)


def test_what_a_person_assigned_is_moved_from_its_own_page(world, operated):
    """No mapping leads to it."""
    for name in ("alice", "bob"):
        world.customer(name)
    world.go_live()
    session = world.session("TAG-9", energy_wh=8_000)
    world.sync()
    found = world._session(session).get()
    client = operated(Role.OPERATOR)
    path = f"/sessions/{found.pk}"
    assert "Move to another subscription" not in main_of(client.get(path))
    assert "Lago has nothing of this session" in main_of(client.get(f"{path}/move"))
    review.assign(found.pk, customer="alice", subscription=None, note="her guest", by="test")
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert f'href="{path}/move"' in client.get(path).content.decode()
    page = main_of(client.get(f"{path}/move"))
    assert "Where it is billed now" in page
    assert "Billed to alice sub-alice 8.000" in page
    assert "Who pays?" in main_of(client.post(f"{path}/move", {"do": "preview"}))
    chosen = client.post(f"{path}/move", {"do": "show", "customer": "bob"})
    assert 'value="sub-bob"' in chosen.content.decode()
    already = client.post(f"{path}/move", {"do": "preview", "customer": "alice"})
    assert "is billed to sub-alice already" in main_of(already)
    preview = client.post(f"{path}/move", {"do": "preview", "customer": "bob"})
    assert "1 session, 8.000 kWh , is billed to bob instead" in main_of(preview)
    done = client.post(f"{path}/move", hidden(preview) | {"do": "move", "note": "bob's guest"}, follow=True)
    assert done.redirect_chain[-1][0] == path
    assert "1 session, 8.000 kWh, is moved" in main_of(done)
    assert main_of(client.get(f"{path}/move")).count("Lago has nothing of this session") == 1
    world.sync()
    assert (world.lago_wh("sub-alice"), world.lago_wh("sub-bob")) == (0, 8_000)
    world.assert_conserved()


def test_ticks_stay_while_pages_turn_and_all_are_taken_in_portions(world, operated, monkeypatch):
    monkeypatch.setattr("ocpp_billing.portal.moving.AT_ONCE", 2)
    monkeypatch.setattr("ocpp_billing.portal.mapping_move.ROWS", 2)
    world.payer("TAG-7", "alice")
    world.customer("bob")
    world.go_live()
    first, second, third = (world.session("TAG-7", f"CP-{n}", energy_wh=1_000 * n) for n in (1, 2, 3))
    world.sync()
    oldest, newest = (str(world._session(steve_id).get().pk) for steve_id in (first, third))
    client = operated(Role.OPERATOR)
    path = f"/mappings/{TagMapping.objects.get().pk}/move"

    page = client.get(path).content.decode()
    cursor = re.search(r'name="cursor" value="([^"]+)"', page)[1]
    turned = client.post(path, {"customer": "bob", "session": newest, "cursor": cursor}).content.decode()
    assert f'type="hidden" name="session" value="{newest}"' in turned
    assert f'value="{oldest}"' in turned
    both = client.post(path, {"do": "preview", "customer": "bob", "session": [newest, oldest]})
    assert "2 sessions, 4.000 kWh , are billed to bob instead" in main_of(both)
    assert "can follow" not in main_of(both)

    for says, left in (("2 sessions, 5.000 kWh , are billed", True), ("1 session, 1.000 kWh , is", False)):
        preview = client.post(path, {"do": "preview", "customer": "bob", "all": "true"})
        assert says in main_of(preview)
        assert ("The others stay where they are and can follow." in main_of(preview)) is left
        sessions = re.findall(r'name="session" value="(\d+)"', preview.content.decode())
        client.post(path, hidden(preview) | {"do": "move", "note": "wrong driver", "session": sessions})
        world.sync()
    assert world.lago_wh_by_session() == {first: 1_000, second: 2_000, third: 3_000}
    assert (world.lago_wh("sub-alice"), world.lago_wh("sub-bob")) == (0, 6_000)
    world.assert_conserved()
    none_left = client.post(path, {"do": "preview", "customer": "bob", "all": "true"})
    assert "Choose at least one session that is not billed there yet." in main_of(none_left)


def test_without_lago_nothing_is_moved(world, operated, settings):
    world.payer("TAG-7", "alice")
    world.customer("bob")
    world.go_live()
    session = world.session("TAG-7", energy_wh=8_000)
    world.sync()
    client = operated(Role.OPERATOR)
    settings.CONFIG = world.config(lago_api_url="http://127.0.0.1:9")
    path = f"/mappings/{TagMapping.objects.get().pk}/move"
    sent = {"do": "preview", "customer": "bob", "session": str(world._session(session).get().pk)}
    answer = client.post(path, sent)
    assert "Nothing was moved: a move needs Lago" in main_of(answer)
