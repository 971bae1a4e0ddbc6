"""The whole agent, driven at random: after every step everything holds that always holds.

``CACHEAGENT_STATEFUL_STEPS`` says how many steps are made. A run that fails is told step by step,
with a text at its end; with that in ``CACHEAGENT_STATEFUL_REPRODUCE`` the same run is made again.
With ``CACHEAGENT_STATEFUL_SHRINK=1`` the failure is made smaller first, which takes minutes.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from structlog.testing import capture_logs

from tests.needs import require_programs
from tests.stateful.filesystem import small_file_system
from tests.stateful.images import make_images
from tests.stateful.imageservice import image_service
from tests.stateful.machine import Whole
from tests.stateful.world import Host

if TYPE_CHECKING:
    from pathlib import Path

STEPS = int(os.environ.get("CACHEAGENT_STATEFUL_STEPS", "2000"))
SHRINK = os.environ.get("CACHEAGENT_STATEFUL_SHRINK") == "1"
BLOB = os.environ.get("CACHEAGENT_STATEFUL_REPRODUCE")
STEPS_OF_A_RUN = 50
FILE_SYSTEM_BYTES = 24 << 20
SECONDS = 600 + STEPS // 4
"""Much more than it takes; to look for a smaller failure takes some minutes."""


def run_the_model(host: Host, runs: int) -> str | None:
    """Make so many runs of the model; give the story of one that failed."""

    def whole() -> Whole:
        machine = Whole()
        machine.host = host
        return machine

    if BLOB is not None:
        whole = hypothesis.reproduce_failure(hypothesis.__version__, BLOB.encode())(whole)
    chosen = settings(
        max_examples=runs,
        stateful_step_count=STEPS_OF_A_RUN,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(whole, settings=chosen)  # type: ignore[arg-type]  # a factory
    except Exception as error:  # noqa: BLE001 -- whatever it was, its notes tell the steps
        return "".join((*host.failures[:1], *traceback.format_exception(error)))
    return None


# An agent that is killed while it reads a part leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.timeout(SECONDS)
def test_invariants_hold_after_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is asked, done by hand, killed or filled up, in whatever order: nothing breaks."""
    require_programs("qemu-img", "mkswap")
    folder = tmp_path / "small"
    folder.mkdir()
    images = make_images(tmp_path)
    with (
        small_file_system(folder, FILE_SYSTEM_BYTES) as system,
        image_service(images) as service,
        capture_logs() as log,
    ):
        host = Host(system=system, images=images, service=service, log=log)
        while (left := STEPS - host.steps.total()) > 0:
            if (told := run_the_model(host, -(-left // STEPS_OF_A_RUN))) is not None:
                pytest.fail(told, pytrace=False)
    with capsys.disabled():
        print(f"\n{host.steps.total()} steps, the file system real: {system.real}")  # noqa: T201 -- what it was
        print("  ".join(f"{name}: {count}" for name, count in sorted(host.steps.items())))  # noqa: T201
        print("  ".join(f"{name}: {count}" for name, count in host.happened.items()))  # noqa: T201
    assert host.steps.total() >= STEPS
