"""Amounts of money as Lago gives them: whole numbers of the currency's smallest unit."""

from __future__ import annotations

from decimal import Decimal

# Of ISO 4217, those that are not divided into hundredths.
_DIGITS = {
    **dict.fromkeys(
        [
            "BIF",
            "CLP",
            "DJF",
            "GNF",
            "ISK",
            "JPY",
            "KMF",
            "KRW",
            "PYG",
            "RWF",
            "UGX",
            "VND",
            "VUV",
            "XAF",
            "XOF",
            "XPF",
        ],
        0,
    ),
    **dict.fromkeys(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"], 3),
}


def say_money(cents: int, currency: str | None) -> str:
    """An amount for people, such as ``1.95 EUR``.

    Args:
        cents: in the smallest unit of the currency.
        currency: its ISO code; None = Lago did not say.
    """
    if currency is None:
        return f"{cents} cents"
    return f"{Decimal(cents).scaleb(-_DIGITS.get(currency, 2)):,f} {currency}"
