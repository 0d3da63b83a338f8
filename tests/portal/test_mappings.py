"""Mappings: the list, making and changing one, switching, ending, deleting, files, and moving what was billed."""

from __future__ import annotations

import csv
import html
import re
from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.billing.models import LagoCustomerRead, LagoSubscription
from ocpp_billing.charging.models import ChargingSession, IdTag, IdTagParent
from ocpp_billing.mappings import store
from ocpp_billing.mappings.models import LagoCustomer, TagMapping
from ocpp_billing.sync.models import SyncRun
from tests.caches import clear_caches
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _known_lago(configured):
    """Lago is away (nothing listens there), unless a test brings one; what it said before is remembered."""
    clear_caches()


def text_of(answer):
    """What stands on a page, without the tags."""
    body = re.sub(r"(?s)<(script|style|head).*?</\1>", " ", answer.content.decode())
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def main_of(answer):
    return text_of(answer).partition("Skip to content")[2]


def remember_customer(now, name="customer", *subscriptions, status="active", **fields):
    """A customer that Lago showed a moment ago, with subscriptions."""
    LagoCustomer.objects.create(external_id=name, name=f"The {name}", read_at=now, **fields)
    LagoCustomerRead.objects.create(external_id=name, read_at=now)
    for subscription in subscriptions:
        LagoSubscription.objects.create(
            lago_id=f"lago-{subscription}",
            external_id=subscription,
            external_customer_id=name,
            plan_code="ev",
            status=status,
            started_at=now - timedelta(days=90),
            period_from=now - timedelta(days=10),
            period_to=now + timedelta(days=20),
            read_at=now,
        )


def draft(**given):
    return {"tag": "TAG-7", "customer": "customer", "beginning": "now", "do": "preview", **given}


def hidden(answer):
    """The fields that a page would send on without showing them."""
    inputs = re.findall(
        r'<input type="hidden" name="(\w+)" value="([^"]*)"', answer.content.decode().partition("<main")[2]
    )
    return {name: html.unescape(value) for name, value in inputs if name != "csrfmiddlewaretoken"}


# -- the list ----------------------------------------------------------------------------------------


class TestList:
    def test_without_a_mapping_it_says_that_nothing_is_lost_and_nobody_is_blocked(self, signed_in):
        says = main_of(signed_in(Role.OPERATOR).get("/mappings"))
        assert "No tag is mapped yet" in says
        assert "nothing is lost and nobody is blocked from charging" in says
        assert "Map the first tag" in says
        assert "Map the first tag" not in main_of(signed_in(Role.VIEWER).get("/mappings"))

    def test_tags_that_wait_come_first_with_their_energy_and_one_button(self, signed_in, now):
        ledger.add_session(now, tag="TAG-7", energy_wh=18_042, reason="unmapped_tag")
        ledger.add_session(now, tag="TAG-8", energy_wh=40_000, reason="unmapped_tag")
        ledger.add_session(now, tag="TAG-8", energy_wh=5_000, reason="unmapped_tag")
        ledger.add_session(now, tag="TAG-9", energy_wh=90_000, reason="implausible")
        answer = signed_in(Role.OPERATOR).get("/mappings")
        says = main_of(answer)
        assert says.index("TAG-8") < says.index("TAG-7")
        assert "45.000" in says
        assert "TAG-9" not in says
        assert "2 tags wait, with 63.042 kWh" in says
        assert 'href="/mappings/new?tag=TAG-8"' in answer.content.decode()

    def test_a_tag_whose_mapping_is_off_is_switched_on_rather_than_mapped_again(self, signed_in, now):
        off = ledger.add_mapping(now, tag="TAG-7", active=False)
        ledger.add_session(now, tag="TAG-7", reason="mapping_inactive")
        body = signed_in(Role.OPERATOR).get("/mappings").content.decode()
        assert "Its mapping is switched off" in body
        assert f'href="/mappings/{off.pk}/switch"' in body
        assert "/mappings/new?tag=" not in body

    def test_a_row_says_who_pays_since_when_and_what_it_did_this_month(self, signed_in, now, at):
        now = at(now.replace(day=20, hour=12))
        remember_customer(now, "customer")
        ledger.add_mapping(now, tag="TAG-1")
        ledger.add_session(now, tag="TAG-1", energy_wh=1_234_567, state="confirmed")
        ledger.add_session(
            now, tag="TAG-1", energy_wh=9_000, state="confirmed", stopped_ago=timedelta(days=25)
        )
        says = main_of(signed_in(Role.VIEWER).get("/mappings"))
        assert "The customer" in says
        assert "1,234.567" in says
        assert "9.000" not in says

    def test_a_tag_that_inherits_stands_under_its_parent(self, signed_in, now):
        parent, child, own = ledger.add_tag("FLEET"), ledger.add_tag("VAN-1"), ledger.add_tag("VAN-2")
        grandchild = ledger.add_tag("VAN-1-B")
        for tag, above in ((child, parent), (own, parent), (grandchild, child)):
            tag.parents.create(parent=above, seen_from=now - timedelta(days=9))
        ledger.add_mapping(now, tag="FLEET")
        ledger.add_mapping(now, tag="VAN-2")
        ledger.add_session(now, tag="VAN-1", energy_wh=7_000, state="confirmed")
        says = main_of(signed_in(Role.OPERATOR).get("/mappings"))
        assert "VAN-1 inherits from FLEET" in says
        assert "VAN-1-B inherits from FLEET" in says
        assert "VAN-2 inherits" not in says
        assert "VAN-2 below FLEET" in says

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("", {"TAG-1", "TAG-2", "TAG-3"}),
            ("?show=active", {"TAG-1"}),
            ("?show=off", {"TAG-2"}),
            ("?show=future", {"TAG-3"}),
            ("?show=ended", {"TAG-4"}),
            ("?show=all", {"TAG-1", "TAG-2", "TAG-3", "TAG-4"}),
            ("?show=unverified", {"TAG-1"}),
            ("?show=nonsense&cursor=nonsense", {"TAG-1", "TAG-2", "TAG-3"}),
            ("?q=tag-2", {"TAG-2"}),
            ("?q=acme", {"TAG-1"}),
            ("?q=ACME GmbH", {"TAG-1"}),
            ("?q=forklift", {"TAG-3"}),
            ("?q=%25", set()),
            ("?show=all&customer=customer", {"TAG-2", "TAG-3", "TAG-4"}),
        ],
    )
    def test_what_is_searched_for_and_chosen_lies_in_the_address(self, signed_in, now, query, found):
        one = ledger.add_mapping(now, tag="TAG-1")
        TagMapping.objects.filter(pk=one.pk).update(customer_external_id="acme", verified=False)
        LagoCustomer.objects.create(external_id="acme", name="ACME GmbH", read_at=now)
        ledger.add_mapping(now, tag="TAG-2", active=False)
        three = ledger.add_mapping(now, tag="TAG-3", since=timedelta(days=-2))
        TagMapping.objects.filter(pk=three.pk).update(note="the forklift")
        ledger.add_mapping(now, tag="TAG-4", until=timedelta(days=1))
        says = main_of(signed_in(Role.OPERATOR).get(f"/mappings{query}"))
        assert set(re.findall(r"TAG-\d", says)) == found

    def test_a_viewer_sees_the_end_of_a_tag_and_finds_it_by_that_alone(self, signed_in, now):
        ledger.add_mapping(now, tag="DRIVER-4711")
        ledger.add_session(now, tag="WAITS-9999", reason="unmapped_tag")
        viewer = signed_in(Role.VIEWER)
        body = viewer.get("/mappings").content.decode()
        assert "…4711" in body
        assert "…9999" in body
        assert "DRIVER" not in body
        assert "WAITS" not in body
        assert "…4711" in main_of(viewer.get("/mappings?q=4711"))
        assert "…4711" not in main_of(viewer.get("/mappings?q=driver"))
        assert "DRIVER" not in viewer.get("/mappings/export").getvalue().decode()

    def test_a_viewer_finds_nothing_by_a_note_which_may_name_a_tag(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="DRIVER-4711")
        TagMapping.objects.filter(pk=mapping.pk).update(note="instead of OTHER-0815")
        for probe in ("other", "0815", "instead"):
            assert "…4711" not in main_of(signed_in(Role.VIEWER).get(f"/mappings?q={probe}"))
            assert "DRIVER-4711" in main_of(signed_in(Role.OPERATOR).get(f"/mappings?q={probe}"))

    def test_the_order_of_what_a_viewer_sees_says_nothing_about_tags(self, signed_in, now):
        parent = ledger.add_mapping(now, tag="PARENT-0000")
        for tag in ("C-0001", "A-0002", "B-0003"):
            ledger.add_mapping(now, tag=tag)
            below = ledger.add_tag(f"{tag}-BELOW-{tag[-4:]}")
            IdTagParent.objects.create(id_tag=below, parent=parent.id_tag, seen_from=now)
        ends = {
            Role.VIEWER: ["0001", "0002", "0003"],
            Role.OPERATOR: ["0002", "0003", "0001"],
        }
        for role, expected in ends.items():
            client = signed_in(role)
            rows = [*csv.reader(client.get("/mappings/export").getvalue().decode().splitlines())]
            listed = [row[0][-4:] for row in rows[1:]]
            assert [end for end in listed if end != "0000"] == expected
            page = main_of(client.get(f"/mappings/{parent.pk}"))
            assert re.findall(r"(?:…|BELOW-)(000[1-3])", page) == expected

    def test_pages_go_by_cursor(self, signed_in, now):
        for number in range(53):
            ledger.add_mapping(now, tag=f"TAG-{number:03}")
        client = signed_in(Role.OPERATOR)
        first = client.get("/mappings").content.decode()
        following = html.unescape(re.search(r'href="(\?[^"]*cursor=[^"]+)" rel="next"', first)[1])
        second = main_of(client.get(f"/mappings{following}"))
        assert set(re.findall(r"TAG-\d{3}", second)) == {"TAG-000", "TAG-001", "TAG-002"}

    def test_the_queries_do_not_grow_with_the_mappings(self, signed_in, now, django_assert_max_num_queries):
        for number in range(40):
            ledger.add_mapping(now, tag=f"TAG-{number:03}")
            ledger.add_session(now, tag=f"WAIT-{number:03}", reason="unmapped_tag")
        client = signed_in(Role.OPERATOR)
        with django_assert_max_num_queries(21):
            client.get("/mappings")


# -- make one ----------------------------------------------------------------------------------------


class TestMake:
    def test_the_form_chooses_no_beginning_for_anybody(self, signed_in, now):
        remember_customer(now, "customer", "sub")
        ledger.add_session(now, tag="TAG-7", energy_wh=3_000, reason="unmapped_tag")
        answer = signed_in(Role.OPERATOR).get("/mappings/new?tag=tag-7&customer=customer")
        body, says = answer.content.decode(), main_of(answer)
        assert not re.search(r'name="beginning"[^>]*checked', body)
        for choice in ("Now", "beginning of this month", "billing period of sub", "first session that waits"):
            assert choice in says
        assert "1 of 1 waiting sessions, 3.000 kWh" in says
        assert "StEvE writes it TAG-7" in says

    def test_what_is_missing_is_said_at_its_field(self, signed_in):
        says = main_of(signed_in(Role.OPERATOR).post("/mappings/new", {"do": "preview"}))
        assert "Which tag?" in says
        assert "Who pays?" in says
        assert "From when? Nothing is chosen for you" in says

    @pytest.mark.parametrize("date", ["", "yesterday", "2026-13-01"])
    def test_a_date_of_ones_own_has_to_be_one(self, signed_in, date):
        answer = signed_in(Role.OPERATOR).post("/mappings/new", draft(beginning="at", beginning_at=date))
        assert "Give a date such as" in main_of(answer)

    def test_the_preview_says_what_is_released_and_what_is_not_and_changes_nothing(self, signed_in, now):
        remember_customer(now, "customer", "sub")
        ledger.add_session(now, tag="TAG-7", energy_wh=3_000, reason="unmapped_tag")
        ledger.add_session(now, tag="TAG-7", energy_wh=4_000, reason="unmapped_tag")
        ledger.add_session(now, tag="TAG-7", energy_wh=900_000, reason="implausible")
        early = timedelta(days=40)
        ledger.add_session(now, tag="TAG-7", energy_wh=5_000, reason="unmapped_tag", stopped_ago=early)
        sent = draft(beginning="at", beginning_at=(now - timedelta(days=20)).isoformat())
        answer = signed_in(Role.OPERATOR).post("/mappings/new", sent)
        says = main_of(answer)
        assert "2 held sessions, 7.000 kWh , are released" in says
        assert "1 waiting session, 5.000 kWh, started before" in says
        assert "Implausible stays held:" in says
        assert "900.000" in says
        assert not TagMapping.objects.exists()

    def test_what_ended_before_the_billing_period_is_said_to_be_late(self, signed_in, now):
        remember_customer(now, "customer", "sub")
        ledger.add_session(
            now, tag="TAG-7", energy_wh=5_000, reason="unmapped_tag", stopped_ago=timedelta(days=12)
        )
        says = main_of(signed_in(Role.OPERATOR).post("/mappings/new", draft(beginning="first")))
        assert "1 session, 5.000 kWh, stopped before the billing period of sub began" in says
        assert "Period already closed" in says

    def test_saving_means_what_was_previewed_to_the_microsecond(self, signed_in, now):
        session = ledger.add_session(now, tag="TAG-7", energy_wh=3_000, reason="unmapped_tag")
        client = signed_in(Role.OPERATOR)
        preview = client.post("/mappings/new", draft(tag="tag-7", beginning="first", note="=a formula"))
        answer = client.post("/mappings/new", hidden(preview) | {"do": "save"}, follow=True)
        mapping = TagMapping.objects.get()
        assert answer.redirect_chain == [(f"/mappings/{mapping.pk}", 302)]
        assert mapping.valid_from == session.started_at
        assert (mapping.id_tag.text, mapping.customer_external_id) == ("TAG-7", "customer")
        assert mapping.verified is False  # Lago is away
        assert mapping.note == "=a formula"
        assert "1 session, 3.000 kWh, is decided in the next run" in main_of(answer)
        entry = AuditEntry.objects.get(action="mapping.create")
        assert (entry.actor, entry.address) == ("operator@example.org", "127.0.0.1")
        assert ChargingSession.objects.get().needs_decision

    def test_while_lago_is_away_any_id_can_be_typed_and_is_said_to_be_unverified(self, signed_in):
        client = signed_in(Role.OPERATOR)
        form = client.post("/mappings/new", draft(do="show"))
        assert "Lago cannot be asked now" in main_of(form)
        assert '<input class="form-control" id="id_subscription"' in form.content.decode()
        preview = client.post("/mappings/new", draft(subscription="typed-by-hand"))
        assert "saved as not verified" in main_of(preview)
        client.post("/mappings/new", hidden(preview) | {"do": "save"})
        mapping = TagMapping.objects.get()
        assert (mapping.subscription_external_id, mapping.verified) == ("typed-by-hand", False)

    def test_a_tag_that_is_mapped_already_is_refused_with_what_to_do(self, signed_in, now):
        ledger.add_mapping(now, tag="TAG-7", since=timedelta(days=5))
        client = signed_in(Role.OPERATOR)
        answer = client.post("/mappings/new", draft(tag="tag-7"))
        assert "is mapped to customer from" in main_of(answer)
        assert 'value="save"' not in answer.content.decode()
        earlier = {"beginning": "at", "beginning_at": (now - timedelta(days=9)).isoformat()}
        preview = client.post("/mappings/new", draft(**earlier, ending="next"))
        client.post("/mappings/new", hidden(preview) | {"do": "save"})
        first, second = TagMapping.objects.order_by("valid_from")
        assert first.valid_to == second.valid_from

    def test_what_overlaps_by_the_time_it_is_saved_is_refused_too(self, signed_in, now):
        client = signed_in(Role.OPERATOR)
        preview = client.post("/mappings/new", draft())
        ledger.add_mapping(now, tag="TAG-7")
        answer = client.post("/mappings/new", hidden(preview) | {"do": "save"})
        assert "already has a mapping in that time" in main_of(answer)
        assert TagMapping.objects.count() == 1

    def test_a_mapping_cannot_be_saved_without_the_beginning_that_was_previewed(self, signed_in):
        answer = signed_in(Role.OPERATOR).post("/mappings/new", draft(do="save"))
        assert "From when? Nothing is chosen for you" in main_of(answer)
        assert not TagMapping.objects.exists()

    def test_one_subscription_is_used_two_are_a_warning_and_a_choice(self, signed_in, now):
        remember_customer(now, "one", "sub-1")
        remember_customer(now, "two", "sub-2", "sub-3")
        remember_customer(now, "none")
        client = signed_in(Role.OPERATOR)
        assert "active subscriptions" not in main_of(client.post("/mappings/new", draft(customer="one")))
        two = main_of(client.post("/mappings/new", draft(customer="two")))
        assert "2 active subscriptions (sub-2, sub-3)" in two
        assert "held as “Several subscriptions”" in two
        chosen = main_of(client.post("/mappings/new", draft(customer="two", subscription="sub-3")))
        assert "active subscriptions" not in chosen
        form = client.post("/mappings/new", draft(customer="none", do="show"))
        assert "held as “No subscription”" in main_of(form)

    def test_a_subscription_of_another_customer_is_not_kept(self, signed_in, now):
        remember_customer(now, "one", "sub-1")
        remember_customer(now, "two", "sub-2")
        form = signed_in(Role.OPERATOR).post(
            "/mappings/new", draft(do="show", customer="two", subscription="sub-1")
        )
        assert "sub-1" not in form.content.decode()
        assert 'value="sub-2"' in form.content.decode()

    def test_an_id_with_a_dot_is_warned_of(self, signed_in, now):
        remember_customer(now, "a.b@example.org", "sub")
        says = main_of(signed_in(Role.OPERATOR).post("/mappings/new", draft(customer="a.b@example.org")))
        assert "holds a dot or a slash" in says

    def test_a_tag_that_nobody_has_shown_can_be_mapped_and_is_said_to_be_new(self, signed_in):
        client = signed_in(Role.OPERATOR)
        assert "has shown this tag yet" in main_of(client.post("/mappings/new", draft(do="show")))
        assert "not seen yet" in main_of(client.post("/mappings/new", draft()))

    def test_without_a_script_find_lists_what_can_be_picked(self, signed_in, now):
        remember_customer(now, "acme", "sub")
        ledger.add_tag("TAG-7")
        client = signed_in(Role.OPERATOR)
        found = client.post("/mappings/new", draft(tag="ag-", do="find_tag")).content.decode()
        assert 'name="pick_tag" value="TAG-7"' in found
        found = client.post("/mappings/new", draft(customer="acm", do="find_customer")).content.decode()
        assert 'name="pick_customer" value="acme"' in found
        picked = client.post("/mappings/new", draft(customer="acm", do="", pick_customer="acme"))
        assert 'name="customer" value="acme"' in picked.content.decode()
        assert 'value="sub"' in picked.content.decode()

    def test_options_are_what_contains_what_is_typed(self, signed_in, now):
        remember_customer(now, "acme", email="office@acme.example")
        ledger.add_mapping(now, tag="TAG-7")
        client = signed_in(Role.OPERATOR)
        tags = client.get("/mappings/tags?tag=ag-").content.decode()
        assert 'data-value="TAG-7"' in tags
        assert "mapped to customer" in tags
        customers = client.get("/mappings/customers?customer=office").content.decode()
        assert 'data-value="acme"' in customers
        assert "these are the customers it showed before" in customers


# -- one mapping -------------------------------------------------------------------------------------


class TestOne:
    def test_it_says_what_it_is_and_what_came_before(self, signed_in, now):
        old = ledger.add_mapping(now, tag="TAG-1", since=timedelta(days=30), until=timedelta(days=10))
        new = ledger.add_mapping(now, tag="TAG-1", since=timedelta(days=10))
        body = signed_in(Role.OPERATOR).get(f"/mappings/{new.pk}").content.decode()
        assert f'href="/mappings/{old.pk}"' in body
        assert "customer pays for its sessions" in body
        assert f'href="/mappings/{new.pk}/delete"' in body

    def test_a_tag_that_is_gone_from_steve_is_flagged_where_it_is_mapped_and_where_it_waits(
        self, signed_in, now
    ):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        ledger.add_session(now, tag="TAG-7", reason="unmapped_tag")
        client = signed_in(Role.OPERATOR)
        pages = [f"/mappings/{mapping.pk}", "/mappings"]
        assert not any("one from StEvE" in text_of(client.get(page)) for page in pages)
        IdTag.objects.update(vanished_at=now)
        assert all("one from StEvE" in text_of(client.get(page)) for page in pages)

    def test_one_that_is_not_there_is_not_found(self, signed_in, now):
        client = signed_in(Role.OPERATOR)
        for below in ("", "/change", "/switch", "/end", "/delete", "/move"):
            assert client.get(f"/mappings/4711{below}").status_code == 404
        for below in ("/note", "/verify"):
            assert client.post(f"/mappings/4711{below}").status_code == 404

    def test_switching_off_shows_what_is_held_then_cuts_there(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        session = ledger.add_session(now, tag="TAG-1", energy_wh=6_000, state="queued")
        client = signed_in(Role.OPERATOR)
        at = session.started_at
        page = client.get(f"/mappings/{mapping.pk}/switch", {"when": "at", "at": at.isoformat()})
        assert "1 session that started at" in main_of(page)
        assert "6.000 kWh, is not in Lago yet and will be held" in main_of(page)
        client.post(f"/mappings/{mapping.pk}/switch", hidden(page))
        assert list(TagMapping.objects.order_by("valid_from").values_list("active", "valid_from")) == [
            (True, mapping.valid_from),
            (False, at),
        ]

    @pytest.mark.parametrize("act", ["switch", "end", "delete", "change"])
    def test_an_act_about_a_mapping_that_somebody_changed_meanwhile_is_refused(self, signed_in, now, act):
        mapping = ledger.add_mapping(now, tag="TAG-7")
        client, address = signed_in(Role.OPERATOR), f"/mappings/{mapping.pk}/{act}"
        page = client.post(address, draft(customer="other")) if act == "change" else client.get(address)
        given = hidden(page) | {"do": "save"}
        assert given["seen"] == mapping.updated_at.isoformat()
        store.note_mapping(mapping.pk, note="ours since May", by="ben")
        answer = client.post(address, given, follow=True)
        assert "The mapping was changed meanwhile. Look at it as it is now." in text_of(answer)
        mapping.refresh_from_db()
        assert (mapping.active, mapping.valid_to, TagMapping.objects.count()) == (True, None, 1)

        client.post(f"/mappings/{mapping.pk}/end", hidden(client.get(f"/mappings/{mapping.pk}/end")))
        mapping.refresh_from_db()
        assert mapping.valid_to is not None

    @pytest.mark.parametrize(("gap", "first"), [("bill", True), ("keep", False)])
    def test_switching_on_asks_about_the_gap_with_its_energy(self, signed_in, now, gap, first):
        off = ledger.add_mapping(now, tag="TAG-1", active=False, since=timedelta(days=2))
        ledger.add_session(now, tag="TAG-1", energy_wh=6_000, reason="mapping_inactive")
        client = signed_in(Role.OPERATOR)
        page = client.get(f"/mappings/{off.pk}/switch")
        assert "1 session, 6.000 kWh, is held because of it" in main_of(page)
        assert not re.search(r'name="gap"[^>]*checked', page.content.decode())
        answer = client.post(f"/mappings/{off.pk}/switch", hidden(page), follow=True)
        assert "Say whether the sessions" in main_of(answer)
        assert not TagMapping.objects.get().active
        client.post(f"/mappings/{off.pk}/switch", hidden(page) | {"gap": gap})
        chain = TagMapping.objects.order_by("valid_from")
        assert [row.active for row in chain] == ([True] if first else [False, True])
        assert AuditEntry.objects.get(action="mapping.switch_on").after["gap_billed"] is first

    def test_ending_keeps_the_past(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        client = signed_in(Role.OPERATOR)
        too_early = (mapping.valid_from - timedelta(days=1)).isoformat()
        wrong = client.get(f"/mappings/{mapping.pk}/end", {"when": "at", "at": too_early})
        assert "It has to end after it begins" in main_of(wrong)
        page = client.get(f"/mappings/{mapping.pk}/end")
        client.post(f"/mappings/{mapping.pk}/end", hidden(page))
        mapping.refresh_from_db()
        assert mapping.valid_to == now
        assert SyncRun.objects.get().status == "requested"

    def test_what_ends_one_day_can_be_ended_sooner(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1", until=timedelta(days=-9))
        client = signed_in(Role.OPERATOR)
        assert "End sooner" in main_of(client.get(f"/mappings/{mapping.pk}"))
        client.post(f"/mappings/{mapping.pk}/end", hidden(client.get(f"/mappings/{mapping.pk}/end")))
        mapping.refresh_from_db()
        assert mapping.valid_to == now

    def test_what_led_to_an_event_is_ended_rather_than_deleted(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        ledger.add_session(now, tag="TAG-1", state="accepted").decisions.update(mapping=mapping)
        client = signed_in(Role.OPERATOR)
        assert "It cannot be deleted" in main_of(client.get(f"/mappings/{mapping.pk}"))
        assert "it must stay to explain them" in main_of(client.get(f"/mappings/{mapping.pk}/delete"))
        client.post(f"/mappings/{mapping.pk}/delete")
        assert TagMapping.objects.filter(pk=mapping.pk).exists()

    def test_what_led_to_nothing_is_deleted_after_saying_what_waits_on_it(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        ledger.add_session(now, tag="TAG-1", energy_wh=2_000, reason="no_subscription")
        client = signed_in(Role.OPERATOR)
        assert "1 session, 2.000 kWh, loses its payer" in main_of(
            client.get(f"/mappings/{mapping.pk}/delete")
        )
        client.post(f"/mappings/{mapping.pk}/delete")
        assert not TagMapping.objects.exists()

    def test_another_customer_pays_by_ending_the_one_and_beginning_another(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        billed = ledger.add_session(now, tag="TAG-1", state="accepted", energy_wh=8_000)
        billed.decisions.update(mapping=mapping)
        client = signed_in(Role.OPERATOR)
        path = f"/mappings/{mapping.pk}/change"
        form = client.get(path)
        assert 'name="customer" value="customer"' in form.content.decode()
        assert "The mapping's own beginning: it was wrong" in main_of(form)
        sent = {"customer": "other", "beginning": "at", "do": "preview"}
        preview = client.post(path, sent | {"beginning_at": (now - timedelta(days=3)).isoformat()})
        assert "ends at" in main_of(preview)
        assert "1 session that started since then, 8.000 kWh, is in Lago already" in main_of(preview)
        client.post(path, hidden(preview) | {"do": "save"})
        assert list(
            TagMapping.objects.order_by("valid_from").values_list("customer_external_id", flat=True)
        ) == ["customer", "other"]
        refused = client.post(path, sent | {"beginning": "start"})
        assert "its past cannot be rewritten" in main_of(refused)
        assert 'value="save"' not in refused.content.decode()

    def test_a_note_is_kept(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        signed_in(Role.OPERATOR).post(f"/mappings/{mapping.pk}/note", {"note": " the van "})
        mapping.refresh_from_db()
        assert mapping.note == "the van"
        answer = signed_in(Role.OPERATOR).post(
            f"/mappings/{mapping.pk}/note", {"note": "x" * 2_001}, follow=True
        )
        assert "A note has at most 2,000 characters. Nothing was saved." in main_of(answer)
        mapping.refresh_from_db()
        assert mapping.note == "the van"

    def test_the_page_of_one_older_than_all_that_are_listed(self, signed_in, now, monkeypatch):
        monkeypatch.setattr("ocpp_billing.portal.mapping.HISTORY_ROWS", 1)
        old = ledger.add_mapping(now, tag="TAG-1", since=timedelta(days=60), until=timedelta(days=31))
        ledger.add_mapping(now, tag="TAG-1")
        answer = signed_in(Role.OPERATOR).get(f"/mappings/{old.pk}")
        assert (answer.status_code, answer.context["row"].mapping_id) == (200, old.pk)

    def test_one_that_was_never_verified_can_be_asked_about(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        TagMapping.objects.update(verified=False)
        client = signed_in(Role.OPERATOR)
        assert "Ask Lago now" in main_of(client.get(f"/mappings/{mapping.pk}"))
        answer = client.post(f"/mappings/{mapping.pk}/verify", follow=True)
        assert "Lago still cannot be asked" in main_of(answer)

    def test_a_viewer_reads_and_is_offered_no_act(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="DRIVER-4711")
        body = signed_in(Role.VIEWER).get(f"/mappings/{mapping.pk}").content.decode()
        assert "DRIVER" not in body
        assert not re.search(r'(href|action)="/mappings/\d+/', body)


# -- files -------------------------------------------------------------------------------------------

HEADER = "id_tag,customer_id,subscription_id,valid_from,valid_to,active,note\n"


class TestFiles:
    def test_a_dry_run_reports_each_line_and_changes_nothing(self, signed_in, now):
        ledger.add_mapping(now, tag="TAG-3")
        lines = 'TAG-1,acme,,2026-01-01,,true,"van, blue"\nTAG-2,,,2026-01-01,,,\nTAG-2,acme,,,,,\ntag-3,acme,,2026-01-01,,,\n'
        says = main_of(signed_in(Role.OPERATOR).post("/mappings/import", {"text": HEADER + lines}))
        assert "1 to be made" in says
        assert "3 with errors" in says
        assert "The customer is missing" in says
        assert "valid_from is empty: say from when the customer pays" in says
        assert "Tag tag-3 already has a mapping in that time" in says
        assert "Make 1 mapping" in says
        assert TagMapping.objects.count() == 1

    def test_what_was_previewed_is_imported_and_nothing_else(self, signed_in, now):
        client = signed_in(Role.OPERATOR)
        preview = client.post(
            "/mappings/import", {"text": HEADER + "TAG-1,acme,,2026-01-01,,,\nTAG-2,,,2026-01-01,,,\n"}
        )
        answer = client.post("/mappings/import", hidden(preview), follow=True)
        assert "1 mapping is made, 0 unchanged, 1 with errors left out." in main_of(answer)
        assert TagMapping.objects.get().verified is False
        again = client.post("/mappings/import", hidden(preview))
        assert "Something changed since the preview, so nothing was imported" in main_of(again)
        assert TagMapping.objects.count() == 1

    @pytest.mark.parametrize(
        ("sent", "says"),
        [
            ({}, "Choose a file, or paste its lines"),
            ({"text": "a,b\n1,2\n"}, "The first line must name the columns"),
            ({"previewed": "forged"}, "choose the file again"),
        ],
    )
    def test_what_cannot_be_imported_is_said(self, signed_in, sent, says):
        assert says in main_of(signed_in(Role.OPERATOR).post("/mappings/import", sent))

    def test_refused_lines_are_still_there_to_be_mended(self, signed_in):
        page = main_of(signed_in(Role.OPERATOR).post("/mappings/import", {"text": "a,b\nTAG-9,acme\n"}))
        assert "TAG-9,acme" in page

    def test_a_file_that_is_no_text_is_refused(self, signed_in, tmp_path):
        path = tmp_path / "mappings.csv"
        path.write_bytes(b"\xff\xfe\x00")
        with path.open("rb") as file:
            answer = signed_in(Role.OPERATOR).post("/mappings/import", {"file": file})
        assert "not UTF-8 text" in main_of(answer)

    def test_the_export_is_what_the_import_reads(self, signed_in, now):
        mapping = ledger.add_mapping(now, tag="TAG-1")
        TagMapping.objects.filter(pk=mapping.pk).update(note="=1+1")
        client = signed_in(Role.OPERATOR)
        answer = client.get("/mappings/export")
        file = answer.getvalue().decode()
        assert "attachment" in answer.headers["Content-Disposition"]
        assert "'=1+1" in file
        says = main_of(client.post("/mappings/import", {"text": file}))
        assert "0 to be made" in says
        assert "1 there already" in says
