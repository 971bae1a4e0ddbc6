"""The image service of the test: in a thread and a loop of its own, so that no kill hits it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from tests.fakes.lying_glance import LyingGlance, cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cacheagent.model import BaseId
    from tests.stateful.images import Image


class ImageService:
    """Glance as the model has it: which images are there, active, and how often they were sent."""

    def __init__(self, glance: LyingGlance, images: Sequence[Image]) -> None:
        self._glance = glance
        self.images = {image.image_id: image for image in images}
        self.standing: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._glance.url

    def reset(self) -> None:
        """Have every image, active, and forget all that was asked."""
        self.standing = dict.fromkeys(self.images, "active")
        self._glance.images.clear()
        self._glance.seen.clear()
        for image in self.images.values():
            self.tell(image, "active")

    def tell(self, image: Image, status: str) -> None:
        """Have an image active, deactivated or gone."""
        self.standing[image.image_id] = status
        self._glance.images.pop(image.image_id, None)
        if status != "gone":
            self._glance.add(
                image.data,
                id=image.image_id,
                name=image.name,
                status=status,
                disk_format=image.disk_format,
                virtual_size=len(image.content),
            )

    def is_active(self, image: Image) -> bool:
        """Tell whether anybody may have the image."""
        return self.standing[image.image_id] == "active"

    def downloads(self, base_id: BaseId | None = None) -> int:
        """Count the requests for the data of images; of one content alone where that is given."""
        asked = (self.images[seen.image_id] for seen in self._glance.calls("data"))  # type: ignore[index]  # by its id
        return sum(base_id in {None, image.base_id} for image in asked)

    def requests(self) -> int:
        """Count all requests."""
        return len(self._glance.seen)

    @contextlib.contextmanager
    def cutting(self, after: int) -> Iterator[None]:
        """End every connection after so many bytes of data."""
        self._glance.always("data", cut(after))
        try:
            yield
        finally:
            self._glance.truth("data")


@contextlib.contextmanager
def image_service(images: Sequence[Image]) -> Iterator[ImageService]:
    """Run an image service."""
    ready = threading.Event()
    services: list[LyingGlance] = []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with LyingGlance() as service:
            services.append(service)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield ImageService(services[0], images)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
