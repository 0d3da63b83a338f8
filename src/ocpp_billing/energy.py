"""Energy in words: integer Wh as kWh, exactly. Pure."""


def format_kwh(energy_wh: int) -> str:
    """Integer Wh as a plain decimal text in kWh, exact: 12345 -> "12.345", -500 -> "-0.500".

    Lago's PostgreSQL store counts only an optional minus, digits and one point between digits; anything
    else (1E+2, +5, .5) is accepted and billed as nothing.
    """
    return _kwh(energy_wh, "d")


def say_kwh(energy_wh: int) -> str:
    """The same for people, with thousands separators: 12345678 -> "12,345.678"."""
    return _kwh(energy_wh, ",")


def _kwh(energy_wh: int, whole: str) -> str:
    sign = "-" if energy_wh < 0 else ""
    kwh, wh = divmod(abs(energy_wh), 1000)
    return f"{sign}{kwh:{whole}}.{wh:03d}"
