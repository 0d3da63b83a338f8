"""Every way in which the processes of a story can die, or a well-spread sample of them."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from tests.crash.mortal import Boundary, Mortal
from tests.crash.oracle import Outcome, assert_conserved, assert_whole, outcome_of, under_way
from tests.crash.saved import SavedWorld, saved

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.crash.stories import Story
    from tests.world import World

# So many runs, a quarter of an hour apart, and nothing is under way any more.
RUNS_TO_REST = 5
# A Lago that bills repeats shows what it stored so much later: after the next process has begun.
SHOWN_AFTER_S = 60
# Between the death of a process and the next one.
PAUSE = timedelta(seconds=20)
# The golden ratio's fraction: its multiples spread over [0, 1) more evenly than chance would.
SPREAD = 0.6180339887498949
# A crash here is worth so many elsewhere: where the ledger or Lago learns about usage events.
WEIGHT = 5
WEIGHTY = (
    "POST",
    "record",
    "decide",
    "claim",
    "deliver",
    "confirm",
    "adopt",
    "move",
    "go live",
    "send again",
)


class Deaths(NamedTuple):
    """Where the processes of a story die: after so many boundaries each, one process after the other."""

    first: int
    second: int | None = None


@dataclass
class Enumeration:
    """The crashes of one story on one store.

    Attributes:
        undisturbed: the boundaries that its first process passes when it does not die.
        outcome: where everything stands then.
    """

    world: World
    story: Story
    start: SavedWorld
    undisturbed: list[Boundary] = field(default_factory=list)
    outcome: Outcome = field(default_factory=lambda: Outcome({}, {}))

    def observe(self) -> list[str]:
        """Play the story without a crash and remember how it ends; returns what it wrote outside effects."""
        processes = self._play(())
        self.undisturbed = processes[0].passed
        self.outcome = outcome_of(self.world)
        if self.story.invoiced is not None:
            expected = {name: energy_wh for name, energy_wh in self.story.invoiced.items() if energy_wh}
            invoiced = {name: energy_wh for name, energy_wh in self.outcome.invoiced.items() if energy_wh}
            assert invoiced == expected
        return [sql for process in processes for sql in process.unmarked]

    def crash(self, deaths: Deaths) -> list[Mortal]:
        """Play the story with these deaths and judge it; returns its processes.

        Raises:
            AssertionError: naming the deaths, so that ``Deaths(...)`` repeats them.
        """
        try:
            processes = self._play(deaths)
            if self.story.invoiced is not None:
                found = outcome_of(self.world)
                assert found == self.outcome, f"ends as {found} instead of {self.outcome}"
        except AssertionError as error:
            where = self.undisturbed[deaths.first : deaths.first + 1]
            raise AssertionError(
                f"{self.story} on {self.world.lago.store}, {deaths} ({', '.join(map(str, where))}): {error}"
            ) from error
        return processes

    def crash_everywhere(self) -> int:
        """Die at every boundary, and in every recovery wherever dying differs; returns how many plays."""
        plays = 0
        for first, boundary in enumerate(self.undisturbed):
            recovery = self.crash(Deaths(first))[1].passed
            plays += 1
            if not changes_something(boundary):
                continue
            for second, later in enumerate(recovery):
                if changes_something(later):
                    assert self.crash(Deaths(first, second))[1].is_dead
                    plays += 1
        return plays

    def sample(self, number: int, offset: int) -> list[Deaths]:
        """So many deaths, spread over the boundaries and over the recovery; every other one dies twice.

        Args:
            number: how many.
            offset: where in the endless sequence to begin: other samples have others.
        """
        weights = [weight_of(boundary) for boundary in self.undisturbed]
        deaths = []
        for n in range(offset * number + 1, (offset + 1) * number + 1):
            first = _at(weights, n * SPREAD % 1)
            second = _at(weights, n * n * SPREAD % 1) if n % 2 else None
            deaths.append(Deaths(first, second))
        return deaths

    def _play(self, deaths: Sequence[int | None]) -> list[Mortal]:
        """The whole story, from its beginning until nothing is under way any more."""
        self.start.restore()
        random.seed(1)  # the jitter of retries: two plays with the same deaths are the same
        world, story = self.world, self.story
        meanwhile = {
            boundary: (lambda happens=happens: happens(world))
            for boundary, happens in story.meanwhile.items()
        }
        lives = [*(death for death in deaths if death is not None), None]
        if story.acts_twice and len(lives) == 1:
            lives = [None, None]
        processes: list[Mortal] = []
        for number, dies_at in enumerate(lives):
            process = Mortal(dies_at, meanwhile)
            processes.append(process)
            survived = process.live(lambda: story.act(world))
            assert_whole(world, knows_all=story.knows_all or survived)
            if number == 0:
                story.between(world)
            elif survived:
                break
            world.clock.advance(PAUSE)
        come_to_rest(world)
        return processes


@contextmanager
def enumerated(world: World, story: Story) -> Iterator[Enumeration]:
    """A story, ready to be played again and again."""
    story.prepare(world)
    if world.lago.store == "clickhouse-plain":
        world.lago.delay_visibility(SHOWN_AFTER_S)
    with saved(world) as start:
        yield Enumeration(world, story, start)


def come_to_rest(world: World) -> None:
    """Let runs follow until nothing is under way, and judge what has become of everything."""
    for _ in range(RUNS_TO_REST):
        if not under_way(world):
            break
        world.clock.advance(minutes=15)
        world.sync()
    left = under_way(world)
    assert not left, f"still under way: {left}"
    assert_whole(world)
    assert_conserved(world)


def changes_something(boundary: Boundary) -> bool:
    """Whether the world may be another after it: else dying here is dying at the boundary before."""
    written = boundary.effect.startswith(("db commit", "http lago POST"))
    return written and boundary.phase == "after"


def weight_of(boundary: Boundary) -> int:
    """How often a boundary is chosen, relative to others."""
    return WEIGHT if any(word in boundary.effect for word in WEIGHTY) else 1


def _at(weights: Sequence[int], fraction: float) -> int:
    """The index at a fraction of the sum of the weights."""
    left = fraction * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1
