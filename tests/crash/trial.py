"""One death after another: a scenario is played, cut off at a failpoint, and looked at."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from tests.crash.failpoints import Order
from tests.crash.world import SETTLED_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.scenarios import Images, Scenario
    from tests.crash.world import Wanted, World

DEATHS = 2
"""A step that is done again and again is cut off so many times, each time one later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Where a daemon is to die: at a failpoint, when that is reached so many times."""

    name: str
    occurrence: int

    def __str__(self) -> str:
        return self.name if self.occurrence == 1 else f"{self.name} ({self.occurrence})"


class Trial:
    """A scenario in one folder, which every death begins with in the same state."""

    def __init__(self, world: World, images: Images, scenario: Scenario) -> None:
        self._world = world
        self._agent = world.agent
        self._images = images
        self._scenario = scenario
        self._promised: dict[str, Wanted] = {}

    @property
    def _kept(self) -> Path:
        return self._agent.folder / "kept"

    async def prepare(self) -> None:
        """Come to the state in which the deed begins, and keep it."""
        self._agent.order = None
        if self._scenario.before is not None:
            await self._agent.start()
            await self._scenario.before(self._world, self._images)
            assert await self._agent.stop() == 0
            self._scenario.meanwhile(self._world)
            shutil.copytree(self._agent.state, self._kept)
        self._promised = dict(self._world.promised)

    async def record(self) -> list[Death]:
        """Do the deed to its end, and give each failpoint on the way."""
        record = self._agent.folder / "record"
        await self._play(self._order(record=str(record)))
        await self._agent.kill()
        counts = Counter(record.read_text().splitlines())
        return [
            Death(name=name, occurrence=number)
            for name, count in counts.items()
            for number in range(1, min(count, DEATHS) + 1)
        ]

    async def die(self, death: Death) -> bool:
        """Kill a daemon there, and check what the next one makes of it.

        False where it was not reached, as it may happen to a repetition.
        """
        try:
            await self._play(self._order(kill=death.name, occurrence=death.occurrence))
            if not await self._has_died(patient=death.occurrence == 1):
                await self._agent.kill()
                return False
            await self._agent.close()
            await self._look()
        except BaseException as error:
            error.add_note(f"{self._scenario.name}, killed at {death}")
            raise
        finally:
            await self._agent.close()
        return True

    async def _has_died(self, *, patient: bool) -> bool:
        """Tell whether the daemon has died; what follows its answer may come a little later."""
        if patient:
            async with asyncio.timeout(SETTLED_SECONDS):
                await self._agent.status()
        return not self._agent.running

    def _order(
        self, *, record: str | None = None, kill: str | None = None, occurrence: int = 1
    ) -> Order:
        return Order(
            folder=str(self._agent.state),
            from_start=self._scenario.deed is None,
            intrusion=self._scenario.intrusion(self._world) if self._scenario.intrusion else None,
            record=record,
            kill=kill,
            occurrence=occurrence,
        )

    async def _play(self, order: Order) -> None:
        """Do the deed, as far as it comes; a daemon that dies of it has ended."""
        self._restore()
        self._agent.order = order
        if not await self._agent.start_or_die():
            return
        try:
            if self._scenario.deed is not None:
                await self._scenario.deed(self._world, self._images)
            await self._world.settled()
        except aiohttp.ClientError:
            assert await self._agent.ended() == -signal.SIGKILL

    def _restore(self) -> None:
        """Go back to the state that was kept."""
        shutil.rmtree(self._agent.state, ignore_errors=True)
        if self._kept.exists():
            shutil.copytree(self._kept, self._agent.state)
        (self._agent.folder / "log").unlink(missing_ok=True)
        self._world.promised = dict(self._promised)

    async def _look(self) -> None:
        """Start again, and see that nothing is wrong, the deed can be done, and nothing is left."""
        self._agent.order = None
        await self._agent.start()
        await self._world.settled()
        await self._world.assert_sound()
        if self._scenario.deed is not None:
            answer = await self._scenario.deed(self._world, self._images)
            assert answer.status in self._scenario.statuses, answer
            await self._world.settled()
            await self._world.assert_sound()
        await self._scenario.after(self._world, self._images)
        await self._world.clean_up()
        await self._agent.kill()


async def try_all(trials: list[Trial], deaths: list[Death]) -> list[Death]:
    """Die every death, several at a time; give those that came.

    Raises:
        ExceptionGroup: what was wrong after some of them.

    """
    left = list(enumerate(deaths))
    died: dict[int, Death] = {}
    faults: list[Exception] = []

    async def work(trial: Trial) -> None:
        while left:
            number, death = left.pop(0)
            try:
                if await trial.die(death):
                    died[number] = death
            except Exception as fault:  # noqa: BLE001 -- the others are tried all the same
                faults.append(fault)

    await asyncio.gather(*(work(trial) for trial in trials))
    if faults:
        raise ExceptionGroup("a daemon that was killed has left something wrong", faults)
    return [death for _, death in sorted(died.items())]
