"""What Lago charged by fees of single events, and how amounts of money are said."""

from decimal import Decimal

import pytest

from ocpp_billing.billing.confirm import charged_twice
from ocpp_billing.lago.money import say_money
from ocpp_billing.lago.wire import Fee


def test_a_fee_of_each_of_several_charges_is_no_surplus():
    fees = [Fee(lago_charge_id=charge, units=Decimal(5), amount_cents=195) for charge in "ab"]
    assert charged_twice(fees) is None
    assert "5 kWh, 195 cents, is charged too much" in charged_twice([*fees, fees[1]])


@pytest.mark.parametrize(
    ("cents", "currency", "says"),
    [
        (195, "EUR", "1.95 EUR"),
        (195, "JPY", "195 JPY"),
        (1_234_567, "KWD", "1,234.567 KWD"),
        (5, None, "5 cents"),
    ],
)
def test_money_is_said_in_its_own_currency(cents, currency, says):
    assert say_money(cents, currency) == says
