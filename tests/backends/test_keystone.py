"""What a client of an identity can count on: fresh tokens, few logins, clear errors."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.backends.keystone import KeystoneIdentity, KeystoneSettings
from cacheagent.errors import ConfigError, GlanceRefusedError, GlanceUnavailableError
from tests.fakes.certificate import write_certificate
from tests.fakes.keystone import PASSWORD, SECRET, FakeKeystone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CLOUD = "mycloud"


class Clouds:
    """A clouds.yaml of one entry, and the identities made from it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.failures: Counter[str] = Counter()
        self.now = 1000.0
        self._made: list[KeystoneIdentity] = []

    def write(self, url: str, *, auth: dict[str, str] | None = None, **entry: object) -> None:
        """Write the entry; ``auth`` goes beside the URL in place of user and password."""
        if auth is None:
            auth = {"username": "agent", "password": PASSWORD, "project_name": "service"}
            auth |= {"user_domain_id": "default", "project_domain_id": "default"}
        cloud = {"auth": {"auth_url": url, **auth}, **entry}
        self._path.write_text(json.dumps({"clouds": {CLOUD: cloud}}))  # JSON is YAML

    async def start(self, **settings: Any) -> KeystoneIdentity:  # noqa: ANN401  any of the settings
        """Make an identity of the entry and start it."""
        identity = KeystoneIdentity(
            KeystoneSettings(**{"cloud": CLOUD} | settings),
            on_failure=lambda: self.failures.update(["failure"]),
            clock=lambda: self.now,
        )
        self._made.append(identity)
        await identity.start()
        return identity

    async def close(self) -> None:
        """Close all that were made."""
        for identity in self._made:
            await identity.close()


@pytest.fixture
async def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clouds]:
    """Give a clouds.yaml that openstack.config finds, in an environment without OS_* variables."""
    path = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    clouds = Clouds(path)
    yield clouds
    await clouds.close()


@pytest.fixture
async def keystone(clouds: Clouds) -> AsyncIterator[FakeKeystone]:
    """Give a Keystone that the clouds.yaml names, with one image service in its catalogue."""
    async with FakeKeystone(endpoints=[("RegionOne", "http://image.test")]) as keystone:
        clouds.write(keystone.url)
        yield keystone


# Tokens


async def test_a_token_is_fetched_once_and_kept(clouds: Clouds, keystone: FakeKeystone) -> None:
    """Any number of requests at once costs one login, and nothing is asked before the first."""
    identity = await clouds.start()
    assert keystone.logins == 0
    tokens = await asyncio.gather(*(identity.token() for _ in range(20)))
    assert set(tokens) == set(keystone.issued)
    assert keystone.logins == 1


async def test_an_application_credential_works_as_well(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """The plugin that the entry names gets the token."""
    auth = {"application_credential_id": "c0ffee", "application_credential_secret": SECRET}
    clouds.write(keystone.url, auth=auth, auth_type="v3applicationcredential")
    identity = await clouds.start()
    assert await identity.token() == keystone.issued[0]


async def test_variables_of_the_environment_stand_for_an_entry(
    clouds: Clouds, keystone: FakeKeystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cloud in the configuration the OS_* variables tell who we are."""
    for name, value in {
        "OS_AUTH_URL": keystone.url,
        "OS_USERNAME": "agent",
        "OS_PASSWORD": PASSWORD,
        "OS_PROJECT_NAME": "service",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
    }.items():
        monkeypatch.setenv(name, value)
    identity = await clouds.start(cloud=None)
    assert await identity.token() == keystone.issued[0]


async def test_a_proxy_of_the_environment_is_not_used(
    clouds: Clouds, keystone: FakeKeystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keystone is reached as Glance is, directly."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    identity = await clouds.start()
    assert await identity.token() == keystone.issued[0]


async def test_a_token_about_to_end_is_replaced(clouds: Clouds, keystone: FakeKeystone) -> None:
    """A token with a minute left of its hour may run out on the way: it is not used."""
    identity = await clouds.start()
    first = await identity.token()
    clouds.now += 57 * 60
    assert await identity.token() == first
    clouds.now += 2 * 60
    assert await identity.token() == keystone.issued[1]


async def test_a_token_that_lives_shortly_is_used_for_most_of_its_life(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """The margin shrinks with the life of a token, or each request would be a login."""
    keystone.lifetime = timedelta(seconds=60)
    identity = await clouds.start()
    first = await identity.token()
    clouds.now += 40
    assert await identity.token() == first
    clouds.now += 10
    assert await identity.token() == keystone.issued[1]


async def test_a_refused_token_is_renewed_once_for_all(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """Many requests are refused at the same time: one login, and the same new token for all."""
    identity = await clouds.start()
    refused = await identity.token() or ""
    clouds.now += 60
    renewed = await asyncio.gather(*(identity.renew(refused) for _ in range(20)))
    assert set(renewed) == {keystone.issued[1]}
    assert await identity.renew(refused) == keystone.issued[1], "one that comes late joins them"
    assert keystone.logins == 2


async def test_a_token_just_fetched_is_not_renewed(clouds: Clouds, keystone: FakeKeystone) -> None:
    """Whoever sends tokens that Glance refuses cannot make us log in at each request."""
    identity = await clouds.start(renew_interval=5.0)
    token = await identity.token() or ""
    clouds.now += 4
    assert await identity.renew(token) == token
    clouds.now += 2
    assert await identity.renew(token) == keystone.issued[1]


# Endpoints


async def test_endpoints_come_from_the_catalogue_of_one_region(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """Several of a region stand for one another; those of another region have other images."""
    keystone.endpoints = [("A", "http://a1.test"), ("B", "http://b.test"), ("A", "http://a2.test")]
    first = await clouds.start()
    assert list(await first.endpoints()) == ["http://a1.test", "http://a2.test"]
    named = await clouds.start(region="B")
    assert list(await named.endpoints()) == ["http://b.test"]


async def test_key_managers_come_from_the_catalogue(clouds: Clouds, keystone: FakeKeystone) -> None:
    """Where there are some they are named, of one region; a cloud without any is a cloud, too."""
    assert list(await (await clouds.start()).key_managers()) == []
    keystone.key_managers = [("A", "http://keys.test/v1"), ("B", "http://other.test")]
    assert list(await (await clouds.start(region="A")).key_managers()) == ["http://keys.test/v1"]


async def test_a_catalogue_without_image_service_is_refused(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """The error says that it is the catalogue; another interface has none here."""
    identity = await clouds.start(interface="internal")
    with pytest.raises(GlanceRefusedError, match="catalogue"):
        await identity.endpoints()
    assert keystone.logins == 1


async def test_a_configured_endpoint_needs_no_catalogue(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """Ours wins over that of the entry, and that of the entry over the catalogue."""
    clouds.write(keystone.url, image_endpoint_override="http://entry.test")
    of_entry = await clouds.start()
    ours = await clouds.start(endpoints=("http://ours.test",))
    assert list(await of_entry.endpoints()) == ["http://entry.test"]
    assert list(await ours.endpoints()) == ["http://ours.test"]
    assert keystone.logins == 0


async def test_an_endpoint_of_others_leaves_its_password_behind(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """Neither the catalogue nor the entry brings a secret to where addresses are shown."""
    keystone.endpoints = [("RegionOne", "http://user:secret@image.test:9292/image")]
    of_catalogue = await clouds.start()
    assert list(await of_catalogue.endpoints()) == ["http://image.test:9292/image"]
    clouds.write(keystone.url, image_endpoint_override="http://user:secret@entry.test")
    of_entry = await clouds.start()
    assert list(await of_entry.endpoints()) == ["http://entry.test"]


async def test_the_certificate_authorities_of_the_cloud_are_known(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """The image service of a cloud has certificates of the same authority."""
    clouds.write(keystone.url, cacert="/etc/ssl/own.pem")
    of_entry = await clouds.start()
    ours = await clouds.start(ca_file=Path("/etc/ssl/ours.pem"))
    assert of_entry.ca_file == Path("/etc/ssl/own.pem")
    assert ours.ca_file == Path("/etc/ssl/ours.pem")


# Errors


async def test_wrong_credentials_are_the_operators_matter(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """The sentence says whose credentials they are, and the failure is counted."""
    auth = {"username": "agent", "password": "wrong", "project_name": "service"}
    clouds.write(keystone.url, auth=auth)
    identity = await clouds.start()
    with pytest.raises(GlanceRefusedError, match="agent's credentials") as caught:
        await identity.token()
    assert caught.value.glance_status == 401
    assert clouds.failures.total() == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_a_keystone_that_fails_is_unavailable(
    clouds: Clouds, keystone: FakeKeystone, status: int
) -> None:
    """It may pass: the next request gets a token once Keystone is well again."""
    identity = await clouds.start()
    keystone.failing = status
    with pytest.raises(GlanceUnavailableError):
        await identity.token()
    keystone.failing = None
    assert await identity.token() == keystone.issued[0]
    assert clouds.failures.total() == 1


async def test_a_keystone_that_refuses_otherwise_is_refused(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """A request that Keystone cannot take will not get better."""
    identity = await clouds.start()
    keystone.failing = 400
    with pytest.raises(GlanceRefusedError) as caught:
        await identity.token()
    assert caught.value.glance_status == 400


async def test_a_keystone_that_is_away_is_unavailable(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """Nobody listens: all who ask at once share one attempt."""
    await keystone.__aexit__()
    identity = await clouds.start()
    results = await asyncio.gather(*(identity.token() for _ in range(5)), return_exceptions=True)
    assert {type(each) for each in results} == {GlanceUnavailableError}
    assert clouds.failures.total() == 1


async def test_an_answer_that_is_no_token_is_unavailable(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """Something else listens where Keystone should."""
    identity = await clouds.start()
    keystone.failing = 200
    with pytest.raises(GlanceUnavailableError):
        await identity.token()


async def test_a_token_without_an_end_is_unavailable(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """A token of which nobody knows how long it lives is not used."""
    keystone.omits = ("expires_at",)
    identity = await clouds.start()
    with pytest.raises(GlanceUnavailableError, match="cannot be read"):
        await identity.token()


async def test_a_token_without_a_catalogue_leaves_no_endpoint(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """A login without a project gets a token and no catalogue."""
    keystone.omits = ("catalog",)
    identity = await clouds.start()
    with pytest.raises(GlanceRefusedError, match="catalogue"):
        await identity.endpoints()


async def test_a_certificate_that_nobody_vouches_for_is_named(
    clouds: Clouds, tmp_path: Path
) -> None:
    """The operator reads that it is TLS, and which key to look at."""
    write_certificate(tmp_path / "own.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem")
    async with FakeKeystone(tls=context) as keystone:
        clouds.write(keystone.url)
        stranger = await clouds.start()
        with pytest.raises(GlanceUnavailableError, match=r"TLS .* glance\.ca_file"):
            await stranger.token()
        friend = await clouds.start(ca_file=tmp_path / "own.pem")
        assert await friend.token() == keystone.issued[0]


@pytest.mark.parametrize(
    ("settings", "entry", "problem"),
    [
        ({"cloud": "nowhere"}, {}, "nowhere"),
        ({"region": "B"}, {"regions": ["A"]}, "region"),
        ({}, {"auth_type": "no-such-plugin"}, "no-such-plugin"),
        ({}, {"auth": {"username": "agent"}}, "auth_url"),
        ({}, {"auth": "agent"}, CLOUD),
        ({}, {"auth_type": "none", "auth": {"endpoint": "http://image.test"}}, "glance.auth"),
        ({"cloud": None}, {"auth": {}}, "OS_"),
    ],
)
async def test_a_cloud_that_cannot_be_used_stops_the_start(
    clouds: Clouds,
    tmp_path: Path,
    settings: dict[str, object],
    entry: dict[str, object],
    problem: str,
) -> None:
    """The message names the cloud and what is wrong, and Keystone is not asked."""
    given = {"auth": {"auth_url": "http://127.0.0.1:1/v3"}} | entry
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": {CLOUD: given}}))
    with pytest.raises(ConfigError, match=problem):
        await clouds.start(**settings)


async def test_an_identity_that_is_not_started_says_so() -> None:
    """Use before start is an error of the program; closing is none."""
    identity = KeystoneIdentity(KeystoneSettings())
    with pytest.raises(RuntimeError, match="before start"):
        await identity.endpoints()
    await identity.close()


async def test_closing_does_not_wait_for_a_keystone_that_hangs(
    clouds: Clouds, keystone: FakeKeystone
) -> None:
    """The daemon stops while a login is under way, and who waits for that is told."""
    identity = await clouds.start(timeout=3600)
    keystone.answering.clear()
    asking = asyncio.ensure_future(identity.token())
    await keystone.asked.wait()
    await identity.close()
    assert not keystone.answering.is_set()
    with pytest.raises(RuntimeError, match="stopped"):
        await asking
