"""What a download can count on: every lie of an image service is caught, every cut is mended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cacheagent import imageserver
from cacheagent.backends.glance import Contact, Glance, GlanceHooks, GlanceSettings
from cacheagent.backends.glance.sessions import QUESTIONS
from cacheagent.backends.identity import NoIdentity
from cacheagent.errors import (
    ConfigError,
    GlanceRefusedError,
    GlanceUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
    ImageNotFoundError,
    UnauthenticatedError,
)
from cacheagent.model import Caller, ImageId, ImageSignature
from cacheagent.sync.backoff import Backoff
from tests.fakes import lying_glance as lies
from tests.fakes.certificate import write_certificate
from tests.fakes.lying_glance import LyingGlance
from tests.service.rig import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from cacheagent.backends.glance import TokenSource
    from cacheagent.model import GlanceImage

NOBODY = Caller()
TENANT = Caller(
    token="tenant",  # noqa: S106  a name for a token
    request_id="3b241101-e2bb-4255-8caf-4136c566a962",
)
UNKNOWN = ImageId("00000000-0000-4000-8000-000000000000")
SHORT = 1000
"""Characters that a problem has at most, whatever the server said."""

DATA = random.Random(2).randbytes(100_000)  # noqa: S311  the same at each run


@dataclass
class Tokens:
    """An identity with a token that may be renewed from ``old`` to ``new``."""

    urls: Sequence[str]
    current: str | None = "old"
    renewals: int = 0
    unreachable: int = 0

    async def endpoints(self) -> Sequence[str]:
        """Give the URLs."""
        return self.urls

    async def token(self) -> str | None:
        """Give the token, unless Keystone is to be away for this call."""
        if self.unreachable:
            self.unreachable -= 1
            raise GlanceUnavailableError("Keystone is away")
        return self.current

    async def renew(self, refused: str) -> str | None:
        """Count, and give the new token in place of the old one."""
        assert refused in {"old", "new"}
        self.renewals += 1
        self.current = "new"
        return self.current


@dataclass
class Notes:
    """What the client told while it worked, and the waits that it would have made."""

    requests: list[tuple[str, str]] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    throttled: list[int] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    async def wait(self, seconds: float) -> None:
        """Note a wait."""
        self.waits.append(seconds)

    def throttle(self) -> Callable[[int], Awaitable[None]]:
        """Give a stream what notes its bytes, apart from those of other streams."""
        stream = len(self.throttled)
        self.throttled.append(0)

        async def take(count: int) -> None:
            self.throttled[stream] += count

        return take

    def hooks(self) -> GlanceHooks:
        """Give hooks that note."""
        return GlanceHooks(
            on_request=lambda call, status: self.requests.append((call, status)),
            on_resume=self.resumed.append,
            throttle=self.throttle,
        )


@pytest.fixture
async def service() -> AsyncIterator[LyingGlance]:
    """Give an image service that lies when told to."""
    async with LyingGlance() as service:
        yield service


@pytest.fixture
def notes() -> Notes:
    """Give a place for what the client tells."""
    return Notes()


@pytest.fixture
async def glance(service: LyingGlance, notes: Notes) -> AsyncIterator[Glance]:
    """Give a client of the service, without tokens, that forgives two failures in a row."""
    async with client(NoIdentity(service.url), notes) as glance:
        yield glance


def client(
    tokens: TokenSource, notes: Notes, *, stall: float = 30.0, connect: float = 10.0
) -> Glance:
    """Make a client that waits for nothing."""
    settings = GlanceSettings(connect_timeout=connect, stall_timeout=stall, retries=2)
    return Glance(settings, tokens, hooks=notes.hooks(), backoff=Backoff(pause=notes.wait))


async def download(
    glance: Glance, image: GlanceImage, *, offset: int = 0, caller: Caller = NOBODY
) -> bytes:
    """Read a stream to its end."""
    received = bytearray()
    async with contextlib.aclosing(glance.stream(image, offset=offset, caller=caller)) as stream:
        await collect(stream, received)
    return bytes(received)


async def collect(pieces: AsyncIterator[memoryview], received: bytearray) -> None:
    """Read a stream as far as it goes."""
    async for piece in pieces:
        received += piece


# Versions


@pytest.mark.parametrize("given", ["", "/", "/v2", "/v2/", "/v1", "/image", "/image/v2.18/"])
async def test_an_endpoint_may_be_given_with_or_without_version_and_prefix(
    service: LyingGlance, notes: Notes, given: str
) -> None:
    """Whatever form the catalogue has, version 2 is found below the same prefix."""
    image_id = service.add(DATA)
    async with client(NoIdentity(service.url + given), notes) as glance:
        assert (await glance.show(image_id, NOBODY)).size == len(DATA)


async def test_versions_are_asked_for_once(glance: Glance, service: LyingGlance) -> None:
    """What an endpoint offers is remembered."""
    image_id = service.add(DATA)
    await glance.show(image_id, NOBODY)
    await glance.show(image_id, NOBODY)
    assert [seen.call for seen in service.seen] == ["versions", "show", "show"]


async def test_an_endpoint_with_version_1_only_is_refused_by_name(
    glance: Glance, service: LyingGlance
) -> None:
    """The error names what is offered, so that the operator sees that the service is too old."""
    service.lie("versions", lies.versions("v1.1", "v1.0"))
    with pytest.raises(GlanceRefusedError, match=r"v1\.1, v1\.0; v2 is needed"):
        await glance.show(service.add(DATA), NOBODY)


@pytest.mark.parametrize("lie", [lies.versions("v1" * 50_000), lies.versions(*["v1"] * 50_000)])
async def test_versions_without_end_are_refused_in_few_words(
    glance: Glance, service: LyingGlance, lie: lies.Lie
) -> None:
    """What a server says is not repeated at any length: problems are kept, and logged."""
    service.lie("versions", lie)
    with pytest.raises(GlanceRefusedError) as caught:
        await glance.show(service.add(DATA), NOBODY)
    assert len(str(caught.value)) < SHORT


@pytest.mark.parametrize("lie", [lies.text("hello"), lies.text("[]"), lies.status(404)])
async def test_an_endpoint_that_is_no_image_service_is_refused(
    glance: Glance, service: LyingGlance, lie: lies.Lie
) -> None:
    """Something else listens there: no retry will help."""
    service.lie("versions", lie)
    with pytest.raises(GlanceRefusedError):
        await glance.show(service.add(DATA), NOBODY)


# Metadata


async def test_metadata_come_with_glances_names(glance: Glance, service: LyingGlance) -> None:
    """What Glance tells is there, what it tells beyond that does no harm."""
    image_id = service.add(DATA, min_disk=3, os_hash_value="AB" * 64, hw_disk_bus="scsi")
    image = await glance.show(image_id, NOBODY)
    assert (image.image_id, image.size, image.min_disk_bytes) == (image_id, len(DATA), 3 << 30)
    assert (image.status, image.disk_format, image.owner) == ("active", "raw", "7f1e0b5c")
    assert image.os_hash_value == "ab" * 64


async def test_a_signature_counts_if_all_of_it_is_there(
    glance: Glance, service: LyingGlance
) -> None:
    """The four properties that a signed image has are taken together, or not at all."""
    properties = {
        "img_signature": "c2lnbmVk",
        "img_signature_hash_method": "SHA-256",
        "img_signature_key_type": "RSA-PSS",
        "img_signature_certificate_uuid": str(uuid.uuid4()),
    }
    signed = (await glance.show(service.add(DATA, **properties), NOBODY)).signature
    assert signed == ImageSignature(
        value="c2lnbmVk",
        hash_method="SHA-256",
        key_type="RSA-PSS",
        certificate=properties["img_signature_certificate_uuid"],
    )
    for name in properties:
        image_id = service.add(DATA, **properties | {name: ""})
        assert (await glance.show(image_id, NOBODY)).signature is None


async def test_an_image_may_lack_size_and_digests(glance: Glance, service: LyingGlance) -> None:
    """Glance knows neither of an image that is queued."""
    unknown = dict.fromkeys(("size", "virtual_size", "os_hash_algo", "os_hash_value", "checksum"))
    image = await glance.show(service.add(b"", status="queued", name=None, **unknown), NOBODY)
    assert (image.status, image.size, image.digest, image.name) == ("queued", None, None, "")


@pytest.mark.parametrize(
    "lie",
    [
        lies.text("<html>hello</html>"),
        lies.text(""),
        lies.text("[]"),
        lies.text("[" * 2_000_000),
        lies.metadata("size"),
        lies.metadata("status"),
        lies.metadata(size=-1),
        lies.metadata(size="12"),
        lies.metadata(size=1 << 64),
        lies.metadata(min_disk=True),
        lies.metadata(os_hash_value="../../etc/passwd"),
        lies.metadata(os_hash_value="abcd"),
        lies.metadata(checksum="abcd"),
        lies.metadata(id=UNKNOWN),
        lies.metadata(id="a" * 100_000),
        lies.metadata(status="a" * 100_000),
        lies.metadata(name="a" * 100_000),
        lies.metadata(disk_format="a" * 100_000),
        lies.metadata(os_hash_algo="a" * 100_000),
    ],
)
async def test_metadata_that_cannot_be_used_are_refused(
    glance: Glance, service: LyingGlance, lie: lies.Lie
) -> None:
    """No JSON, a member missing or of the wrong kind, the wrong image: all are refused."""
    service.lie("show", lie)
    with pytest.raises(GlanceRefusedError) as caught:
        await glance.show(service.add(DATA), NOBODY)
    assert caught.value.glance_status == 200
    assert len(str(caught.value)) < SHORT


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, GlanceRefusedError),
        (401, GlanceRefusedError),
        (403, ImageForbiddenError),
        (404, ImageNotFoundError),
        (410, GlanceRefusedError),
    ],
)
async def test_a_refusal_is_not_repeated(
    glance: Glance, service: LyingGlance, code: int, error: type[Exception]
) -> None:
    """What Glance refuses, it refuses at once, and each status is told from the others."""
    service.always("show", lies.status(code))
    with pytest.raises(error):
        await glance.show(service.add(DATA), NOBODY)
    assert len(service.calls("show")) == 1


async def test_a_redirect_is_refused_and_takes_no_token_along(service: LyingGlance) -> None:
    """A token must not reach whatever server a redirect names."""
    image_id = service.add(DATA)
    async with LyingGlance() as other:
        service.always("show", lies.status(302, Location=f"{other.url}/v2/images/{image_id}"))
        async with client(Tokens([service.url]), Notes()) as glance:
            with pytest.raises(GlanceRefusedError, match=f"redirects to {other.url}"):
                await glance.show(image_id, NOBODY)
        assert other.seen == []


async def test_a_redirect_to_a_signed_address_keeps_its_secret(service: LyingGlance) -> None:
    """Whoever has such an address may use it: the error names the place and not the key."""
    signed = "https://key:secret@store.test/bucket/1?Signature=secret"
    service.always("data", lies.status(302, Location=signed))
    async with client(Tokens([service.url]), Notes()) as glance:
        image = await glance.show(service.add(DATA), NOBODY)
        with pytest.raises(GlanceRefusedError, match=r"to https://store\.test/b") as caught:
            await download(glance, image)
    assert "secret" not in str(caught.value)


# Retries and endpoints


@pytest.mark.parametrize("lie", [lies.status(500), lies.status(503), lies.status(429), lies.cut(5)])
async def test_what_may_pass_is_repeated(
    glance: Glance, service: LyingGlance, notes: Notes, lie: lies.Lie
) -> None:
    """Two failures in a row are forgiven, after waits that grow."""
    service.lie("show", lie, lie)
    image_id = service.add(DATA)
    assert (await glance.show(image_id, NOBODY)).image_id == image_id
    assert notes.waits[0] < notes.waits[1]


async def test_after_the_last_retry_glance_is_unavailable(
    glance: Glance, service: LyingGlance, notes: Notes
) -> None:
    """The third failure in a row ends it, and says how long the server wants to be left alone."""
    service.always("show", lies.status(503, Retry_After="17"))
    with pytest.raises(GlanceUnavailableError, match="503 Service Unavailable") as caught:
        await glance.show(service.add(DATA), NOBODY)
    assert caught.value.retry_after == 17
    assert notes.waits == [17.0, 17.0]


@pytest.mark.parametrize(
    "answer",
    [
        b"a" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"a" * 8000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.test/" + b"a" * 8000 + b"\r\n\r\n",
    ],
    ids=["no HTTP", "a length that is none", "a long way to go"],
)
async def test_an_answer_is_not_repeated_at_any_length(
    glance: Glance, service: LyingGlance, answer: bytes
) -> None:
    """A problem says what is wrong in few words, whatever the server sent."""
    service.always("show", lies.raw(answer))
    with pytest.raises((GlanceUnavailableError, GlanceRefusedError)) as caught:
        await glance.show(service.add(DATA), NOBODY)
    assert len(str(caught.value)) < SHORT


@pytest.mark.parametrize("asked", ["3601", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_server_sends_nobody_away_for_days(
    glance: Glance, service: LyingGlance, asked: str
) -> None:
    """What it asks for is passed on within reason."""
    service.always("show", lies.status(503, Retry_After=asked))
    with pytest.raises(GlanceUnavailableError) as caught:
        await glance.show(service.add(DATA), NOBODY)
    assert caught.value.retry_after == 3600


async def test_metadata_that_drip_count_as_a_failure(service: LyingGlance, notes: Notes) -> None:
    """A server that is never silent, and never ends, does not hold us for ever either."""
    image_id = service.add(DATA)
    service.lie("show", lies.dripping())
    async with client(NoIdentity(service.url), notes, stall=0.5, connect=1.0) as glance:
        assert (await glance.show(image_id, NOBODY)).image_id == image_id
    assert notes.waits


async def test_a_header_that_drips_counts_as_a_failure(service: LyingGlance, notes: Notes) -> None:
    """Before its data begin a download has come no further, however much is sent."""
    image_id = service.add(DATA)
    service.lie("data", lies.dripping_header())
    async with client(NoIdentity(service.url), notes, stall=0.5, connect=1.0) as glance:
        assert await download(glance, await glance.show(image_id, NOBODY)) == DATA
    assert notes.waits


async def test_a_crowd_that_asks_leaves_a_connection_for_data(
    glance: Glance, service: LyingGlance
) -> None:
    """Whoever floods us with tokens to be checked holds up no download."""
    image = await glance.show(service.add(DATA), NOBODY)
    gate = asyncio.Event()
    service.always("list", lies.held(gate))
    crowd = [asyncio.create_task(glance.check_token(TENANT)) for _ in range(QUESTIONS + 1)]
    await until(lambda: len(service.calls("list")) == QUESTIONS)
    assert await download(glance, image) == DATA
    assert len(service.calls("list")) == QUESTIONS
    service.truth("list")
    gate.set()
    await asyncio.gather(*crowd, return_exceptions=True)


async def test_silence_counts_as_a_failure(service: LyingGlance, notes: Notes) -> None:
    """A server that takes the request and says nothing does not hold us for ever."""
    image_id = service.add(DATA)
    service.lie("data", lies.silence(after=1000))
    async with client(NoIdentity(service.url), notes, stall=0.2) as glance:
        assert await download(glance, await glance.show(image_id, NOBODY)) == DATA
    assert notes.resumed == [1000]


async def test_the_next_endpoint_is_tried_at_once(service: LyingGlance, notes: Notes) -> None:
    """A dead endpoint and one that fails cost no wait while another is well."""
    image_id = service.add(DATA)
    async with LyingGlance() as failing:
        failing.always("versions", lies.status(502))
        tokens = Tokens([closed_port(), failing.url, service.url])
        async with client(tokens, notes) as glance:
            await glance.show(image_id, NOBODY)
            await glance.show(image_id, NOBODY)
        assert len(failing.seen) == 1, "an endpoint that failed is not the first to be asked again"
    assert notes.waits == []
    assert notes.requests[0] == ("versions", "none")


@pytest.mark.parametrize(
    "lie",
    [
        lies.versions("v1.1", "v1.0"),
        lies.status(404),
        lies.status(302, Location="/elsewhere"),
        lies.text("<html>hello</html>"),
    ],
)
async def test_an_endpoint_that_is_no_image_service_does_not_hide_the_others(
    service: LyingGlance, notes: Notes, lie: lies.Lie
) -> None:
    """It is passed over without a wait, and asked last for a while."""
    image_id = service.add(DATA)
    async with LyingGlance() as wrong:
        wrong.always("versions", lie)
        async with client(Tokens([wrong.url, service.url]), notes) as glance:
            await glance.show(image_id, NOBODY)
            await glance.show(image_id, NOBODY)
        assert len(wrong.seen) == 1
    assert notes.waits == []


@pytest.mark.parametrize("wrong_first", [True, False])
async def test_beside_a_wrong_endpoint_one_that_fails_is_waited_for(
    service: LyingGlance, notes: Notes, *, wrong_first: bool
) -> None:
    """What may pass is tried again, whichever of them comes first."""
    image_id = service.add(DATA)
    service.lie("versions", lies.status(503))
    async with LyingGlance() as wrong:
        wrong.always("versions", lies.status(404))
        urls = [wrong.url, service.url] if wrong_first else [service.url, wrong.url]
        async with client(Tokens(urls), notes) as glance:
            assert (await glance.show(image_id, NOBODY)).image_id == image_id
    assert len(notes.waits) == 1


async def test_a_download_goes_on_at_another_endpoint(service: LyingGlance, notes: Notes) -> None:
    """Where the body breaks off at one endpoint, the rest comes from the next."""
    image_id = service.add(DATA)
    async with LyingGlance() as other:
        other.add(DATA, id=image_id)
        service.always("data", lies.cut(after=60_000))
        async with client(Tokens([service.url, other.url]), notes) as glance:
            assert await download(glance, await glance.show(image_id, NOBODY)) == DATA
        assert [seen.range for seen in other.calls("data")] == ["bytes=60000-"]


async def test_no_endpoint_at_all_is_unavailable(notes: Notes) -> None:
    """An identity that names no endpoint leaves nothing to ask."""
    async with client(NoIdentity(), notes) as glance:
        with pytest.raises(GlanceUnavailableError, match="no endpoint"):
            await glance.show(UNKNOWN, NOBODY)


async def test_the_last_contact_is_known(glance: Glance, service: LyingGlance) -> None:
    """The status page can tell whether Glance answered the last time, and when that was."""
    image_id = service.add(DATA)
    assert glance.contact == Contact(None, None)
    await glance.show(image_id, NOBODY)
    contacts = [glance.contact]
    service.always("show", lies.no_answer())
    with pytest.raises(GlanceUnavailableError):
        await glance.show(image_id, NOBODY)
    contacts.append(glance.contact)
    assert [contact.reachable for contact in contacts] == [True, False]
    assert all(contact.at is not None for contact in contacts)


def closed_port() -> str:
    """Give a URL where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


# Tokens


async def test_without_a_caller_the_agents_own_token_is_sent(
    service: LyingGlance, notes: Notes
) -> None:
    """The agent speaks for itself, and asks for versions without any token."""
    async with client(Tokens([service.url]), notes) as glance:
        await glance.show(service.add(DATA), NOBODY)
    versions, show = service.seen
    assert "X-Auth-Token" not in versions.headers
    assert show.headers["X-Auth-Token"] == "old"
    assert "X-Service-Token" not in show.headers


async def test_the_callers_token_goes_first_with_ours_beside_it(
    service: LyingGlance, notes: Notes
) -> None:
    """The tenant's rights decide, our token vouches for it, and the request's id goes along."""
    async with client(Tokens([service.url]), notes) as glance:
        await glance.show(service.add(DATA), TENANT)
    headers = service.calls("show")[0].headers
    assert (headers["X-Auth-Token"], headers["X-Service-Token"]) == ("tenant", "old")
    assert headers["X-OpenStack-Request-ID"] == f"req-{TENANT.request_id}"


async def test_a_request_id_that_openstack_would_drop_is_not_sent(
    glance: Glance, service: LyingGlance
) -> None:
    """Only ids of the form req-UUID go on."""
    await glance.show(service.add(DATA), Caller(request_id="my own"))
    assert "X-OpenStack-Request-ID" not in service.calls("show")[0].headers


async def test_a_refused_token_is_renewed_once(service: LyingGlance, notes: Notes) -> None:
    """Our token has run out unnoticed: a new one makes the request pass, without any wait."""
    service.accepts = {"new"}
    tokens = Tokens([service.url])
    async with client(tokens, notes) as glance:
        await glance.show(service.add(DATA), NOBODY)
    assert (tokens.renewals, notes.waits) == (1, [])


async def test_own_token_refused_after_renewal_is_the_operators_matter(
    service: LyingGlance, notes: Notes
) -> None:
    """The caller did nothing wrong, so this is no 401 to the caller."""
    service.accepts = set()
    async with client(Tokens([service.url]), notes) as glance:
        with pytest.raises(GlanceRefusedError, match="own token") as caught:
            await glance.show(service.add(DATA), NOBODY)
    assert caught.value.glance_status == 401


async def test_a_callers_token_that_ran_out_is_accepted_beside_a_renewed_one_of_ours(
    service: LyingGlance, notes: Notes
) -> None:
    """Glance refuses the pair while ours is stale, and takes it after ours was renewed."""
    service.accepts, service.expired = {"new"}, {"tenant"}
    async with client(Tokens([service.url]), notes) as glance:
        await glance.show(service.add(DATA), TENANT)
    assert [seen.headers["X-Service-Token"] for seen in service.calls("show")] == ["old", "new"]


@pytest.mark.parametrize("own", ["old", None])
async def test_a_callers_token_that_nobody_knows_is_unauthenticated(
    service: LyingGlance, notes: Notes, own: str | None
) -> None:
    """The caller learns that it is its token, with and without one of ours beside it."""
    service.accepts = {"old", "new"}
    async with client(Tokens([service.url], current=own), notes) as glance:
        with pytest.raises(UnauthenticatedError):
            await glance.show(service.add(DATA), TENANT)


@pytest.mark.parametrize("token", ["", "two words", "t\udcff", "line\nbreak"])
async def test_a_token_that_is_none_never_leaves_the_agent(
    glance: Glance, service: LyingGlance, token: str
) -> None:
    """A header cannot carry it, so it is refused here."""
    with pytest.raises(UnauthenticatedError):
        await glance.show(service.add(DATA), Caller(token=token))
    assert service.calls("show") == []


async def test_a_token_that_runs_out_in_mid_download_is_replaced(
    service: LyingGlance, notes: Notes
) -> None:
    """The part after the cut is asked for with the old token, refused, and got with a new one."""
    image_id = service.add(DATA)
    service.lie("data", lies.cut(after=500), lies.status(401))
    async with client(Tokens([service.url]), notes) as glance:
        assert await download(glance, await glance.show(image_id, NOBODY)) == DATA
    assert [(seen.headers["X-Auth-Token"], seen.range) for seen in service.calls("data")] == [
        ("old", None),
        ("old", "bytes=500-"),
        ("new", "bytes=500-"),
    ]


async def test_a_keystone_that_is_away_for_a_moment_is_waited_for(
    service: LyingGlance, notes: Notes
) -> None:
    """Not only Glance may fail and come back."""
    async with client(Tokens([service.url], unreachable=2), notes) as glance:
        await glance.show(service.add(DATA), NOBODY)
    assert len(notes.waits) == 2


# Access


async def test_access_is_proved_with_one_byte(
    glance: Glance, service: LyingGlance, notes: Notes
) -> None:
    """A caller that may download costs one byte, not an image."""
    await glance.check_access(service.add(DATA), NOBODY)
    assert [seen.range for seen in service.calls("access")] == ["bytes=0-0"]
    assert notes.requests[-1] == ("access", "206")


async def test_who_may_look_but_not_download_is_forbidden(
    glance: Glance, service: LyingGlance
) -> None:
    """The role reader sees the metadata of an image; that is not enough."""
    service.forbids = {"tenant"}
    with pytest.raises(ImageForbiddenError):
        await glance.check_access(service.add(DATA), TENANT)


@pytest.mark.parametrize("status", ["deactivated", "queued"])
async def test_access_to_an_image_that_is_not_active_is_refused(
    glance: Glance, service: LyingGlance, status: str
) -> None:
    """An administrator could download a deactivated image; the status is looked at as well."""
    with pytest.raises(ImageNotActiveError) as caught:
        await glance.check_access(service.add(DATA, status=status), NOBODY)
    assert caught.value.image_status == status
    assert service.calls("access") == []


async def test_access_to_an_image_that_is_gone_is_not_found(glance: Glance) -> None:
    """An image that Glance does not show does not exist for this caller."""
    with pytest.raises(ImageNotFoundError):
        await glance.check_access(UNKNOWN, NOBODY)


async def test_an_empty_image_has_no_byte_to_ask_for(glance: Glance, service: LyingGlance) -> None:
    """Its metadata are all there is to see."""
    await glance.check_access(service.add(b""), NOBODY)
    assert service.calls("access") == []


async def test_an_image_whose_file_is_gone_is_refused_to_everyone(
    glance: Glance, service: LyingGlance
) -> None:
    """Active, but 204: the store has lost it."""
    service.lie("access", lies.status(204))
    with pytest.raises(GlanceRefusedError) as caught:
        await glance.check_access(service.add(DATA), NOBODY)
    assert caught.value.glance_status == 204


# Data


async def test_a_download_gives_every_byte_once(
    glance: Glance, service: LyingGlance, notes: Notes
) -> None:
    """An honest service is asked once, without a Range, and the throttle sees all bytes."""
    image_id = service.add(DATA)
    assert await download(glance, await glance.show(image_id, NOBODY)) == DATA
    assert [seen.range for seen in service.calls("data")] == [None]
    assert [seen.headers["Accept-Encoding"] for seen in service.calls("data")] == ["identity"]
    assert notes.throttled == [len(DATA)]


async def test_each_download_has_one_share_of_the_bandwidth(
    glance: Glance, service: LyingGlance, notes: Notes
) -> None:
    """A download that goes on over another connection goes on in the same share."""
    image = await glance.show(service.add(DATA), NOBODY)
    assert await download(glance, image) == DATA
    service.lie("data", lies.cut(after=1000))
    assert await download(glance, image) == DATA
    assert notes.throttled == [len(DATA), len(DATA)]


async def test_a_download_begins_at_the_offset(
    glance: Glance, service: LyingGlance, notes: Notes
) -> None:
    """What an earlier run of the agent has on disk is not fetched again."""
    image = await glance.show(service.add(DATA), NOBODY)
    assert await download(glance, image, offset=99_000) == DATA[99_000:]
    assert notes.resumed == [99_000]


async def test_nothing_is_asked_for_where_nothing_is_missing(
    glance: Glance, service: LyingGlance
) -> None:
    """An empty image, and one that is all there, end at once."""
    whole = await glance.show(service.add(DATA), NOBODY)
    empty = await glance.show(service.add(b""), NOBODY)
    assert await download(glance, whole, offset=len(DATA)) == b""
    assert await download(glance, empty) == b""
    assert service.calls("data") == []


@pytest.mark.parametrize("offset", [-1, len(DATA) + 1])
async def test_an_offset_outside_of_the_image_is_an_error_of_the_program(
    glance: Glance, service: LyingGlance, offset: int
) -> None:
    """Whoever asks for it has mixed up two images."""
    image = await glance.show(service.add(DATA), NOBODY)
    with pytest.raises(ValueError, match="outside of the image"):
        await download(glance, image, offset=offset)


async def test_each_cut_is_mended_by_range(
    glance: Glance, service: LyingGlance, notes: Notes
) -> None:
    """Progress forgives: ten cuts are no problem where two failures in a row are the limit."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", *[lies.cut(after=1000)] * 10)
    assert await download(glance, image) == DATA
    assert notes.resumed == [1000 * n for n in range(1, 11)]


async def test_a_body_that_stops_growing_ends_the_download(
    glance: Glance, service: LyingGlance
) -> None:
    """A store file cut short promises all of it, ever again, and gives nothing more."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", lies.cut(after=1000))
    service.always("data", lies.cut(after=0))
    with pytest.raises(GlanceUnavailableError):
        await download(glance, image)
    assert len(service.calls("data")) == 3


async def test_an_honest_end_that_comes_too_early_is_resumed(
    glance: Glance, service: LyingGlance
) -> None:
    """A body without a length that is too short is as good as cut."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", lies.body(DATA[:3000], chunked=True))
    assert await download(glance, image) == DATA
    assert [seen.range for seen in service.calls("data")] == [None, "bytes=3000-"]


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lies.whole_as_200(), id="200 in place of 206"),
        pytest.param(lies.whole_as_206(), id="206, the length tells"),
        pytest.param(lies.whole_as_206(content_range="true"), id="206, the range tells"),
        pytest.param(lies.whole_as_206(content_range="none"), id="206 without a range"),
    ],
)
async def test_a_whole_image_in_place_of_the_rest_is_skipped_through(
    glance: Glance, service: LyingGlance, notes: Notes, lie: lies.Lie
) -> None:
    """The bytes that are there already are dropped, and none is counted as saved."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", lies.cut(after=70_001), lie)
    assert await download(glance, image) == DATA
    assert notes.resumed == []


@pytest.mark.parametrize("shift", [-10, 10])
async def test_another_part_than_the_one_asked_for_is_not_used(
    glance: Glance, service: LyingGlance, shift: int
) -> None:
    """It counts as a failure; the attempt after it may get the right one."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", lies.cut(after=5000), lies.other_part(shift))
    assert await download(glance, image) == DATA
    assert len(service.calls("data")) == 3


@pytest.mark.parametrize(
    ("lie", "status"),
    [
        pytest.param(lies.body(DATA + b"x"), 200, id="longer by its length"),
        pytest.param(lies.body(DATA + b"x", chunked=True), 200, id="longer without a length"),
        pytest.param(lies.body(DATA[:-1]), 200, id="shorter by its length"),
        pytest.param(lies.body(DATA, headers={"Content-Encoding": "gzip"}), 200, id="encoded"),
        pytest.param(lies.status(204), 204, id="the file is gone"),
        pytest.param(lies.status(409), 409, id="conflict"),
        pytest.param(lies.status(410), 410, id="gone"),
        pytest.param(lies.status(416), 416, id="range"),
        pytest.param(lies.status(302, Location="/"), 302, id="redirect"),
    ],
)
async def test_data_that_cannot_be_the_image_are_refused(
    glance: Glance, service: LyingGlance, lie: lies.Lie, status: int
) -> None:
    """No retry would change it, so there is none; the error bears the status."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.always("data", lie)
    with pytest.raises(GlanceRefusedError) as caught:
        await download(glance, image)
    assert caught.value.glance_status == status
    assert len(service.calls("data")) == 1


async def test_no_byte_beyond_the_size_is_given_out(glance: Glance, service: LyingGlance) -> None:
    """Whoever reserved room for the image can rely on it."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", lies.body(DATA + b"x" * 100_000, chunked=True))
    pieces = glance.stream(image, offset=0, caller=NOBODY)
    received = bytearray()
    with pytest.raises(GlanceRefusedError, match="longer"):
        await collect(pieces, received)
    assert len(received) <= len(DATA)


async def test_an_image_of_unknown_size_is_as_long_as_its_answer_says(
    glance: Glance, service: LyingGlance
) -> None:
    """The first answer tells the size, and a cut is still a cut."""
    image = await glance.show(service.add(DATA, size=None), NOBODY)
    service.lie("data", lies.cut(after=1))
    assert await download(glance, image) == DATA


async def test_an_image_of_unknown_size_needs_an_answer_with_a_length(
    glance: Glance, service: LyingGlance
) -> None:
    """Without any size its end cannot be told from a cut."""
    image = await glance.show(service.add(DATA, size=None), NOBODY)
    service.lie("data", lies.body(DATA, chunked=True))
    with pytest.raises(GlanceRefusedError, match="size"):
        await download(glance, image)


async def test_data_of_an_image_deactivated_meanwhile_are_not_active(
    glance: Glance, service: LyingGlance
) -> None:
    """The 403 of a deactivated image is told from that of a caller without the right."""
    image_id = service.add(DATA)
    image = await glance.show(image_id, NOBODY)
    service.images[image_id].metadata["status"] = "deactivated"
    with pytest.raises(ImageNotActiveError):
        await download(glance, image)


async def test_data_that_the_caller_may_not_have_are_forbidden(
    glance: Glance, service: LyingGlance
) -> None:
    """The image is active, so it is the caller's right that is missing."""
    service.forbids = {"tenant"}
    image = await glance.show(service.add(DATA), TENANT)
    with pytest.raises(ImageForbiddenError):
        await download(glance, image, caller=TENANT)


async def test_data_of_an_image_deleted_meanwhile_are_not_found(
    glance: Glance, service: LyingGlance
) -> None:
    """It is gone between metadata and data."""
    image_id = service.add(DATA)
    image = await glance.show(image_id, NOBODY)
    del service.images[image_id]
    with pytest.raises(ImageNotFoundError):
        await download(glance, image)


async def test_a_stream_can_be_left_in_the_middle(glance: Glance, service: LyingGlance) -> None:
    """Closing the generator closes the connection, and the client goes on working."""
    image = await glance.show(service.add(DATA), NOBODY)
    service.lie("data", lies.silence(after=10))
    async with contextlib.aclosing(glance.stream(image, offset=0, caller=NOBODY)) as stream:
        assert await anext(stream) == DATA[:10]
    assert await download(glance, image) == DATA


# TLS, and life


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Give a certificate with its key, made for this test."""
    path = tmp_path / "certificate.pem"
    write_certificate(path)
    return path


async def test_a_certificate_that_nobody_vouches_for_is_named_at_once(
    notes: Notes, certificate: Path
) -> None:
    """The operator reads that it is TLS and which key to look at; there is no use in waiting."""
    async with tls_service(certificate) as url, client(NoIdentity(url), notes) as glance:
        with pytest.raises(GlanceUnavailableError, match=r"TLS .* glance\.ca_file"):
            await glance.show(UNKNOWN, NOBODY)
    assert notes.waits == []


async def test_a_certificate_of_the_ca_file_is_trusted(certificate: Path) -> None:
    """A cloud with a certificate authority of its own can be used."""
    settings = GlanceSettings(ca_file=certificate)
    async with (
        tls_service(certificate) as url,
        Glance(settings, NoIdentity(url)) as glance,
    ):
        with pytest.raises(GlanceRefusedError):
            await glance.show(UNKNOWN, NOBODY)
        assert glance.contact.reachable


async def test_a_ca_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    """The error names the key and the file."""
    glance = Glance(GlanceSettings(ca_file=tmp_path / "none.pem"), NoIdentity())
    with pytest.raises(ConfigError, match=r"glance\.ca_file: .*none\.pem"):
        await glance.start()


async def test_a_client_that_is_closed_says_so() -> None:
    """Use before start or after close is an error of the program; closing twice is none."""
    glance = Glance(GlanceSettings(), NoIdentity("http://127.0.0.1:1"))
    await glance.close()
    with pytest.raises(RuntimeError, match="before start or after close"):
        await glance.show(UNKNOWN, NOBODY)


@contextlib.asynccontextmanager
async def tls_service(certificate: Path) -> AsyncIterator[str]:
    """Listen under TLS and know nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = TestServer(web.Application(), scheme="https")
    await server.start_server(ssl=context)
    yield str(server.make_url(""))
    await server.close()


# The embedded image service is the other honest one


async def test_client_and_embedded_image_service_understand_each_other(
    tmp_path: Path, notes: Notes
) -> None:
    """Access, metadata, data and the rest of the data, over a folder with one file."""
    image_id = UNKNOWN
    (tmp_path / "some.raw").write_bytes(DATA)
    (tmp_path / "some.raw.json").write_text(json.dumps({"id": image_id}))
    app = imageserver.create_app(tmp_path)
    server = TestServer(app)
    await server.start_server(access_log=None)
    async with client(NoIdentity(str(server.make_url("/v2"))), notes) as glance:
        await glance.check_access(image_id, NOBODY)
        image = await glance.show(image_id, NOBODY)
        assert await download(glance, image) == DATA
        assert await download(glance, image, offset=5) == DATA[5:]
    assert app[imageserver.DOWNLOADS] == {image_id: 1}
    await server.close()
