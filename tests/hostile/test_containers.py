"""Whatever lies in a container: nothing hostile is taken out for good, or shown to qemu-img."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.containers import ova, tar
from tests.hostile.containers import CONTAINERS, described, vmdk
from tests.hostile.table import ADMITTED, Row, content
from tests.hostile.test_corpus import answer, left_over, uploaded

if TYPE_CHECKING:
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig


@pytest.mark.parametrize("row", CONTAINERS, ids=str)
async def test_a_container_is_refused_by_the_rule_it_breaks_and_leaves_nothing(
    rig: Rig, glance: LyingGlance, started: list[tuple[str, ...]], row: Row
) -> None:
    """No program is run on it, and no file of it is left but the one in quarantine."""
    assert await answer(rig, uploaded(glance, row)) == row.expected
    assert started == []
    assert await left_over(rig) == []
    [kept] = (path for path in rig.layout.quarantine.iterdir() if path.suffix != ".json")
    assert kept.read_bytes() == row.build()
    assert rig.parts.room.reserved == 0


GOOD = {
    "as it should be": lambda: ova(vmdk(), len(content())),
    "names with a dot": lambda: tar({f"./{name}": data for name, data in described().items()}),
    "of GNU": lambda: tar(described(), 1),
    "of pax, with times in fractions": lambda: tar(described(), 2, mtime=1.5),
    "with more files": lambda: tar({**described(), "readme.txt": b"", "tools.iso": b"an ISO"}),
    "a coarse unit": lambda: tar(
        described(disk='ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20"')
    ),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_archive_is_taken(rig: Rig, glance: LyingGlance, name: str) -> None:
    """What the tools of this world make is no attack."""
    row = Row(
        name=name,
        build=GOOD[name],
        disk_format="vmdk",
        container_format="ova",
        expected=ADMITTED,
    )
    assert await answer(rig, uploaded(glance, row)) == ADMITTED
