import pytest

from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import AuditEntry, Role
from tests.portal.conftest import add_person

pytestmark = pytest.mark.django_db


def test_an_entry_says_who_what_before_after_why_and_from_where(rf):
    person = add_person(Role.OPERATOR)
    record(
        "mapping.ended",
        user=person,
        target="mapping 12",
        before={"active": True},
        after={"active": False},
        note="left the company",
        request=rf.post("/", REMOTE_ADDR="192.0.2.7"),
    )
    entry = AuditEntry.objects.get()
    assert (entry.user, entry.actor, entry.action, entry.target) == (
        person,
        "operator@example.org",
        "mapping.ended",
        "mapping 12",
    )
    assert (entry.before, entry.after) == ({"active": True}, {"active": False})
    assert (entry.note, entry.address) == ("left the company", "192.0.2.7")


def test_an_act_without_an_account_names_its_actor():
    assert record("delivery.paused", actor="command line (root)").user is None
    assert AuditEntry.objects.get().actor == "command line (root)"


def test_an_entry_without_anybody_is_refused():
    with pytest.raises(ValueError, match="needs a user or an actor"):
        record("delivery.paused")
