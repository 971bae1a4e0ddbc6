"""Everything that cacheagent raises on purpose.

::

    CacheAgentError
    ├── ConfigError                  the configuration file cannot be used
    ├── StateDirBusyError            another agent holds the state folder
    ├── ProblemError                 a request has a clear answer that is not success
    │   ├── InvalidRequestError
    │   ├── UnauthenticatedError
    │   │   └── BearerError
    │   ├── ImageForbiddenError
    │   ├── OperatorOnlyError
    │   ├── NotFoundError
    │   │   ├── ImageNotFoundError
    │   │   ├── PathNotFoundError
    │   │   ├── DiskNotFoundError
    │   │   └── InstanceNotFoundError
    │   ├── MethodNotAllowedError
    │   ├── ImageNotActiveError
    │   ├── DiskConflictError
    │   ├── BaseInUseError
    │   ├── ImageUnacceptableError
    │   ├── DiskTooSmallError
    │   ├── DigestMismatchError
    │   ├── GlanceRefusedError
    │   ├── InsufficientSpaceError
    │   │   └── DiskFullError
    │   └── RetryLaterError
    │       ├── GlanceUnavailableError
    │       ├── HostUnavailableError
    │       │   ├── ProgramKilledError
    │       │   └── ProgramMissingError
    │       ├── ShuttingDownError
    │       └── TooManyRequestsError
    ├── CatalogError                 the catalog's database failed
    ├── QemuImgError                 qemu-img failed, or a limit stopped it
    ├── MkfsError                    a file system could not be made
    ├── NotQcow2Error                a file has no qcow2 header that can be read
    ├── RequestFailedError           what the client library raises for a problem
    └── DaemonUnreachableError       what it raises where no daemon answers

A ``ProblemError`` knows its word, its status and its members (RFC 9457 calls them extension
members); ``api.problems`` writes them down. Nothing else in the tree knows a status. Backends
translate foreign errors into these at their edge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class CacheAgentError(Exception):
    """The root: catch it to catch everything that cacheagent raises on purpose."""


class ConfigError(CacheAgentError):
    """The configuration cannot be used; the message names the key."""


class StateDirBusyError(CacheAgentError):
    """Another agent holds the lock of the state folder."""


class CatalogError(CacheAgentError):
    """The catalog's database cannot be opened, read or written."""


class QemuImgError(CacheAgentError):
    """A qemu-img command failed or was stopped by a limit; the message is its last words.

    ``no_space`` tells that the file system was full, or the quota used up, ``at_limit`` that it
    was stopped by a limit of ours.
    """

    def __init__(self, message: str, *, no_space: bool = False, at_limit: bool = False) -> None:
        self.no_space = no_space
        self.at_limit = at_limit
        super().__init__(message)


class MkfsError(CacheAgentError):
    """A file system could not be made, and not because of what was asked for."""

    def __init__(self, message: str, *, no_space: bool = False) -> None:
        self.no_space = no_space
        super().__init__(message)


class NotQcow2Error(CacheAgentError):
    """The file does not begin with a sound qcow2 header; the message says what is wrong."""


class ProblemError(CacheAgentError):
    """A refusal or failure with a word, an HTTP status and members of its own."""

    word: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def members(self) -> Mapping[str, object]:
        """Give the members beside type, title, status and detail; values are JSON."""
        return {}

    def __copy__(self) -> Self:
        """Give the same refusal without traceback and cause, which keep alive what they saw."""
        made = type(self).__new__(type(self), *self.args)
        made.__dict__.update(self.__dict__)
        return made

    def add(self, words: str) -> None:
        """Add to the detail what its cause could not know."""
        self.args = (f"{self}; {words}",)


class InvalidRequestError(ProblemError):
    """The request cannot be read; ``problems`` holds pairs of field and problem."""

    word, status, title = "invalid-request", 400, "Invalid request"

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in self.problems))

    def members(self) -> Mapping[str, object]:
        """Give ``errors``: a list of objects with ``field`` and ``problem``."""
        return {"errors": [{"field": f, "problem": p} for f, p in self.problems]}


class UnauthenticatedError(ProblemError):
    """No token where one is needed, or one that Keystone does not accept."""

    word, status, title = "unauthenticated", 401, "Not authenticated"


class BearerError(UnauthenticatedError):
    """A connection over TCP came without a bearer token that the operator gave out."""


class ImageForbiddenError(ProblemError):
    """The token may not download the image."""

    word, status, title = "image-forbidden", 403, "Image forbidden"

    def __init__(self, image_id: str, message: str) -> None:
        self.image_id = image_id
        super().__init__(message)

    def members(self) -> Mapping[str, object]:
        """Give ``image_id``."""
        return {"image_id": self.image_id}


class OperatorOnlyError(ProblemError):
    """A tenant's token gives no right to this; without one it is an operator who asks."""

    word, status, title = "operator-only", 403, "Operator only"


class NotFoundError(ProblemError):
    """What the request names does not exist, or not for this caller."""

    status = 404


class ImageNotFoundError(NotFoundError):
    """Glance does not know the image, or does not show it to this caller."""

    word, title = "image-not-found", "Image not found"


class PathNotFoundError(NotFoundError):
    """The API has no such path."""

    word, title = "not-found", "Not found"


class MethodNotAllowedError(ProblemError):
    """The path is there, and does not know the method; ``allowed`` are those that it knows."""

    word, status, title = "method-not-allowed", 405, "Method not allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allowed = tuple(sorted(allowed))
        super().__init__(f"this path knows {', '.join(self.allowed)}")


class DiskNotFoundError(NotFoundError):
    """The instance has no disk of this name."""

    word, title = "disk-not-found", "Disk not found"


class InstanceNotFoundError(NotFoundError):
    """No disk of this instance is known."""

    word, title = "instance-not-found", "Instance not found"


class ImageNotActiveError(ProblemError):
    """The image is not ``active`` in Glance; ``image_status`` is what it is instead."""

    word, status, title = "image-not-active", 409, "Image not active"

    def __init__(self, image_id: str, image_status: str) -> None:
        self.image_status = image_status
        super().__init__(f"image {image_id} is {image_status}, not active")

    def members(self) -> Mapping[str, object]:
        """Give ``image_status``, the state of the image in Glance."""
        return {"image_status": self.image_status}


class DiskConflictError(ProblemError):
    """The name is taken by a disk of another specification, given in ``existing``."""

    word, status, title = "disk-conflict", 409, "Disk conflict"

    def __init__(self, message: str, existing: Mapping[str, object]) -> None:
        self.existing = existing
        super().__init__(message)

    def members(self) -> Mapping[str, object]:
        """Give ``existing``: the specification of the disk that is there."""
        return {"existing": dict(self.existing)}


class BaseInUseError(ProblemError):
    """The base cannot be evicted; ``users`` lists why."""

    word, status, title = "base-in-use", 409, "Base in use"

    def __init__(self, message: str, users: Sequence[Mapping[str, object]]) -> None:
        self.users = tuple(users)
        super().__init__(message)

    def members(self) -> Mapping[str, object]:
        """Give ``users``: objects with ``kind`` and what names the user."""
        return {"users": [dict(user) for user in self.users]}


class ImageUnacceptableError(ProblemError):
    """The image breaks a rule of admission; ``reason`` is the name of the rule."""

    word, status, title = "image-unacceptable", 422, "Image unacceptable"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)

    def members(self) -> Mapping[str, object]:
        """Give ``reason``."""
        return {"reason": self.reason}


class DiskTooSmallError(ProblemError):
    """The disk asked for is smaller than the image demands."""

    word, status, title = "disk-too-small", 422, "Disk too small"

    def __init__(self, *, required_bytes: int, requested_bytes: int) -> None:
        self.required_bytes = required_bytes
        self.requested_bytes = requested_bytes
        super().__init__(
            f"the disk would be {requested_bytes} bytes large, the image needs {required_bytes}:"
            " its virtual size, or Glance's min_disk"
        )

    def members(self) -> Mapping[str, object]:
        """Give ``required_bytes`` and ``requested_bytes``."""
        return {"required_bytes": self.required_bytes, "requested_bytes": self.requested_bytes}


class DigestMismatchError(ProblemError):
    """The bytes received are not those that Glance's digest stands for."""

    word, status, title = "digest-mismatch", 502, "Digest mismatch"

    def __init__(self, *, algorithm: str, expected: str, actual: str) -> None:
        self.algorithm = algorithm
        self.expected = expected
        self.actual = actual
        super().__init__(f"{algorithm} is {actual}, Glance says {expected}")

    def members(self) -> Mapping[str, object]:
        """Give ``algorithm``, ``expected`` and ``actual``."""
        return {"algorithm": self.algorithm, "expected": self.expected, "actual": self.actual}


class GlanceRefusedError(ProblemError):
    """Glance answered something that no retry will change; ``glance_status`` is its status."""

    word, status, title = "glance-refused", 502, "Glance refused"

    def __init__(self, message: str, *, glance_status: int) -> None:
        self.glance_status = glance_status
        super().__init__(message)

    def members(self) -> Mapping[str, object]:
        """Give ``glance_status``."""
        return {"glance_status": self.glance_status}


class RetryLaterError(ProblemError):
    """A state that passes; ``retry_after`` says in how many seconds to try again."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class GlanceUnavailableError(RetryLaterError):
    """Glance or Keystone cannot be reached, or fails, and went on to do so."""

    word, title = "glance-unavailable", "Glance unavailable"


class HostUnavailableError(RetryLaterError):
    """This host could not run a program to its end, which says nothing about the image."""

    word, title = "host-unavailable", "Host unavailable"


class ProgramKilledError(HostUnavailableError):
    """A program was killed, and by none of its limits: out of memory, or by somebody's hand."""


class ProgramMissingError(HostUnavailableError):
    """A program that is needed is not installed; the message names it."""


class ShuttingDownError(RetryLaterError):
    """The daemon is stopping and takes no new work."""

    word, title = "shutting-down", "Shutting down"


class TooManyRequestsError(RetryLaterError):
    """The caller asks more often than it may; nothing was done."""

    word, status, title = "too-many-requests", 429, "Too many requests"


class InsufficientSpaceError(ProblemError):
    """The bytes do not fit into the file system."""

    word, status, title = "insufficient-space", 507, "Insufficient space"

    def __init__(self, *, required_bytes: int, available_bytes: int, why: str = "") -> None:
        """Take the figures, and in words which bound leaves no more and what keeps the rest."""
        self.required_bytes = required_bytes
        self.available_bytes = available_bytes
        super().__init__(f"{required_bytes} bytes are needed, {available_bytes} are available{why}")

    def members(self) -> Mapping[str, object]:
        """Give ``required_bytes`` and ``available_bytes``."""
        return {"required_bytes": self.required_bytes, "available_bytes": self.available_bytes}


class DiskFullError(InsufficientSpaceError):
    """A write found the file system full, or the quota used up, whatever was reckoned before."""


class RequestFailedError(CacheAgentError):
    """The daemon answered a client with a problem; ``problem`` is its JSON."""

    def __init__(self, message: str, *, status: int, problem: Mapping[str, object]) -> None:
        self.status = status
        self.problem = problem
        super().__init__(message)


class DaemonUnreachableError(CacheAgentError):
    """No daemon answers at the address that the client was given."""
