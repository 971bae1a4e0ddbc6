"""The client for programs without asyncio: each method blocks, in whichever thread it is called."""

from __future__ import annotations

import http.client
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Unpack, cast

from cacheagent.client import calls, sse
from cacheagent.client.calls import Address, Call, Caller

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator

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


class Client:
    """Speaks to one daemon. It keeps no connection, so threads may share it, and none is closed.

    The arguments are those of ``AsyncClient``; ``seconds`` limits each silence of the daemon.
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
        self._address = Address.find(address)
        self._caller = Caller(token=token, bearer=bearer, request_id=request_id)
        self._tls = tls
        self._seconds = seconds

    def on_behalf_of(self, *, token: str | None, request_id: str | None = None) -> Client:
        """Give a client that asks for another tenant."""
        return Client(
            self._address.text,
            token=token,
            bearer=self._caller.bearer,
            request_id=request_id,
            tls=self._tls,
            seconds=self._seconds,
        )

    def create_disk(
        self, instance_id: str, name: str, *, wait: bool = True, **wish: Unpack[DiskWish]
    ) -> DiskShape:
        """Create a disk, or give the one that is there with this specification.

        Without ``wait`` the disk may be ``pending``: ask for it by ``disk`` until it is not.
        """
        answer = self._ask(calls.create_disk(instance_id, name, wish, wait=wait))
        return cast("DiskShape", answer)

    def disk(self, instance_id: str, name: str) -> DiskShape:
        """Give one disk."""
        return cast("DiskShape", self._ask(calls.get(calls.disk_path(instance_id, name))))

    def delete_disk(self, instance_id: str, name: str) -> None:
        """Remove a disk; it is no error where it is gone already."""
        self._ask(calls.delete(calls.disk_path(instance_id, name)))

    def instances(self) -> list[InstanceShape]:
        """Give all instances with their disks."""
        answer = self._ask(calls.get("/v1/instances"))
        return cast("dict[str, list[InstanceShape]]", answer)["instances"]

    def instance(self, instance_id: str) -> InstanceShape:
        """Give one instance with its disks."""
        return cast("InstanceShape", self._ask(calls.get(calls.instance_path(instance_id))))

    def delete_instance(self, instance_id: str) -> None:
        """Remove all disks of an instance; it is no error where they are gone already."""
        self._ask(calls.delete(calls.instance_path(instance_id)))

    def images(self) -> list[ImageShape]:
        """Give all images that are cached or coming."""
        answer = self._ask(calls.get("/v1/images"))
        return cast("dict[str, list[ImageShape]]", answer)["images"]

    def image(self, image_id: str) -> ImageShape:
        """Give one image that is cached or coming."""
        return cast("ImageShape", self._ask(calls.get(calls.image_path(image_id))))

    def pull(self, image_id: str, *, pin: bool = False, wait: bool = False) -> ImageShape:
        """Bring an image in before it is needed; without ``wait`` it may still be coming."""
        return cast("ImageShape", self._ask(calls.pull(image_id, pin=pin, wait=wait)))

    def pin(self, image_id: str) -> None:
        """Keep the base of an image until it is unpinned."""
        self._ask(calls.pin(image_id))

    def unpin(self, image_id: str) -> None:
        """Keep the base of an image no longer than any other; it is no error without a pin."""
        self._ask(calls.delete(calls.pin_path(image_id)))

    def evict(self, image_id: str) -> None:
        """Evict the base of an image now."""
        self._ask(calls.delete(calls.image_path(image_id)))

    def verify(self, image_id: str) -> VerificationShape:
        """Read the base of an image again and compare its digest; a damaged one goes."""
        return cast("VerificationShape", self._ask(calls.verify(image_id)))

    def why(self, image_id: str) -> WhyShape:
        """Tell why an image stays, or when it goes."""
        return cast("WhyShape", self._ask(calls.get(calls.why_path(image_id))))

    def prune(self, *, dry_run: bool = False, free_bytes: int | None = None) -> PrunedShape:
        """Make one pass of eviction: for so many bytes, or for what the bounds ask for."""
        answer = self._ask(calls.prune(dry_run=dry_run, free_bytes=free_bytes))
        return cast("PrunedShape", answer)

    def events(self, after: str | None = None) -> Generator[EventShape, None, None]:
        """Give what happens from now on, or behind the event of the id ``after``, for ever.

        Behind a cut it goes on where it was; the event ``missed`` comes where the daemon does not
        remember all. It raises where the daemon does not answer any more.
        """
        stream = sse.Lines(after)
        while True:
            with closing(self._lines(stream.call())) as lines:
                for line in lines:
                    if (event := stream.feed(line)) is not None:
                        yield event
            time.sleep(sse.RECONNECT_SECONDS)

    def status(self) -> StatusShape:
        """Give the state of the agent."""
        return cast("StatusShape", self._ask(calls.get("/v1/status")))

    def _lines(self, call: Call) -> Generator[bytes, None, None]:
        """Give the lines of a stream until it is cut."""
        connection, begun = self._connection(sse.SILENCE_SECONDS), False
        try:
            connection.request(call.method, call.path, None, call.all_headers(self._caller))
            response = connection.getresponse()
            begun = response.headers.get_content_type() == sse.MEDIA_TYPE
            while begun and (line := response.readline()):
                yield line
            body = b"" if begun else response.read()
        except (http.client.HTTPException, OSError) as error:
            if begun:
                return
            raise self._address.unreachable(error) from error
        finally:
            connection.close()
        if not begun:
            calls.refuse(self._address, response.status, response.headers["Retry-After"], body)

    def _ask(self, call: Call) -> object:
        """Ask until it is not refused any more for being too often, or for too long."""
        tried = 1
        status, retry_after, body = self._ask_once(call)
        while (wait := calls.wait_before_again(status, retry_after, tried)) is not None:
            time.sleep(wait)
            tried += 1
            status, retry_after, body = self._ask_once(call)
        return calls.answer(self._address, status, retry_after, body)

    def _ask_once(self, call: Call) -> tuple[int, str | None, bytes]:
        connection = self._connection(self._seconds)
        try:
            connection.request(
                call.method, call.path, call.encoded(), call.all_headers(self._caller)
            )
            response = connection.getresponse()
            body = response.read()
        except (http.client.HTTPException, OSError) as error:
            raise self._address.unreachable(error) from error
        finally:
            connection.close()
        return response.status, response.headers["Retry-After"], body

    def _connection(self, seconds: float | None) -> http.client.HTTPConnection:
        if self._address.path is not None:
            return _UnixConnection(self._address.path, seconds)
        host, port = self._address.host, self._address.port
        if self._address.tls:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=seconds)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, seconds: float | None) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; ``http.client`` calls it for the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
