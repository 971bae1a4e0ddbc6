"""The library that schedulers import: ``AsyncClient``, and ``Client`` without asyncio.

::

    async with AsyncClient() as client:
        disk = await client.create_disk(instance_id, "root", image_id=image_id)
        disk["path"]

Both speak to the daemon of this host over its Unix socket: the one given, that of
``$CACHEAGENT_SOCKET``, or the default. ``http://host:port`` and ``https://host:port`` in place of
a path go over TCP. Answers are the JSON of the API. Every method raises

- ``RequestFailedError`` where the daemon refuses or fails: ``status`` and ``problem`` tell why.
  Where the daemon says when to try again, ``problem["retry_after"]`` has the seconds;
- ``DaemonUnreachableError`` where no daemon answers.

Two things are tried again here: what was answered by 429, up to five times, when the daemon says;
and a stream of events that was cut. The rest is left to who calls, and knows how long to go on.
"""

from cacheagent.client.aio import AsyncClient
from cacheagent.client.blocking import Client
from cacheagent.client.shapes import DiskWish

__all__ = ["AsyncClient", "Client", "DiskWish"]
