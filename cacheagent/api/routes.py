"""The table of all routes: the router and the OpenAPI document are made from it."""

from __future__ import annotations

from cacheagent.api import disks, events, images, system, wire
from cacheagent.api.requests import DiskRequest, PrefetchRequest, PruneRequest
from cacheagent.api.table import Body, Route, Success
from cacheagent.errors import (
    BaseInUseError,
    DigestMismatchError,
    DiskConflictError,
    DiskNotFoundError,
    DiskTooSmallError,
    HostUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
    ImageNotFoundError,
    ImageUnacceptableError,
    InstanceNotFoundError,
    InsufficientSpaceError,
    OperatorOnlyError,
)

_INSTANCES = "/v1/instances"
_INSTANCE = f"{_INSTANCES}/{{instance_id}}"
_DISK = f"{_INSTANCE}/disks/{{name}}"
_IMAGES = "/v1/images"
_IMAGE = f"{_IMAGES}/{{image_id}}"
_PIN = f"{_IMAGE}/pin"

_ACCESS = (
    ImageForbiddenError,
    ImageNotFoundError,
    ImageNotActiveError,
)
"""What a look at Glance can end in."""

_FETCH = (
    *_ACCESS,
    ImageUnacceptableError,
    DigestMismatchError,
    HostUnavailableError,
    InsufficientSpaceError,
)
"""What bringing an image in can end in."""

_STEER = (*_ACCESS, OperatorOnlyError, InsufficientSpaceError)
"""What comes of writing down what an operator wants of an image."""

_REMOVE = (OperatorOnlyError, HostUnavailableError, InsufficientSpaceError)
"""What comes of a folder that is not ours, and of a catalog that has no room for the news."""

_LOCATION = {"Location": "The path of the disk."}
_DONE = {204: Success(description="Done.")}

DISK_ROUTES = (
    Route(
        operation="disk_create",
        method="PUT",
        path=_DISK,
        summary="Create the disk; the same request again answers with the same disk.",
        handler=disks.create,
        body=Body(model=DiskRequest),
        headers={"Prefer": "`respond-async`: answer at once, while the base is still coming."},
        answers={
            200: Success(description="It was there.", model=wire.Disk),
            201: Success(description="It was made.", model=wire.Disk, headers=_LOCATION),
            202: Success(
                description="It is being made: ask for it again.",
                model=wire.Disk,
                headers=_LOCATION | {"Preference-Applied": "`respond-async`"},
            ),
        },
        problems=(*_FETCH, DiskConflictError, DiskTooSmallError),
    ),
    Route(
        operation="disk_show",
        method="GET",
        path=_DISK,
        summary="Show a disk.",
        handler=disks.show,
        answers={200: Success(description="The disk.", model=wire.Disk)},
        problems=(DiskNotFoundError,),
    ),
    Route(
        operation="disk_delete",
        method="DELETE",
        path=_DISK,
        summary="Remove the disk; one that is gone already is a success too.",
        handler=disks.delete,
        answers=_DONE,
        problems=_REMOVE,
    ),
    Route(
        operation="instance_list",
        method="GET",
        path=_INSTANCES,
        summary="List all instances with their disks.",
        handler=disks.list_instances,
        answers={200: Success(description="All instances.", model=wire.Instances)},
    ),
    Route(
        operation="instance_show",
        method="GET",
        path=_INSTANCE,
        summary="Show an instance with its disks.",
        handler=disks.show_instance,
        answers={200: Success(description="The instance.", model=wire.Instance)},
        problems=(InstanceNotFoundError,),
    ),
    Route(
        operation="instance_delete",
        method="DELETE",
        path=_INSTANCE,
        summary="Remove the instance with all its disks.",
        handler=disks.delete_instance,
        answers=_DONE,
        problems=_REMOVE,
    ),
)

IMAGE_ROUTES = (
    Route(
        operation="image_list",
        method="GET",
        path=_IMAGES,
        summary="List the images that are cached or coming.",
        handler=images.list_images,
        answers={200: Success(description="All images.", model=wire.Images)},
    ),
    Route(
        operation="image_show",
        method="GET",
        path=_IMAGE,
        summary="Show an image with its progress and its users.",
        handler=images.show,
        answers={200: Success(description="The image.", model=wire.Image)},
        problems=_ACCESS,
    ),
    Route(
        operation="image_prefetch",
        method="PUT",
        path=_IMAGE,
        summary="Bring the image in before anybody asks for it.",
        handler=images.prefetch,
        body=Body(model=PrefetchRequest, required=False),
        answers={
            200: Success(description="It is ready.", model=wire.Image),
            202: Success(description="It is coming.", model=wire.Image),
        },
        problems=(*_FETCH, OperatorOnlyError),
    ),
    Route(
        operation="image_evict",
        method="DELETE",
        path=_IMAGE,
        summary="Evict the base of the image now.",
        handler=images.evict,
        answers=_DONE,
        problems=(*_STEER, BaseInUseError),
    ),
    Route(
        operation="image_why",
        method="GET",
        path=f"{_IMAGE}/why",
        summary="Say why the image stays, or when it goes.",
        handler=images.why,
        answers={200: Success(description="The reasons.", model=wire.Why)},
        problems=_ACCESS,
    ),
    Route(
        operation="image_verify",
        method="POST",
        path=f"{_IMAGE}/verify",
        summary="Read the base of the image again and compare its digest.",
        handler=images.verify,
        answers={200: Success(description="What came of it.", model=wire.Verification)},
        problems=_STEER,
    ),
    Route(
        operation="image_pin",
        method="PUT",
        path=_PIN,
        summary="Pin the image: it is not evicted.",
        handler=images.pin,
        answers=_DONE,
        problems=_STEER,
    ),
    Route(
        operation="image_unpin",
        method="DELETE",
        path=_PIN,
        summary="Unpin the image.",
        handler=images.unpin,
        answers=_DONE,
        problems=_STEER,
    ),
)

AGENT_ROUTES = (
    Route(
        operation="prune",
        method="POST",
        path="/v1/prune",
        summary="Make one pass of eviction now, or only tell its plan.",
        handler=system.prune,
        body=Body(model=PruneRequest, required=False),
        answers={200: Success(description="What went, and what stays.", model=wire.Pruned)},
        problems=(OperatorOnlyError, InsufficientSpaceError),
    ),
    Route(
        operation="events",
        method="GET",
        path="/v1/events",
        summary="Tell what happens, as server-sent events, until the caller goes away.",
        handler=events.stream,
        headers={"Last-Event-ID": "The event behind which to go on, of those still remembered."},
        answers={200: Success(description="The events.", media_type=events.MEDIA_TYPE)},
        stream=True,
    ),
    Route(
        operation="status",
        method="GET",
        path="/v1/status",
        summary="Show the agent at a glance.",
        handler=system.status,
        answers={200: Success(description="The agent.", model=wire.Status)},
    ),
)

HEALTH_ROUTES = (
    Route(
        operation="healthz",
        method="GET",
        path="/healthz",
        summary="Tell whether the daemon is alive.",
        handler=system.healthz,
        answers={200: Success(description="It is.", model=wire.Health)},
    ),
    Route(
        operation="readyz",
        method="GET",
        path="/readyz",
        summary="Tell whether the daemon can serve requests.",
        handler=system.readyz,
        answers={
            200: Success(description="It can.", model=wire.Readiness),
            503: Success(description="It cannot yet, or no more.", model=wire.Readiness),
        },
    ),
)

METRICS_ROUTE = Route(
    operation="metrics",
    method="GET",
    path="/metrics",
    summary="Give all metrics as Prometheus text.",
    handler=system.metrics,
    answers={200: Success(description="The metrics.", media_type="text/plain")},
)

DOCUMENT_ROUTES = (
    Route(
        operation="openapi",
        method="GET",
        path="/openapi.json",
        summary="Give this document.",
        handler=system.description,
        answers={200: Success(description="The document.", media_type="application/json")},
    ),
    Route(
        operation="page",
        method="GET",
        path="/",
        summary="Give the status page.",
        handler=system.page,
        answers={200: Success(description="The page.", media_type="text/html")},
    ),
)

METRICS_APP_ROUTES = (*HEALTH_ROUTES, METRICS_ROUTE)
"""What the listener of the metrics knows."""

ROUTES = (*DISK_ROUTES, *IMAGE_ROUTES, *AGENT_ROUTES, *METRICS_APP_ROUTES, *DOCUMENT_ROUTES)
"""What the API knows."""
