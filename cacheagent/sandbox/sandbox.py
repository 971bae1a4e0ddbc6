"""How programs are shut in on this host, and running them so."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cacheagent.errors import ConfigError, HostUnavailableError
from cacheagent.model import SandboxKind
from cacheagent.process import Completed, Limits, run_limited
from cacheagent.sandbox import bubblewrap, unit
from cacheagent.sandbox.bubblewrap import Files
from cacheagent.sandbox.order import Order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

AT_ONCE: Final = 32
"""Programs that run at a time, however many requests there are: half of what the unit takes."""

_LONG_AT_ONCE: Final = AT_ONCE * 3 // 4
_PROBE_SECONDS: Final = 10


class _Turns:
    """Places for the programs that run; those that take long, and tell how far, have not all."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(AT_ONCE)
        self._long = asyncio.Semaphore(_LONG_AT_ONCE)

    @contextlib.asynccontextmanager
    async def take(self, *, long: bool) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the body of an ``async with``."""
        async with self._long if long else contextlib.nullcontext(), self._all:
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One way of running a program; ``socket`` is where the unit listens, for ``SYSTEMD``."""

    kind: SandboxKind
    socket: Path
    _turns: _Turns = field(default_factory=_Turns, init=False, repr=False, compare=False)

    async def run(
        self,
        argv: Sequence[str],
        *,
        limits: Limits,
        files: Files,
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run a program that needs ``files`` to its end, as ``process.run_limited`` does.

        Raises: ProgramMissingError where the program is not installed, HostUnavailableError
        where it cannot be started, what would shut it in is away, or somebody killed it before
        its end.
        """
        try:
            async with self._turns.take(long=on_stdout is not None):
                return await self._run(argv, limits, files, on_stdout)
        except OSError as error:
            why = error.strerror or error
            raise HostUnavailableError(f"{argv[0]} cannot be run now: {why}") from error

    async def _run(
        self,
        argv: Sequence[str],
        limits: Limits,
        files: Files,
        on_stdout: Callable[[bytes], None] | None,
    ) -> Completed:
        if self.kind is SandboxKind.RLIMITS:
            return await run_limited(argv, limits=limits, on_stdout=on_stdout)
        try:
            await asyncio.to_thread(bubblewrap.make_targets, files)
        except OSError as error:
            words = f"{error.filename}: {error.strerror}"
            return Completed(returncode=1, stdout=b"", stderr=words)
        if self.kind is SandboxKind.BUBBLEWRAP:
            return await bubblewrap.run(argv, limits=limits, files=files, on_stdout=on_stdout)
        order = Order(argv=tuple(argv), limits=limits, files=files)
        return await unit.run(self.socket, order, on_stdout=on_stdout)


async def find_sandbox(
    wanted: SandboxKind | None,
    *,
    socket: Path,
    program: str,
    on_refusal: Callable[[SandboxKind, str], object],
) -> Sandbox:
    """Give the way of this name; for None the safest one in which ``program`` runs here.

    ``on_refusal`` hears of each safer one why it does not work.

    Raises: ConfigError where the one that is wanted does not work.
    """
    for kind in SandboxKind if wanted is None else (wanted,):
        sandbox = Sandbox(kind=kind, socket=socket)
        why = await _why_not(sandbox, program)
        if why is None:
            return sandbox
        if wanted is not None:
            raise ConfigError(f"qemu.sandbox: {wanted} does not work here: {why}")
        on_refusal(kind, why)
    return Sandbox(kind=SandboxKind.RLIMITS, socket=socket)


async def _why_not(sandbox: Sandbox, program: str) -> str | None:
    """Run the program for its version, and tell why that fails. Limits alone need no trial."""
    if sandbox.kind is SandboxKind.RLIMITS:
        return None
    limits = Limits(cpu_seconds=_PROBE_SECONDS)
    try:
        done = await sandbox.run([program, "--version"], limits=limits, files=Files())
    except HostUnavailableError as error:
        return str(error)
    return None if done.returncode == 0 else done.last_words
