"""The command that makes a pass of eviction, or tells its plan."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from cacheagent.cli.plain import doubt, printable, short_time
from cacheagent.cli.settings import Settings, client_options, pass_settings
from cacheagent.cli.sizes import shown, size_argument
from cacheagent.cli.text import print_rows
from cacheagent.errors import RequestFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheagent.client import AsyncClient
    from cacheagent.client.shapes import (
        EvictedShape,
        PrunedShape,
        SkippedShape,
        StayingShape,
        UserShape,
    )

    Names = Mapping[str, str]
    Entry = EvictedShape | StayingShape | SkippedShape

_UNAUTHENTICATED = 401


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would go, and what would stay.")
@click.option(
    "--free",
    "free_bytes",
    type=size_argument,
    metavar="SIZE",
    help="Free so much, as 20GiB; without it: what the configuration asks for.",
)
@client_options
@pass_settings
def prune(settings: Settings, *, dry_run: bool, free_bytes: int | None) -> None:
    """Make one pass of eviction now, and tell what went and what stays.

    It is done also where it could free less than was asked for: it says so.
    """

    async def work(client: AsyncClient) -> tuple[PrunedShape, Names]:
        # Before the pass: what goes has no name afterwards.
        names = await _names(client)
        return await client.prune(dry_run=dry_run, free_bytes=free_bytes), names

    pruned, names = settings.ask(work)
    settings.show(pruned, lambda pruned: _print(pruned, names))


async def _names(client: AsyncClient) -> Names:
    try:
        return {image["image_id"]: image["name"] for image in await client.images()}
    except RequestFailedError as error:
        # With api.require_token root may make a pass without a token, and sees no list.
        if error.status != _UNAUTHENTICATED:
            raise
        return {}


def _print(pruned: PrunedShape, names: Names) -> None:
    verb = "would go" if pruned["dry_run"] else "went"
    _say(f"{_bases(pruned['evicted'])} {verb}, {shown(pruned['freed_bytes'])} freed")
    if dropped := len(pruned["dropped"]):
        _say(f"{dropped} refused image{'' if dropped == 1 else 's'} {verb} from quarantine")
    if pruned["evicted"]:
        print_rows(
            ("BASE OF", "NAME", "REASON", "ON DISK", "LAST USED"),
            (
                (*_named(each, names), each["reason"], shown(each["bytes"]), _used(each))
                for each in pruned["evicted"]
            ),
        )
    staying = [
        *((*_named(each, names), shown(each["bytes"]), _kept(each)) for each in pruned["stay"]),
        *((*_named(each, names), shown(each["bytes"]), _late(each)) for each in _skipped(pruned)),
    ]
    if staying:
        _say("", f"{_bases(staying)} {'would stay' if pruned['dry_run'] else 'stayed'}")
        print_rows(("BASE OF", "NAME", "ON DISK", "WHY"), staying)
    users = (user for each in pruned["stay"] for user in each["users"])
    doubts = (doubt(user) for user in users if user["kind"] == "doubt")
    for each in dict.fromkeys(doubts):
        _say("", f"nothing is evicted while nobody can tell who uses what: {each}")
    if pruned["unmet_bytes"]:
        _say("", f"{shown(pruned['unmet_bytes'])} that are needed cannot be freed")
    if pruned["unmet_inodes"]:
        _say("", f"{pruned['unmet_inodes']} files that are needed cannot be freed")


def _skipped(pruned: PrunedShape) -> Iterator[SkippedShape]:
    """Give what was skipped and is not told as staying by the last plan already."""
    told = {each["base_id"] for each in pruned["stay"]}
    return (each for each in pruned["skipped"] if each["base_id"] not in told)


def _named(entry: Entry, names: Names) -> tuple[str, str | None]:
    """Give an image of the base, by id and name, and how many others there are."""
    ids = entry["image_ids"]
    if not ids:
        return entry["base_id"], None
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"{ids[0]}{more}", names.get(ids[0])


def _kept(stay: StayingShape) -> str:
    if stay["users"]:
        return _users(stay["users"])
    rules = ", ".join(stay["rules"])
    until = f" until {short_time(stay['free_at'])}" if "min_age" in stay["rules"] else ""
    place = f", number {stay['position']} to go" if stay["position"] is not None else ""
    return f"{rules}{until}{place}"


def _late(skipped: SkippedShape) -> str:
    users = skipped["users"]
    # Such a doubt may be about this one base alone, and about no other file.
    doubts = (doubt(user) for user in users if user["kind"] == "doubt")
    return f"{'; '.join((_users(users), *doubts))}, seen at the last look"


def _users(users: Sequence[UserShape]) -> str:
    counted = Counter(user["kind"] for user in users)
    return ", ".join(
        f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(counted.items())
    )


def _used(each: EvictedShape) -> str | None:
    return short_time(each["last_used_at"])


def _bases(found: Sequence[object]) -> str:
    return f"{len(found)} base{'' if len(found) == 1 else 's'}"


def _say(*lines: str) -> None:
    for line in lines:
        click.echo(printable(line))
