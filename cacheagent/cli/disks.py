"""Commands about disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from cacheagent.cli.names import find_image
from cacheagent.cli.progress import with_bar
from cacheagent.cli.settings import Settings, client_options, pass_settings
from cacheagent.cli.sizes import size_argument
from cacheagent.cli.text import print_facts, print_rows
from cacheagent.client import shapes
from cacheagent.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

    from cacheagent.client import AsyncClient, DiskWish
    from cacheagent.client.shapes import DiskShape


@click.group()
@client_options
def disk() -> None:
    """Create, look at and remove disks of instances."""


@disk.command()
@click.argument("instance")
@click.argument("name")
@click.option("--image", "image_id", metavar="IMAGE", help="Its id, or a unique name.")
@click.option(
    "--size",
    "size_bytes",
    type=size_argument,
    metavar="SIZE",
    help="As 20GiB; without it: the image's.",
)
@click.option("--format", type=click.Choice(get_args(shapes.DiskFormat)))
@click.option("--mode", type=click.Choice(get_args(shapes.DiskMode)))
@click.option("--filesystem", type=click.Choice(get_args(shapes.FileSystem)), help="If blank.")
@click.option("--label", help="The label of the file system.")
@click.option("--wait/--no-wait", default=True, help="Wait for the disk.  [default: wait]")
@client_options
@pass_settings
def create(
    settings: Settings, instance: str, name: str, *, wait: bool, **wish: Unpack[DiskWish]
) -> None:
    """Create the disk NAME of INSTANCE, or show it where it is there already."""

    async def work(client: AsyncClient) -> DiskShape:
        if (image := wish["image_id"]) is not None:
            wish["image_id"] = await find_image(client, image)
        creation = client.create_disk(instance, name, wait=wait, **wish)
        return await with_bar(client, wish["image_id"], creation)

    settings.show(settings.ask(work), _print_disk)


@disk.command()
@click.argument("instance")
@click.argument("name")
@client_options
@pass_settings
def show(settings: Settings, instance: str, name: str) -> None:
    """Show the disk NAME of INSTANCE."""
    settings.show(settings.ask(lambda client: client.disk(instance, name)), _print_disk)


@disk.command("list")
@click.option("--instance", help="Only those of this instance.")
@client_options
@pass_settings
def list_disks(settings: Settings, instance: str | None) -> None:
    """List disks."""

    async def work(client: AsyncClient) -> list[DiskShape]:
        found = [await client.instance(instance)] if instance else await client.instances()
        return [disk for one in found for disk in one["disks"]]

    settings.show(settings.ask(work), _print_disks)


@disk.command()
@click.argument("instance")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="All disks of the instance.")
@client_options
@pass_settings
def delete(settings: Settings, instance: str, name: str | None, *, everything: bool) -> None:
    """Remove the disk NAME of INSTANCE, or all of them; what is gone already is no error."""
    if (name is None) != everything:
        raise click.UsageError("give the name of a disk, or --all")

    async def work(client: AsyncClient) -> None:
        if name is None:
            await client.delete_instance(instance)
        else:
            await client.delete_disk(instance, name)

    settings.ask(work)
    what = "all disks" if name is None else f"disk {name}"
    settings.tell(f"{what} of instance {instance}: gone")


def _virtual_size(disk: DiskShape) -> str | None:
    # One that is pending or failed may have none yet, and the API then says 0.
    size = disk["virtual_size_bytes"]
    return format_size(size) if size and disk["state"] == "ready" else None


def _print_disk(disk: DiskShape) -> None:
    base = disk["base"]
    print_facts(
        [
            ("instance", disk["instance_id"]),
            ("name", disk["name"]),
            ("state", disk["state"]),
            ("path", disk["path"]),
            ("size", _virtual_size(disk)),
            ("format", disk["format"]),
            ("mode", disk["mode"]),
            ("image", disk["image_id"]),
            ("base", base and base["path"]),
            ("cache", disk["cache"]),
            *_boot_files(disk),
            ("created", disk["created_at"]),
            *([("error", disk["error"])] if disk["error"] else []),
        ]
    )


def _boot_files(disk: DiskShape) -> Iterator[tuple[str, str]]:
    """Tell what an AMI is started by; nothing of another disk."""
    if (boot := disk["boot"]) is not None:
        for name, file in (("kernel", boot["kernel"]), ("ramdisk", boot["ramdisk"])):
            if file is not None:
                yield name, file["path"]


def _print_disks(disks: list[DiskShape]) -> None:
    print_rows(
        ("INSTANCE", "NAME", "STATE", "SIZE", "FORMAT", "MODE", "IMAGE"),
        (
            (
                disk["instance_id"],
                disk["name"],
                disk["state"],
                _virtual_size(disk),
                disk["format"],
                disk["mode"],
                disk["image_id"],
            )
            for disk in disks
        ),
        spare=("IMAGE", "MODE", "FORMAT"),
    )
