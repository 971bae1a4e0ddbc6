"""The client for asyncio."""

from __future__ import annotations

import asyncio
import copy
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, Unpack, cast

import aiohttp
from yarl import URL

from cacheagent.client import calls, sse
from cacheagent.client.calls import Address, Call, Caller

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from cacheagent.client.shapes import (
        DiskShape,
        DiskWish,
        EventShape,
        ImageShape,
        InstanceShape,
        PrunedShape,
        StatusShape,
        VerificationShape,
        WhyShape,
    )

_CONNECT_SECONDS = 10.0

_STREAM_TIMEOUT = aiohttp.ClientTimeout(
    sock_connect=_CONNECT_SECONDS, sock_read=sse.SILENCE_SECONDS
)


class AsyncClient:
    """Speaks to one daemon, by any number of requests at once. Close it, or use ``async with``.

    ``address`` is the path of a Unix socket or a URL; ``token`` the Keystone token of the tenant
    whose disks are made; ``bearer`` what the daemon demands over TCP; ``tls`` what an https
    address is checked with, by default the authorities of this host. ``seconds`` limits each
    request as a whole; without it a disk is waited for as long as its image takes to come.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        bearer: str | None = None,
        request_id: str | None = None,
        tls: ssl.SSLContext | None = None,
        seconds: float | None = None,
    ) -> None:
        self._caller = Caller(token=token, bearer=bearer, request_id=request_id)
        self._connection = _Connection(Address.find(address), tls, seconds)

    def on_behalf_of(self, *, token: str | None, request_id: str | None = None) -> AsyncClient:
        """Give a client that asks for another tenant, over the connections of this one."""
        caller = Caller(token=token, bearer=self._caller.bearer, request_id=request_id)
        other = copy.copy(self)
        other._caller = caller  # noqa: SLF001 -- it is one of us, and nobody has it yet
        return other

    async def create_disk(
        self, instance_id: str, name: str, *, wait: bool = True, **wish: Unpack[DiskWish]
    ) -> DiskShape:
        """Create a disk, or give the one that is there with this specification.

        Without ``wait`` the disk may be ``pending``: ask for it by ``disk`` until it is not.
        """
        answer = await self._ask(calls.create_disk(instance_id, name, wish, wait=wait))
        return cast("DiskShape", answer)

    async def disk(self, instance_id: str, name: str) -> DiskShape:
        """Give one disk."""
        return cast("DiskShape", await self._ask(calls.get(calls.disk_path(instance_id, name))))

    async def delete_disk(self, instance_id: str, name: str) -> None:
        """Remove a disk; it is no error where it is gone already."""
        await self._ask(calls.delete(calls.disk_path(instance_id, name)))

    async def instances(self) -> list[InstanceShape]:
        """Give all instances with their disks."""
        answer = await self._ask(calls.get("/v1/instances"))
        return cast("dict[str, list[InstanceShape]]", answer)["instances"]

    async def instance(self, instance_id: str) -> InstanceShape:
        """Give one instance with its disks."""
        return cast("InstanceShape", await self._ask(calls.get(calls.instance_path(instance_id))))

    async def delete_instance(self, instance_id: str) -> None:
        """Remove all disks of an instance; it is no error where they are gone already."""
        await self._ask(calls.delete(calls.instance_path(instance_id)))

    async def images(self) -> list[ImageShape]:
        """Give all images that are cached or coming."""
        answer = await self._ask(calls.get("/v1/images"))
        return cast("dict[str, list[ImageShape]]", answer)["images"]

    async def image(self, image_id: str) -> ImageShape:
        """Give one image that is cached or coming."""
        return cast("ImageShape", await self._ask(calls.get(calls.image_path(image_id))))

    async def pull(self, image_id: str, *, pin: bool = False, wait: bool = False) -> ImageShape:
        """Bring an image in before it is needed; without ``wait`` it may still be coming."""
        return cast("ImageShape", await self._ask(calls.pull(image_id, pin=pin, wait=wait)))

    async def pin(self, image_id: str) -> None:
        """Keep the base of an image until it is unpinned."""
        await self._ask(calls.pin(image_id))

    async def unpin(self, image_id: str) -> None:
        """Keep the base of an image no longer than any other; it is no error without a pin."""
        await self._ask(calls.delete(calls.pin_path(image_id)))

    async def evict(self, image_id: str) -> None:
        """Evict the base of an image now."""
        await self._ask(calls.delete(calls.image_path(image_id)))

    async def verify(self, image_id: str) -> VerificationShape:
        """Read the base of an image again and compare its digest; a damaged one goes."""
        return cast("VerificationShape", await self._ask(calls.verify(image_id)))

    async def why(self, image_id: str) -> WhyShape:
        """Tell why an image stays, or when it goes."""
        return cast("WhyShape", await self._ask(calls.get(calls.why_path(image_id))))

    async def prune(self, *, dry_run: bool = False, free_bytes: int | None = None) -> PrunedShape:
        """Make one pass of eviction: for so many bytes, or for what the bounds ask for."""
        answer = await self._ask(calls.prune(dry_run=dry_run, free_bytes=free_bytes))
        return cast("PrunedShape", answer)

    async def events(self, after: str | None = None) -> AsyncGenerator[EventShape, None]:
        """Give what happens from now on, or behind the event of the id ``after``, for ever.

        Behind a cut it goes on where it was; the event ``missed`` comes where the daemon does not
        remember all. It raises where the daemon does not answer any more.
        """
        stream = sse.Lines(after)
        while True:
            async with aclosing(self._connection.lines(stream.call(), self._caller)) as lines:
                async for line in lines:
                    if (event := stream.feed(line)) is not None:
                        yield event
            await asyncio.sleep(sse.RECONNECT_SECONDS)

    async def status(self) -> StatusShape:
        """Give the state of the agent."""
        return cast("StatusShape", await self._ask(calls.get("/v1/status")))

    async def close(self) -> None:
        """Close all connections, those of clients on behalf of others among them."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, call: Call) -> object:
        return await self._connection.ask(call, self._caller)


class _Connection:
    """The way to the daemon, opened by the first request: a session belongs to its loop."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, seconds: float | None) -> None:
        self._address = address
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, call: Call, caller: Caller) -> object:
        try:
            async with asyncio.timeout(self._timeout.total):
                status, retry_after, body = await self._persist(call, caller)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._address.unreachable(error) from error
        return calls.answer(self._address, status, retry_after, body)

    async def _persist(self, call: Call, caller: Caller) -> tuple[int, str | None, bytes]:
        """Ask until it is not refused any more for being too often, or for too long."""
        tried = 1
        answer = await self._ask_once(call, caller)
        while (wait := calls.wait_before_again(answer[0], answer[1], tried)) is not None:
            await asyncio.sleep(wait)
            tried += 1
            answer = await self._ask_once(call, caller)
        return answer

    async def _ask_once(self, call: Call, caller: Caller) -> tuple[int, str | None, bytes]:
        async with self._request(call, caller, self._timeout) as response:
            body = await response.read()
        return response.status, response.headers.get("Retry-After"), body

    async def lines(self, call: Call, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Give the lines of a stream until it is cut."""
        begun = False
        try:
            async with self._request(call, caller, _STREAM_TIMEOUT) as response:
                begun = response.content_type == sse.MEDIA_TYPE
                if begun:
                    async for line in response.content:
                        yield line
                    return
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if begun:
                return
            raise self._address.unreachable(error) from error
        calls.refuse(self._address, response.status, response.headers.get("Retry-After"), body)

    def _request(
        self, call: Call, caller: Caller, timeout: aiohttp.ClientTimeout
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = self._open()
        return self._session.request(
            call.method,
            URL(self._address.origin + call.path, encoded=True),
            data=call.encoded(),
            headers=call.all_headers(caller),
            allow_redirects=False,
            timeout=timeout,
        )

    def _open(self) -> aiohttp.ClientSession:
        # No limit on connections: requests that wait for a download must not hold up others.
        connector: aiohttp.BaseConnector
        if self._address.path is not None:
            connector = aiohttp.UnixConnector(self._address.path, limit=0)
        else:
            tls = True if self._tls is None else self._tls
            connector = aiohttp.TCPConnector(limit=0, ssl=tls)
        return aiohttp.ClientSession(connector=connector)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
