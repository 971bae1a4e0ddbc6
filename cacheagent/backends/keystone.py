"""Who the agent is where there is a Keystone: its tokens, and where the image service is.

keystoneauth1 has no asyncio, and ``openstack.config`` reads files: both run in one thread, which
also keeps their state to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from keystoneauth1 import exceptions as keystone
from keystoneauth1.identity.base import BaseIdentityPlugin
from openstack.config import OpenStackConfig

from cacheagent.errors import ConfigError, GlanceRefusedError, GlanceUnavailableError
from cacheagent.policy.answers import plain_url
from cacheagent.sync.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

LONGEST_MARGIN = 120
"""Seconds before its end at which a token is renewed; less for tokens that live shortly."""

_RETRY_AFTER = 5
_REFUSALS = (keystone.Unauthorized, keystone.Forbidden)
_PASSING = (keystone.HttpServerError, keystone.TooManyRequests, keystone.RequestTimeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeystoneSettings:
    """Which entry of clouds.yaml (None: the ``OS_*`` variables), and what overrides it.

    ``endpoints`` are base URLs of the image service, empty for those of the catalogue. ``timeout``
    is seconds for one request to Keystone. A token is not renewed again on demand within
    ``renew_interval`` seconds: whoever sends us tokens that Glance refuses makes us ask Keystone.
    """

    cloud: str | None = None
    region: str | None = None
    interface: str | None = None
    endpoints: tuple[str, ...] = ()
    ca_file: Path | None = None
    timeout: float = 30.0
    renew_interval: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    """What Keystone gave: a token, and where services are; times are those of the clock."""

    token: str
    endpoints: tuple[str, ...]
    key_managers: tuple[str, ...]
    fetched_at: float
    use_until: float


@dataclass(frozen=True, slots=True)
class _Cloud:
    """A cloud as it is configured: the plugin that gets tokens, and where to look for images."""

    plugin: Any
    session: Any
    region: str | None
    interface: str | Sequence[str]
    endpoints: tuple[str, ...]
    ca_file: Path | None


class KeystoneIdentity:
    """The identity that an entry of clouds.yaml or the ``OS_*`` variables describe.

    To be started before use and closed. Any kind of credentials that keystoneauth knows will do.
    ``on_failure`` is called each time that Keystone gives no token; ``clock`` is monotonic
    seconds.
    """

    def __init__(
        self,
        settings: KeystoneSettings,
        *,
        on_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._on_failure = on_failure
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keystone")
        self._renewals: SingleFlight[str, _Grant] = SingleFlight()
        self._cloud: _Cloud | None = None
        self._grant: _Grant | None = None

    async def start(self) -> None:
        """Read the configuration of the cloud; asks Keystone for nothing.

        Raises: ``ConfigError`` where it is not there or not complete.
        """
        self._cloud = await self._in_thread(_load, self._settings)

    async def close(self) -> None:
        """Drop the connections; a request under way is not waited for and ends in its thread."""
        await self._renewals.shutdown()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._cloud is not None:
            await asyncio.to_thread(self._cloud.session.session.close)

    @property
    def ca_file(self) -> Path | None:
        """The certificate authorities of this cloud, which its image service needs as well."""
        return self._started.ca_file

    async def endpoints(self) -> Sequence[str]:
        """Give the base URLs of the image service, in order of preference.

        Those that were not configured here are without user and password: they are logged.
        Raises: ``GlanceRefusedError`` where the catalogue has none; as ``token``.
        """
        if self._started.endpoints:
            return self._started.endpoints
        grant = await self._current()
        if not grant.endpoints:
            raise GlanceRefusedError(
                "the catalogue of Keystone has no image service for this region and interface",
                glance_status=404,
            )
        return grant.endpoints

    async def key_managers(self) -> Sequence[str]:
        """Give the base URLs of the key managers (Barbican) in the catalogue, none where none is.

        Raises: as ``token``.
        """
        return (await self._current()).key_managers

    async def token(self) -> str | None:
        """Give the agent's token, fresh enough to be used.

        Raises: ``GlanceUnavailableError`` where Keystone cannot be reached or fails;
        ``GlanceRefusedError`` where it does not accept the credentials.
        """
        return (await self._current()).token

    async def renew(self, refused: str) -> str | None:
        """Give another token than ``refused``; the same one if it is too new to be renewed.

        Raises: as ``token``.
        """
        grant = self._grant
        if grant is not None and grant.token == refused:
            if self._clock() - grant.fetched_at < self._settings.renew_interval:
                return refused
            self._grant = None
        return await self.token()

    @property
    def _started(self) -> _Cloud:
        if self._cloud is None:
            raise RuntimeError("the identity is used before start")
        return self._cloud

    async def _current(self) -> _Grant:
        if self._grant is not None and self._clock() < self._grant.use_until:
            return self._grant
        grant, _ = await self._renewals.run("token", self._fetch)
        return grant

    async def _fetch(self) -> _Grant:
        try:
            self._grant = await self._in_thread(_authenticate, self._started, self._clock)
        except (GlanceRefusedError, GlanceUnavailableError):
            self._on_failure()
            raise
        return self._grant

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


def _load(settings: KeystoneSettings) -> _Cloud:
    wanted = {"region_name": settings.region, "interface": settings.interface}
    if settings.ca_file is not None:
        wanted["cacert"] = str(settings.ca_file)
    overrides: dict[str, Any] = {key: value for key, value in wanted.items() if value}
    with _config_errors(settings.cloud):
        config = OpenStackConfig(app_name="cacheagent")
        region = config.get_one(cloud=settings.cloud, **overrides)
        session = region.get_session()
        verify, _ = region.get_requests_verify_args()
        image_endpoint = plain_url(region.get_endpoint("image") or "")
    if not isinstance(region.get_auth(), BaseIdentityPlugin):
        raise ConfigError(f"{_name(settings.cloud)} gives no tokens of Keystone, see glance.auth")
    session.timeout = session.timeout or settings.timeout
    session.session.trust_env = False  # no proxy and no .netrc, as for Glance
    return _Cloud(
        plugin=region.get_auth(),
        session=session,
        region=region.get_region_name("image") or None,
        interface=region.get_interface("image") or "public",
        endpoints=settings.endpoints or ((image_endpoint,) if image_endpoint else ()),
        ca_file=Path(verify) if isinstance(verify, str) else None,
    )


def _name(cloud: str | None) -> str:
    return "the OS_* environment" if cloud is None else f"glance.cloud {cloud!r}"


@contextlib.contextmanager
def _config_errors(cloud: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a person's file: openstack.config fails in any way at all
        raise ConfigError(f"{_name(cloud)} cannot be used: {error}") from error


def _authenticate(cloud: _Cloud, clock: Callable[[], float]) -> _Grant:
    """Get a new token, whatever the plugin still holds."""
    with _keystone_errors():
        cloud.plugin.invalidate()
        access = cloud.plugin.get_access(cloud.session)
        life = (access.expires - datetime.now(UTC)).total_seconds()
        now = clock()
        return _Grant(
            token=str(access.auth_token),
            endpoints=_services(access, cloud, "image"),
            key_managers=_services(access, cloud, "key-manager"),
            fetched_at=now,
            use_until=now + life - min(LONGEST_MARGIN, life / 4),
        )


def _services(access: Any, cloud: _Cloud, kind: str) -> tuple[str, ...]:  # noqa: ANN401  keystoneauth1 has no types here
    """Find the services of a kind in one region: those of another have other images, and keys."""
    if not access.has_service_catalog():
        return ()
    found = access.service_catalog.get_endpoints_data(
        service_type=kind, interface=cloud.interface, region_name=cloud.region
    )
    services = [service for each in found.values() for service in each]
    return tuple(
        plain_url(service.url)
        for service in services
        if service.region_name == services[0].region_name
    )


@contextlib.contextmanager
def _keystone_errors() -> Iterator[None]:
    """Translate what keystoneauth1 raises.

    Most of it may pass. That includes a failed discovery: keystoneauth1 reports a Keystone that
    is away in the same way as a wrong address.
    """
    try:
        yield
    except _REFUSALS as error:
        message = f"Keystone does not accept the agent's credentials: {error}"
        raise GlanceRefusedError(message, glance_status=error.http_status) from error
    except _PASSING as error:
        raise _unavailable(f"Keystone fails: {error}") from error
    except keystone.HTTPClientError as error:
        message = f"Keystone refuses to give a token: {error}"
        raise GlanceRefusedError(message, glance_status=error.http_status) from error
    except keystone.SSLError as error:
        raise _unavailable(f"TLS with Keystone fails, see glance.ca_file: {error}") from error
    except keystone.ClientException as error:
        raise _unavailable(f"Keystone cannot be reached: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise _unavailable(f"the answer of Keystone cannot be read: {error}") from error


def _unavailable(message: str) -> GlanceUnavailableError:
    return GlanceUnavailableError(message, retry_after=_RETRY_AFTER)
