"""Every state and every reason has words."""

import pytest

from ocpp_billing.charging.models import SessionState
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.portal.templatetags.portal import ICONS
from ocpp_billing.portal.wording import REASONS, STATES, of_reason

RULES = [reason.value for reason in Reason]


def test_every_state_of_the_ledger_has_words_and_a_shape_of_its_own():
    assert set(STATES) == set(SessionState.values)
    assert len({words.icon for words in STATES.values()}) == len(STATES)
    assert len({str(words.label) for words in STATES.values()}) == len(STATES)
    assert all((ICONS / f"{words.icon}.svg").is_file() for words in STATES.values())


@pytest.mark.parametrize("code", RULES)
def test_every_rule_says_what_it_is_what_it_means_and_what_to_do(code):
    words = REASONS[code]
    assert words.code == code
    assert all(str(text).strip() for text in (words.label, words.means, words.do))
    assert code not in str(words.label)


def test_there_are_words_for_the_rules_only():
    assert set(REASONS) == set(RULES)


def test_an_unknown_reason_is_shown_as_it_is():
    assert of_reason("held", "moon_phase").label == "moon_phase"


def test_lagos_own_code_stays_readable():
    assert of_reason("rejected", "value_is_invalid").label == "Rejected by Lago: value_is_invalid"


def test_a_state_without_a_reason_still_says_what_to_do():
    assert of_reason("stuck", None).label == "Stuck"
    assert of_reason("rejected", None).label == "Rejected by Lago"
