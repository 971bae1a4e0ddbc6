"""What the tests of crashes tell at the end: where the daemon was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("tests.crash.world", "tests.crash.trial")

from tests.crash.report import KILLED  # noqa: E402 -- asserts are rewritten on import only

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Print every failpoint."""
    killed = config.stash.get(KILLED, None)
    if not killed:
        return
    terminalreporter.section(f"{killed.total()} daemons were killed, at these steps")
    for failpoint, times in killed.items():
        terminalreporter.write_line(f"{times:3} {failpoint}")
