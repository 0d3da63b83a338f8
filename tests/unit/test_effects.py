"""Every effect on the outside world can be watched, stopped and counted by a test."""

from __future__ import annotations

import pytest

from ocpp_billing.effects import effect, install_hook


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def seen():
    """What happened, in order; the hook is removed afterwards."""
    happened: list[str] = []
    install_hook(lambda name, phase: happened.append(f"{phase} {name}"))
    yield happened
    install_hook(None)


def test_without_a_hook_only_the_effect_happens():
    happened = []
    with effect("db commit decide"):
        happened.append("commit")
    assert happened == ["commit"]


def test_a_hook_sees_it_begin_and_end(seen):
    with effect("db commit decide"):
        seen.append("commit")
    assert seen == ["before db commit decide", "commit", "after db commit decide"]


def test_effects_within_effects_are_seen_in_order(seen):
    with effect("db commit decide"), effect("notify sync"):
        pass
    assert seen == [
        "before db commit decide",
        "before notify sync",
        "after notify sync",
        "after db commit decide",
    ]


def test_an_effect_that_failed_has_no_end(seen):
    with pytest.raises(TimeoutError), effect("http lago POST /events/batch"):
        raise TimeoutError
    assert seen == ["before http lago POST /events/batch"]


@pytest.mark.parametrize(("phase", "happens"), [("before", []), ("after", ["commit"])])
def test_a_hook_can_kill_just_before_and_just_after(phase, happens):
    happened = []

    def die(name, this_phase):
        if this_phase == phase:
            raise Crash

    install_hook(die)
    try:
        with pytest.raises(Crash), effect("db commit decide"):
            happened.append("commit")
    finally:
        install_hook(None)
    assert happened == happens


def test_a_removed_hook_sees_nothing_more(seen):
    install_hook(None)
    with effect("db commit decide"):
        pass
    assert seen == []
