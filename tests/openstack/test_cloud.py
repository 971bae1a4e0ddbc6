"""The clouds that other tests rely on are the real thing, and behave like it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import requests
from keystoneauth1.exceptions import UnsupportedMediaType
from openstack.config import OpenStackConfig

if TYPE_CHECKING:
    from tests.openstack.cloud import Cloud

DATA = bytes(range(256)) * 4096


def _get(cloud: Cloud, user: str, path: str) -> requests.Response:
    headers = {"X-Auth-Token": cloud.token(user)}
    return requests.get(f"{cloud.glance_url}/v2/images/{path}", headers=headers, timeout=30)


def test_what_goes_up_comes_down(cloud: Cloud) -> None:
    """A tenant uploads an image and gets the same bytes back, with Glance's digest of them."""
    image_id = cloud.upload("alice", DATA, "raw", name="bytes", min_disk=1)
    image = _get(cloud, "alice", image_id).json()
    assert (image["status"], image["name"], image["min_disk"]) == ("active", "bytes", 1)
    assert image["os_hash_algo"] == "sha512"
    assert image["os_hash_value"] == hashlib.sha512(DATA).hexdigest()
    assert _get(cloud, "alice", f"{image_id}/file").content == DATA
    assert cloud.stored(image_id).read_bytes() == DATA


def test_each_tenant_sees_its_own(cloud: Cloud) -> None:
    """A private image does not exist for another tenant, until it is shared with it."""
    image_id = cloud.upload("alice", DATA, "raw", visibility="shared")
    assert _get(cloud, "bob", image_id).status_code == 404
    assert _get(cloud, "cacheagent", f"{image_id}/file").status_code == 404
    cloud.share(image_id, "alice", "bob")
    assert _get(cloud, "bob", f"{image_id}/file").content == DATA


def test_a_reader_may_only_look(cloud: Cloud) -> None:
    """A user with no role but reader sees the image of its project, and gets no data."""
    image_id = cloud.upload("alice", DATA, "raw")
    assert _get(cloud, "carol", image_id).status_code == 200
    assert _get(cloud, "carol", f"{image_id}/file").status_code == 403


def test_a_deactivated_image_is_withheld(cloud: Cloud) -> None:
    """The owner of a deactivated image gets 403 instead of its data."""
    image_id = cloud.upload("alice", DATA, "raw")
    cloud.deactivate(image_id)
    assert _get(cloud, "alice", f"{image_id}/file").status_code == 403


def test_a_deleted_image_is_gone(cloud: Cloud) -> None:
    """An image without data is queued, and a deleted one does not exist."""
    image_id = cloud.create("alice", "qcow2")
    assert _get(cloud, "alice", image_id).json()["status"] == "queued"
    cloud.delete(image_id)
    assert _get(cloud, "alice", image_id).status_code == 404


def test_bytes_must_be_what_they_are_called(cloud: Cloud) -> None:
    """Glance refuses raw bytes that are uploaded as a qcow2 image."""
    with pytest.raises(UnsupportedMediaType):
        cloud.upload("alice", DATA, "qcow2")


# The SDK warns of InfluxDB in any case, as it looks for the settings and not for their values.
@pytest.mark.filterwarnings("ignore:Support for InfluxDB")
def test_an_application_credential_is_an_entry(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """clouds.yaml can be used as it is, by a user's name or by an application credential."""
    cloud.add_application_credential("alice", "alice-application")
    image_id = cloud.upload("alice", DATA, "raw")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(cloud.clouds_yaml))
    for entry in ("alice", "alice-application"):
        session = OpenStackConfig().get_one(entry).get_session()
        assert session.get(f"/v2/images/{image_id}", endpoint_filter={"service_type": "image"}).ok


def test_a_token_runs_out(expiring_cloud: Cloud) -> None:
    """A token is refused after its time, and taken again beside a service's own."""
    image_id = expiring_cloud.upload("alice", DATA, "raw")
    url = f"{expiring_cloud.glance_url}/v2/images/{image_id}/file"
    headers = {"X-Auth-Token": expiring_cloud.token("alice")}
    assert requests.get(url, headers=headers, timeout=30).status_code == 200
    expiring_cloud.outlive(headers["X-Auth-Token"])
    assert requests.get(url, headers=headers, timeout=30).status_code == 401
    headers["X-Service-Token"] = expiring_cloud.token("cacheagent")
    assert requests.get(url, headers=headers, timeout=30).status_code == 200
