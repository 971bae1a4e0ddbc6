"""Who there is in the cloud: projects, users and their roles, and where the services are."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

DOMAIN = "default"
REGION = "RegionOne"


@dataclass(frozen=True, slots=True)
class User:
    """A user, the project that its tokens are for, its roles there, and its password."""

    name: str
    project: str
    roles: tuple[str, ...]
    password: str = field(default_factory=lambda: secrets.token_hex(12))


def everybody(admin_password: str) -> dict[str, User]:
    """Return the users by name. Keystone's database begins with ``admin``, the rest is made.

    ``cacheagent`` is the agent's own user. ``alice`` and ``bob`` are tenants with a project
    each; ``carol`` may look into alice's project, and download nothing.
    """
    users = (
        User("admin", "admin", ("admin",), admin_password),
        User("glance", "service", ("service",)),
        User("cacheagent", "service", ("service", "member")),
        User("alice", "project-a", ("member",)),
        User("carol", "project-a", ("reader",)),
        User("bob", "project-b", ("member",)),
    )
    return {user.name: user for user in users}


def auth_of(user: User, keystone_url: str) -> dict[str, str]:
    """Return what clouds.yaml calls ``auth``."""
    return {
        "auth_url": keystone_url,
        "username": user.name,
        "password": user.password,
        "project_name": user.project,
        "user_domain_id": DOMAIN,
        "project_domain_id": DOMAIN,
    }


def session_of(user: User, keystone_url: str) -> Session:
    """Return a session that acts as the user; a status of 400 or more raises ``HttpError``."""
    password = Password(
        keystone_url,
        username=user.name,
        password=user.password,
        project_name=user.project,
        user_domain_id=DOMAIN,
        project_domain_id=DOMAIN,
    )
    return Session(auth=password)


def settle(users: dict[str, User], keystone_url: str, glance_url: str) -> None:
    """Make the users with their projects and roles, and the catalogue."""
    keystone = _Admin(session_of(users["admin"], keystone_url), keystone_url)
    others = [user for user in users.values() if user.name != "admin"]
    projects = {
        name: keystone.make("project", name=name, domain_id=DOMAIN)
        for name in dict.fromkeys(user.project for user in others)
    }
    roles = keystone.ids("role", "name")
    for user in others:
        made = keystone.make("user", name=user.name, domain_id=DOMAIN, password=user.password)
        for role in user.roles:
            keystone.grant(projects[user.project], made, roles[role])
    keystone.make("region", id=REGION)
    services = keystone.ids("service", "type")
    for kind, url in (("identity", keystone_url), ("image", glance_url)):
        service = services.get(kind) or keystone.make("service", type=kind, name=kind)
        for interface in ("public", "internal", "admin"):
            keystone.make(
                "endpoint", service_id=service, interface=interface, url=url, region_id=REGION
            )


@dataclass(frozen=True, slots=True)
class _Admin:
    """Keystone's API, as far as it is needed here."""

    session: Session
    url: str

    def make(self, kind: str, **members: str) -> str:
        """Make something and return its id."""
        made = self.session.post(f"{self.url}/{kind}s", json={kind: members}).json()
        return str(made[kind]["id"])

    def ids(self, kind: str, key: str) -> dict[str, str]:
        """Return the ids of all things of a kind by one of their members."""
        listed = self.session.get(f"{self.url}/{kind}s").json()[f"{kind}s"]
        return {each[key]: each["id"] for each in listed}

    def grant(self, project: str, user: str, role: str) -> None:
        """Give a user a role on a project."""
        self.session.put(f"{self.url}/projects/{project}/users/{user}/roles/{role}")
