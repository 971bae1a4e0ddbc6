"""A real Keystone and a real Glance on loopback, and what a test does with them."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keystoneauth1.exceptions import NotFound

from tests.openstack.people import REGION, User, auth_of, everybody, session_of, settle
from tests.openstack.servers import Place, Settings, await_answer, lay_out, served
from tests.openstack.software import software

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keystoneauth1.session import Session

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """The running servers. Users are given by name: people.py lists them.

    All methods block: a coroutine calls them in a thread. What a server refuses raises
    ``keystoneauth1.exceptions.HttpError``. ``clouds_yaml`` has an entry for each user.
    """

    place: Place
    users: dict[str, User]
    clouds_yaml: Path

    @property
    def keystone_url(self) -> str:
        """The URL of Keystone's v3 API."""
        return self.place.keystone_url

    @property
    def glance_url(self) -> str:
        """The URL of Glance, without a version."""
        return self.place.glance_url

    def stored(self, image_id: str) -> Path:
        """Return the file in which Glance keeps an image's data: to spoil it, say."""
        return self.place.store / image_id

    def environment(self, user: str) -> dict[str, str]:
        """Return the ``OS_*`` variables that make a program act as a user."""
        auth = auth_of(self.users[user], self.keystone_url)
        variables = {**auth, "region_name": REGION, "identity_api_version": "3"}
        return {f"OS_{name.upper()}": value for name, value in variables.items()}

    def session(self, user: str) -> Session:
        """Return a new session of keystoneauth, which gets tokens as it needs them."""
        return session_of(self.users[user], self.keystone_url)

    def token(self, user: str) -> str:
        """Return a new token."""
        return str(self.session(user).get_token())

    def revoke(self, token: str) -> None:
        """Make Keystone take a token no more; Glance may believe for a while what it knew."""
        headers = {"X-Subject-Token": token}
        self.session("admin").delete(f"{self.keystone_url}/auth/tokens", headers=headers)

    def outlive(self, token: str) -> None:
        """Wait until Keystone no longer takes a token, because its time is over."""
        headers = {"X-Subject-Token": token}
        with contextlib.suppress(NotFound):
            while True:
                self.session("admin").get(f"{self.keystone_url}/auth/tokens", headers=headers)
                time.sleep(POLL_SECONDS)

    def add_application_credential(self, user: str, entry: str) -> None:
        """Make an application credential, and an entry of clouds.yaml that uses it."""
        session = self.session(user)
        url = f"{self.keystone_url}/users/{session.get_user_id()}/application_credentials"
        answer = session.post(url, json={"application_credential": {"name": entry}})
        made = answer.json()["application_credential"]
        auth = {
            "auth_url": self.keystone_url,
            "application_credential_id": made["id"],
            "application_credential_secret": made["secret"],
        }
        content = json.loads(self.clouds_yaml.read_text())
        content["clouds"][entry] = _entry(auth, auth_type="v3applicationcredential")
        self.clouds_yaml.write_text(json.dumps(content))

    def create(self, user: str, disk_format: str, **properties: object) -> str:
        """Make an image without data and return its id; its status is ``queued``.

        It is private, its container ``bare``, unless ``properties`` say otherwise; they go into
        the image as Glance names them (``name``, ``visibility``, ``min_disk`` ...).
        """
        usual = {"name": "image", "container_format": "bare", "visibility": "private"}
        body = {**usual, "disk_format": disk_format, **properties}
        return str(self.session(user).post(self._images(), json=body).json()["id"])

    def upload(self, user: str, data: Path | bytes, disk_format: str, **properties: object) -> str:
        """Make an image of ``data``, a file or bytes, and return its id; it is ``active``."""
        image_id = self.create(user, disk_format, **properties)
        headers = {"Content-Type": "application/octet-stream"}
        with contextlib.ExitStack() as stack:
            body = stack.enter_context(data.open("rb")) if isinstance(data, Path) else data
            self.session(user).put(self._images(image_id, "file"), data=body, headers=headers)
        return image_id

    def set(self, image_id: str, properties: dict[str, str]) -> None:
        """Give an image more properties; it is left as it is otherwise."""
        changes = [
            {"op": "add", "path": f"/{name}", "value": value} for name, value in properties.items()
        ]
        headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        self.session("admin").patch(self._images(image_id), json=changes, headers=headers)

    def add_service(self, kind: str, url: str) -> None:
        """Put another service into the catalogue, for who logs in from now on."""
        session = self.session("admin")
        service = {"service": {"type": kind, "name": kind, "enabled": True}}
        made = session.post(f"{self.keystone_url}/services", json=service).json()["service"]
        endpoint = {"service_id": made["id"], "interface": "public", "url": url, "region": REGION}
        session.post(f"{self.keystone_url}/endpoints", json={"endpoint": endpoint})

    def deactivate(self, image_id: str) -> None:
        """Stop everybody but an administrator from downloading an image."""
        self.session("admin").post(self._images(image_id, "actions/deactivate"))

    def reactivate(self, image_id: str) -> None:
        """Let an image be downloaded again."""
        self.session("admin").post(self._images(image_id, "actions/reactivate"))

    def forget_digests(self, image_id: str) -> None:
        """Leave an image as a Glance from before Rocky did: no digest but the MD5 checksum."""
        statement = "UPDATE images SET os_hash_algo = NULL, os_hash_value = NULL WHERE id = ?"
        database = sqlite3.connect(self.place.folder / "glance.db")
        with contextlib.closing(database), database:
            database.execute(statement, (image_id,))

    def delete(self, image_id: str) -> None:
        """Delete an image."""
        self.session("admin").delete(self._images(image_id))

    def share(self, image_id: str, owner: str, user: str) -> None:
        """Let another user's project see and download an image (its visibility is ``shared``)."""
        member = {"member": self.session(user).get_project_id()}
        self.session(owner).post(self._images(image_id, "members"), json=member)

    def unshare(self, image_id: str, owner: str, user: str) -> None:
        """Take back what ``share`` gave."""
        project = self.session(user).get_project_id()
        self.session(owner).delete(self._images(image_id, "members", str(project)))

    def _images(self, *path: str) -> str:
        return "/".join((self.glance_url, "v2/images", *path))


@contextlib.contextmanager
def running_cloud(folder: Path, settings: Settings) -> Iterator[Cloud]:
    """Run both servers while the block lasts, with all that they write in ``folder``."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    keystone, glance = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in listening)
    place = Place(
        folder=folder, software=software(), keystone_url=f"{keystone}/v3", glance_url=glance
    )
    users = everybody(place.software.admin_password)
    lay_out(place, settings, users["glance"].password)
    entries = {name: _entry(auth_of(user, place.keystone_url)) for name, user in users.items()}
    clouds_yaml = folder / "clouds.yaml"
    clouds_yaml.write_text(json.dumps({"clouds": entries}))  # JSON is YAML too
    with served(place, "keystone", listening[0]), served(place, "glance", listening[1]):
        await_answer(place.keystone_url, folder / "keystone.log")
        settle(users, place.keystone_url, place.glance_url)
        await_answer(f"{place.glance_url}/healthcheck", folder / "glance.log")
        yield Cloud(place=place, users=users, clouds_yaml=clouds_yaml)


def _entry(auth: dict[str, str], **more: str) -> dict[str, object]:
    return {"auth": auth, "region_name": REGION, **more}
