"""Which image a person means: by its id, or by a name that is unique."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from cacheagent.model import UUID_PATTERN

if TYPE_CHECKING:
    from cacheagent.client import AsyncClient


async def find_image(client: AsyncClient, text: str) -> str:
    """Give the id of the image. Names are looked for among the images that are cached or coming.

    Raises: ``click.BadParameter`` that lists the ids where several have the name;
    ``click.ClickException`` that asks for the id where none has: the daemon was asked, and the
    command line is in order.
    """
    if re.fullmatch(UUID_PATTERN, text.lower()):
        return text.lower()
    ids = [image["image_id"] for image in await client.images() if image["name"] == text]
    if not ids:
        raise click.ClickException(
            f"no image of the name {text!r} is cached or coming: give its id"
        )
    if len(ids) > 1:
        raise click.BadParameter(
            f"{len(ids)} images have the name {text!r}, give the id of one:\n" + "\n".join(ids)
        )
    return ids[0]
