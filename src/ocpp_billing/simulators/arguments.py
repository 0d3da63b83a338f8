"""What the commands of both simulators share: how arguments are read, and what is said of wrong ones."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FAILED, USAGE = 1, 2


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number in a range, both ends included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return read


# 0 = any that is free
port_or_any = whole_number(0, 65_535)


def amount(low: float, high: float) -> Callable[[str], float]:
    """What reads an argument that is a number in a range, both ends included."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # not a number is in no range
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return read


def say_wrong(error: ValueError) -> int:
    """Say what is wrong with the arguments; returns the exit code."""
    sys.stderr.write(f"simulate: {error}\n")
    return USAGE


def say_cannot_listen(host: str, port: int, error: OSError) -> int:
    """Say that the port cannot be had; returns the exit code."""
    sys.stderr.write(
        f"simulate: cannot listen on {host}:{port}: {error.strerror}. Choose another with --port or --host.\n"
    )
    return FAILED
