"""Commands about images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cacheagent.cli.ending import REFUSED
from cacheagent.cli.names import find_image
from cacheagent.cli.plain import printable, short_time
from cacheagent.cli.progress import with_bar, with_spinner
from cacheagent.cli.settings import Settings, client_options, pass_settings
from cacheagent.cli.sizes import shown
from cacheagent.cli.text import print_facts, print_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.client import AsyncClient
    from cacheagent.client.shapes import ImageShape, UserShape, VerificationShape, WhyShape


@click.group()
@client_options
def image() -> None:
    """Look at the cached images, bring them in, pin them, verify them, evict them."""


@image.command("list")
@client_options
@pass_settings
def list_images(settings: Settings) -> None:
    """List the images that are cached or coming."""
    settings.show(settings.ask(lambda client: client.images()), _print_images)


@image.command()
@click.argument("image")
@client_options
@pass_settings
def show(settings: Settings, image: str) -> None:
    """Show one image, with its progress and its users. IMAGE is an id or a unique name."""

    async def work(client: AsyncClient) -> ImageShape:
        return await client.image(await find_image(client, image))

    settings.show(settings.ask(work), _print_image)


@image.command()
@click.argument("image")
@click.option("--pin", is_flag=True, help="Keep it until it is unpinned.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is here.  [default: wait]")
@client_options
@pass_settings
def pull(settings: Settings, image: str, *, pin: bool, wait: bool) -> None:
    """Bring an image in before it is needed. IMAGE is an id, or the name of one that is coming."""

    async def work(client: AsyncClient) -> ImageShape:
        image_id = await find_image(client, image)
        return await with_bar(client, image_id, client.pull(image_id, pin=pin, wait=wait))

    settings.show(settings.ask(work), _print_image)


@image.command()
@click.argument("image")
@client_options
@pass_settings
def evict(settings: Settings, image: str) -> None:
    """Evict the base of an image now. IMAGE is an id or a unique name."""

    async def work(client: AsyncClient) -> str:
        image_id = await find_image(client, image)
        await client.evict(image_id)
        return image_id

    settings.tell(f"image {settings.ask(work)} evicted")


@image.command()
@click.argument("image")
@client_options
@pass_settings
def pin(settings: Settings, image: str) -> None:
    """Keep an image until it is unpinned. IMAGE is an id or a unique name."""

    async def work(client: AsyncClient) -> str:
        image_id = await find_image(client, image)
        await client.pin(image_id)
        return image_id

    settings.tell(f"image {settings.ask(work)} pinned")


@image.command()
@click.argument("image")
@client_options
@pass_settings
def unpin(settings: Settings, image: str) -> None:
    """Keep an image no longer than any other. IMAGE is an id or a unique name."""

    async def work(client: AsyncClient) -> str:
        image_id = await find_image(client, image)
        await client.unpin(image_id)
        return image_id

    settings.tell(f"image {settings.ask(work)} unpinned")


@image.command()
@click.argument("image")
@client_options
@pass_settings
def verify(settings: Settings, image: str) -> None:
    """Read a base again and compare its digest; exit status 1 where it is damaged.

    A damaged base is taken out of use, and fetched anew if a disk needs it. IMAGE is an id or a
    unique name.
    """

    async def work(client: AsyncClient) -> VerificationShape:
        image_id = await find_image(client, image)
        return await with_spinner("reading the base", client.verify(image_id))

    done = settings.ask(work)
    settings.show(done, lambda done: print_facts(_verification(done)))
    if done["outcome"] == "damaged":
        click.get_current_context().exit(REFUSED)


@image.command()
@click.argument("image")
@client_options
@pass_settings
def why(settings: Settings, image: str) -> None:
    """Tell why an image stays, or when it goes. IMAGE is an id or a unique name."""

    async def work(client: AsyncClient) -> WhyShape:
        return await client.why(await find_image(client, image))

    settings.show(settings.ask(work), _print_why)


def _verification(done: VerificationShape) -> Iterator[tuple[str, object]]:
    yield "image", done["image_id"]
    yield "outcome", done["outcome"]
    if done["error"]:
        yield "error", done["error"]
    yield done["algorithm"], done["actual"]
    if done["actual"] != done["expected"]:
        yield "expected", done["expected"]
    rate = int(done["bytes_read"] / done["seconds"]) if done["seconds"] else None
    yield "read", f"{shown(done['bytes_read'])} in {done['seconds']:.1f} s"
    yield "rate", None if rate is None else f"{shown(rate)}/s"


def _print_why(found: WhyShape) -> None:
    click.echo(printable(found["summary"]))
    click.echo()
    print_facts((name, value) for name, value in _reasons(found) if value is not None)


def _reasons(found: WhyShape) -> Iterator[tuple[str, object]]:
    bounds = found["bounds"]
    yield "image", found["image_id"]
    yield "state", found["state"]
    yield "verdict", found["verdict"]
    yield "reason", found["reason"]
    for user in found["users"]:
        yield "used by", _user(user)
    if not found["users"]:
        yield "rules", ", ".join(found["rules"]) or None
    if found["position"] is not None:
        yield "in the order", f"number {found['position']} of {found['unused_bases']}"
    yield "min_age until", found["free_at"]
    yield "max_idle at", found["idle_at"]
    yield "fetched", found["fetched_at"]
    yield "last used", found["last_used_at"]
    yield "on disk", shown(found["allocated_bytes"])
    most = bounds["max_size_bytes"]
    yield "cache", f"{shown(bounds['cache_bytes'])}" + (f", at most {shown(most)}" if most else "")
    used, size = shown(bounds["used_bytes"]), shown(bounds["size_bytes"])
    low, high = shown(bounds["low_watermark_bytes"]), shown(bounds["high_watermark_bytes"])
    yield "file system", f"{used} of {size} used, watermarks {low} and {high}"
    yield "free", f"{shown(bounds['free_bytes'])}, at least {shown(bounds['min_free_bytes'])}"
    yield "needed", shown(bounds["needed_bytes"])


def _state(image: ImageShape) -> str:
    progress = image["progress"]
    if progress is None or not progress["bytes_total"]:
        return image["state"]
    return f"{image['state']} {progress['bytes_done'] * 100 // progress['bytes_total']} %"


def _print_images(images: list[ImageShape]) -> None:
    print_rows(
        ("IMAGE", "NAME", "STATE", "FORMAT", "SIZE", "ON DISK", "IN USE", "LAST USED"),
        (
            (
                image["image_id"],
                image["name"],
                _state(image),
                image["disk_format"],
                shown(image["virtual_size_bytes"]),
                shown(image["allocated_bytes"]),
                "pinned" if image["pinned"] else "yes" if image["in_use"] else "no",
                short_time(image["last_used_at"]),
            )
            for image in images
        ),
        spare=("FORMAT", "ON DISK", "LAST USED", "SIZE"),
    )


def _print_image(image: ImageShape) -> None:
    print_facts(_facts(image))


def _facts(image: ImageShape) -> Iterator[tuple[str, object]]:
    base = image["base"]
    yield "image", image["image_id"]
    yield "name", image["name"]
    yield "state", _state(image)
    yield "format", image["disk_format"]
    yield "download", shown(image["size_bytes"])
    yield "virtual size", shown(image["virtual_size_bytes"])
    yield "on disk", shown(image["allocated_bytes"])
    yield "base", base and base["path"]
    yield "pinned", "yes" if image["pinned"] else "no"
    yield "fetched", image["fetched_at"]
    yield "last used", image["last_used_at"]
    for user in image["users"]:
        yield "used by", _user(user)
    if image["error"]:
        yield "error", image["error"]


def _user(user: UserShape) -> str:
    return " ".join(str(value) for value in user.values() if value is not None)
