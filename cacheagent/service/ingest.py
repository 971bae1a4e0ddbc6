"""An image becomes a base: received, proved, converted if asked, published."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import BLOCK_SIZE, Block, Manifest
from cacheagent.errors import (
    DigestMismatchError,
    ImageUnacceptableError,
    QemuImgError,
)
from cacheagent.model import Base, BaseState, DiskFormat, IngestPhase
from cacheagent.policy import admission, containers
from cacheagent.policy.admission import BaseFormat
from cacheagent.policy.sizing import whole_sectors
from cacheagent.service.looking import look_again, look_inside
from cacheagent.service.pipeline import Pipeline
from cacheagent.service.proof import Proof, Proven
from cacheagent.service.quarantine import Quarantine
from cacheagent.service.signatures import Signatures
from cacheagent.service.unpack import Unpack, Unpacked, admitted
from cacheagent.sync.lending import Lending
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cacheagent.backends.signing import SignatureCheck
    from cacheagent.backends.store import Part
    from cacheagent.model import BaseId, Caller, GlanceImage
    from cacheagent.policy.admission import ImageRules, SourceFormat
    from cacheagent.service.meter import Meter
    from cacheagent.service.parts import Parts
    from cacheagent.service.room import Reservation

RECORD_EVERY = 32 * BLOCK_SIZE
"""A crash loses at most this much of a download."""

BLOCKS_BESIDE = 2
"""Blocks beside one for each download: a slow one fills its own and takes none from the others."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """A file that is all a base needs to be but its name, and the manifest that goes with it."""

    path: Path
    manifest: Manifest


class Ingest:
    """Makes bases, at most ``glance.concurrency`` at a time."""

    def __init__(self, parts: Parts) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._now = parts.now
        self._glance = parts.glance
        self._qemu = parts.qemu
        self._room = parts.room
        self._precedence = parts.precedence
        self._metrics = parts.metrics
        self._rules = parts.rules
        self._clock = parts.clock
        self._inspection_version = parts.inspection_version
        self._signatures = Signatures(parts)
        self._quarantine = Quarantine(parts)
        self._unpack = Unpack(parts)
        concurrency = parts.config().glance.concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._blocks = Lending(Block, concurrency + BLOCKS_BESIDE)

    @contextlib.asynccontextmanager
    async def make(self, image: GlanceImage, caller: Caller, meter: Meter) -> AsyncIterator[Made]:
        """Give the file of a base and its manifest, ready to be published inside the context.

        What has arrived stays when this fails or is cancelled: it is for the caller to discard.
        What was refused for its bytes has gone to quarantine.

        Raises:
            ProblemError: why there is no base.

        """
        rules = self._rules()
        signed = await self._signatures.demanded(image, caller)
        needed = admission.room_needed(image, rules) - await self._store.arrived_bytes(image)
        # Room first: what does not fit is refused at once, and does not wait for its turn.
        async with self._room.reserve(needed) as room:
            # The turn ends before the publishing: that may have to wait for another ingest.
            async with self._slots:
                made = await self._make(image, caller, meter, room, rules, signed)
            yield made

    async def _make(
        self,
        image: GlanceImage,
        caller: Caller,
        meter: Meter,
        room: Reservation,
        rules: ImageRules,
        signed: SignatureCheck | None,
    ) -> Made:
        digest = None
        try:
            with self._metrics.downloads_in_progress.track_inprogress():
                started = self._clock()
                proven = await self._download(image, caller, meter, room, signed)
                self._metrics.download_seconds.observe(self._clock() - started)
            digest = proven.digest
            return await self._judged(image, proven, meter, room, rules)
        except (ImageUnacceptableError, DigestMismatchError) as refusal:
            await uninterrupted(self._quarantine.take(image, refusal, digest))
            raise

    async def _judged(
        self,
        image: GlanceImage,
        proven: Proven,
        meter: Meter,
        room: Reservation,
        rules: ImageRules,
    ) -> Made:
        """Judge what has come, and make the file of the base of it."""
        unpacked = await self._unpack.disk(image, proven.found, meter, rules)
        try:
            return await self._shaped(image, proven, unpacked, meter, room, rules)
        except BaseException:
            await uninterrupted(self._unpack.drop(image))
            raise

    async def _shaped(
        self,
        image: GlanceImage,
        proven: Proven,
        unpacked: Unpacked,
        meter: Meter,
        room: Reservation,
        rules: ImageRules,
    ) -> Made:
        source_format = admitted(image, unpacked, rules)
        source_name = containers.source_name(unpacked.how, source_format)
        # What Glance did not say could not be set aside before the download.
        foreseen = admission.room_needed(image, rules) - (image.size or 0)
        rules = await self._fitting(rules, image, proven.digest.base_id, source_name)
        whole = admission.conversion_room(source_format, unpacked.found.virtual_size, rules)
        rules = admission.as_inspected(rules, unpacked.found.virtual_size)
        async with self._room.conversion(max(whole - foreseen, 0)) as more:
            path, disk_format, size = await self._shape(
                image,
                unpacked.path,
                source_format,
                meter,
                rules,
                lambda left: room.still(more.still(left)),
            )
        return Made(path, self._describe(image, proven, source_name, disk_format, size))

    async def _fitting(
        self, rules: ImageRules, image: GlanceImage, base_id: BaseId, source_name: str
    ) -> ImageRules:
        """Let a base that comes back have the format that it had: overlays name it by that.

        Raises:
            ImageUnacceptableError: ``format-mismatch``: a base of this name means another disk.

        """
        row = await self._catalog.base(base_id)
        if row is None:
            # What was unpacked is not as it came, whatever was asked for.
            is_unpacked = containers.is_unpacked(source_name)
            return replace(rules, base_format=BaseFormat.RAW) if is_unpacked else rules
        admission.admit_alias(image, row.source_format, row.virtual_size, rules)
        as_it_was = BaseFormat.RAW if row.format is DiskFormat.RAW else BaseFormat.KEEP
        return replace(rules, base_format=as_it_was)

    async def _download(
        self,
        image: GlanceImage,
        caller: Caller,
        meter: Meter,
        room: Reservation,
        signed: SignatureCheck | None,
    ) -> Proven:
        """Fill the part; bytes left by an earlier try get one chance to be the right ones."""
        async with self._store.part(image, self._precedence.give_way_in_thread) as part:
            left_over = part.present
            try:
                return await self._fill(part, image, caller, meter, room, signed)
            except (DigestMismatchError, OSError) as error:
                if not left_over:
                    raise
                _log.warning("starting afresh", image_id=image.image_id, why=str(error))
            room.claim(part.present)
            await part.restart()
            return await self._fill(part, image, caller, meter, room, signed)

    async def _fill(
        self,
        part: Part,
        image: GlanceImage,
        caller: Caller,
        meter: Meter,
        room: Reservation,
        signed: SignatureCheck | None,
    ) -> Proven:
        received = self._metrics.download_bytes_total.labels(source="glance")

        def on_block(length: int) -> None:
            received.inc(length)
            room.spent(length)
            meter.reach(part.present)

        with Proof.open(image, signed, self._precedence.give_way_in_thread) as proof:
            await part.read_present(proof.feed)
            meter.enter(IngestPhase.DOWNLOADING, part.size, part.present)
            pipeline = Pipeline(part, proof, self._blocks, self._precedence, on_block)
            stream = self._glance.stream(
                image, offset=part.present, caller=caller, room=pipeline.room
            )
            try:
                async with contextlib.aclosing(stream) as pieces:
                    await pipeline.run(_recorded(part, pieces))
            finally:
                await part.save_record()
            return await proof.finish()

    async def _shape(
        self,
        image: GlanceImage,
        part: Path,
        source_format: SourceFormat,
        meter: Meter,
        rules: ImageRules,
        still: Callable[[int], object],
    ) -> tuple[Path, DiskFormat, int]:
        """Give the file that becomes the base, its format and its virtual size in bytes.

        It is converted where the rules say so.

        ``still`` is told how many bytes the conversion may write yet.
        """

        def on_progress(fraction: float) -> None:
            done = int(size * fraction)
            meter.reach(done)
            still(size - done)

        target_format = admission.target_format(source_format, rules)
        try:
            opened = await look_again(self._qemu, part, source_format, rules)
            size = opened.virtual_size
            if not admission.needs_conversion(source_format, rules):
                return part, target_format, size
            target = self._store.layout.conversion(image.image_id, target_format)
            await self._store.remove([target])
            meter.enter(IngestPhase.CONVERTING, size)
            await self._qemu.convert(
                part,
                source_format,
                target,
                target_format,
                max_bytes=size,
                on_progress=on_progress,
                compressed=opened.compressed,
            )
            await look_inside(target)
        except QemuImgError as error:
            if error.no_space:
                raise
            reason = "limits" if error.at_limit else "conversion"
            raise ImageUnacceptableError(reason, str(error)) from error
        return target, target_format, size

    def _describe(
        self,
        image: GlanceImage,
        proven: Proven,
        source_name: str,
        disk_format: DiskFormat,
        virtual_size: int,
    ) -> Manifest:
        """Write down what the file is, now that it is all there."""
        now = self._now()
        base = Base(
            base_id=proven.digest.base_id,
            state=BaseState.READY,
            format=disk_format,
            source_format=source_name,
            size=image.size or 0,
            virtual_size=whole_sectors(virtual_size),
            allocated=0,
            inspection_version=self._inspection_version,
            fetched_at=now,
            last_used_at=now,
            signatures=() if proven.signature is None else (proven.signature,),
        )
        return Manifest(base=base, images=(image,))


async def _recorded(part: Part, pieces: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
    """Pass the pieces on, and write down now and then how far the part has come."""
    recorded = part.present
    async for piece in pieces:
        yield piece
        if part.present >= recorded + RECORD_EVERY:
            recorded = part.present
            await part.save_record()
