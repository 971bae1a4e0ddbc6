"""The JSON of every request, as strict models, and what they mean.

An unknown field, a wrong type, a value out of range or fields that contradict one another are an
``InvalidRequestError`` that names each field. Null counts as left out.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from cacheagent.errors import InvalidRequestError
from cacheagent.model import (
    LABEL_PATTERNS,
    UUID_PATTERN,
    DiskFormat,
    DiskMode,
    DiskSpec,
    FileSystem,
    ImageId,
    check_label,
    parse_image_id,
)

SECTOR = 512
"""Virtual sizes of disks are multiples of this; what is asked for is rounded up."""

MAX_SIZE = 1 << 50
"""A PiB: beyond that, the tables of an empty qcow2 file alone would fill a disk."""

LABEL_PATTERN = rf"^{LABEL_PATTERNS[FileSystem.EXT4]}$"
"""The widest of the patterns: what no file system can bear is refused by the model already."""
LABEL_LENGTH = 16
"""What that pattern admits, told apart so that a longer label is called longer."""

_Id = Annotated[
    ImageId,
    AfterValidator(parse_image_id),
    WithJsonSchema({"type": "string", "format": "uuid", "pattern": f"^{UUID_PATTERN}$"}),
]


class Request(BaseModel):
    """What all requests have in common: nothing is converted, nothing unknown is let pass."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DiskRequest(Request):
    """The disk that is wanted: of an image, or blank where ``image_id`` is left out."""

    image_id: _Id | None = None
    size_bytes: Annotated[int, Field(gt=0, le=MAX_SIZE)] | None = Field(
        default=None,
        description=(
            "Left out: the virtual size of the image. A blank disk needs it. "
            f"Rounded up to a multiple of {SECTOR}."
        ),
    )
    format: DiskFormat = DiskFormat.QCOW2
    mode: DiskMode | None = Field(
        default=None,
        description=(
            "Left out: `overlay`. A raw disk and a blank disk are always `full`: "
            "`overlay` is refused for them."
        ),
    )
    filesystem: FileSystem | None = Field(default=None, description="For a blank disk only.")
    label: Annotated[str, Field(max_length=LABEL_LENGTH, pattern=LABEL_PATTERN)] | None = Field(
        default=None, description="The label of `filesystem`, which limits its length."
    )

    def to_spec(self) -> DiskSpec:
        """Give the specification that the request means.

        Raises: ``InvalidRequestError`` with every contradiction between the fields.
        """
        problems = [*self._mode_problems(), *self._size_problems(), *self._filesystem_problems()]
        if problems:
            raise InvalidRequestError(problems)
        overlay = self.image_id is not None and self.format is DiskFormat.QCOW2
        return DiskSpec(
            image_id=self.image_id,
            size=self.size_bytes,
            format=self.format,
            mode=self.mode or (DiskMode.OVERLAY if overlay else DiskMode.FULL),
            filesystem=self.filesystem,
            label=self.label,
        )

    def _mode_problems(self) -> list[tuple[str, str]]:
        if self.mode is not DiskMode.OVERLAY:
            return []
        if self.format is DiskFormat.RAW:
            return [("mode", "a raw disk is always full: it has no place for a backing file")]
        if self.image_id is None:
            return [("mode", "a blank disk is always full: it has no base")]
        return []

    def _size_problems(self) -> list[tuple[str, str]]:
        if self.image_id is None and self.size_bytes is None:
            return [("size_bytes", "is needed for a blank disk, and so is image_id for another")]
        return []

    def _filesystem_problems(self) -> list[tuple[str, str]]:
        problems = []
        if self.image_id is not None:
            given = {"filesystem": self.filesystem, "label": self.label}
            problems += [
                (field, "is for a blank disk only") for field, value in given.items() if value
            ]
        elif self.label is not None and self.filesystem is None:
            problems.append(("label", "needs a filesystem"))
        elif self.label is not None and self.filesystem is not None:
            try:
                check_label(self.filesystem, self.label)
            except ValueError as error:
                problems.append(("label", str(error)))
        return problems


class PrefetchRequest(Request):
    """How to bring an image in: keep it by a pin, answer only when it is ready."""

    pin: bool = False
    wait: bool = False


class PruneRequest(Request):
    """What a pass is to do: only tell its plan, free so many bytes beside what the bounds want."""

    dry_run: bool = False
    free_bytes: Annotated[int, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "Free so many bytes, or all that may go, if there is less. "
            "Left out: what the bounds ask for."
        ),
    )
