"""Signed images: who may sign, what is refused, and what came before anybody asked for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.backends.barbican import Barbican, BarbicanSettings
from cacheagent.errors import GlanceUnavailableError, ImageUnacceptableError
from cacheagent.model import CacheResult, Caller
from cacheagent.service.signatures import Signatures
from tests.fakes.barbican import FakeBarbican
from tests.fakes.signatures import HASHES, Signer, authority, signer
from tests.service.rig import Rig, rig_on
from tests.service.trusting import NOBODY, bring, path_of, qcow2_of, row_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from cacheagent.model import ImageId
    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = os.urandom(MIB)
LASTS_A_DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of certificates that an operator trusts."""
    made = tmp_path / "signers"
    made.mkdir()
    return made


def demanding(folder: Path, root: Signer | None = None) -> dict[str, Any]:
    """Give the section of a configuration that asks for signatures."""
    section: dict[str, Any] = {"verify_signatures": True, "certificates_dir": str(folder)}
    if root is not None:
        path = folder.parent / "authorities.pem"
        path.write_bytes(root.pem)
        section["signature_ca_file"] = str(path)
    return section


@contextlib.asynccontextmanager
async def strict(
    tmp_path: Path, glance: LyingGlance, root: Signer | None = None, **images: object
) -> AsyncIterator[Rig]:
    """Give a rig that asks for signatures of those whose certificates lie in the folder."""
    section = {**demanding(tmp_path / "signers", root), **images}
    async with rig_on(tmp_path, glance.url, images=section) as rig:
        yield rig


@contextlib.asynccontextmanager
async def refusing(reason: str) -> AsyncIterator[None]:
    """Expect the refusal of an image for this reason."""
    with pytest.raises(ImageUnacceptableError) as caught:
        yield
    assert caught.value.reason == reason


# --- an image comes ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", HASHES)
async def test_signed_image_comes(
    tmp_path: Path, glance: LyingGlance, folder: Path, method: str
) -> None:
    """A signature that holds is written down with the base: catalog and manifest tell of it."""
    owner = signer()
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA, method))
    async with strict(tmp_path, glance) as rig:
        base = await bring(rig, wanted)
        (checked,) = (await row_of(rig, base)).signatures
        assert (checked.hash_method, checked.certificate) == (method, owner.certificate_id)
        manifest = await rig.parts.store.read_manifest(base.base_id, base.format)
        assert manifest is not None
        assert manifest.base.signatures == (checked,)
        assert (await rig.bases.ensure(wanted, NOBODY)).result is CacheResult.HIT
    assert len(glance.calls("data")) == 1


async def test_image_without_a_strong_digest_is_checked(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """Where Glance has an MD5 only, the signature is what proves the bytes."""
    owner = signer("RSA-PSS")
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA), os_hash_algo=None, os_hash_value=None)
    async with strict(tmp_path, glance) as rig:
        assert len((await bring(rig, wanted)).signatures) == 1


async def test_image_that_is_not_signed_is_refused(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """Without a signature, or with a part of it, nothing is downloaded."""
    owner = signer()
    owner.put_into(folder)
    partial = owner.sign(DATA)
    del partial["img_signature_key_type"]
    async with strict(tmp_path, glance) as rig:
        for wanted in (glance.add(DATA), glance.add(DATA, **partial)):
            async with refusing("signature-missing"):
                await bring(rig, wanted)
        assert rig.left_in_ingest() == []
    assert glance.calls("data") == []


async def test_wrong_byte_is_found(tmp_path: Path, glance: LyingGlance, folder: Path) -> None:
    """An image whose digest in Glance was changed with its data is refused: nobody signed it."""
    owner = signer()
    owner.put_into(folder)
    other = bytes([DATA[0] ^ 1]) + DATA[1:]
    wanted = glance.add(other, **owner.sign(DATA))
    async with strict(tmp_path, glance) as rig:
        async with refusing("signature-invalid"):
            await bring(rig, wanted)
        assert await rig.parts.catalog.bases() == []
        assert rig.left_in_ingest() == []


async def test_certificate_has_to_count(tmp_path: Path, glance: LyingGlance, folder: Path) -> None:
    """One that is unknown, whose time is over, or that is none, is refused at once."""
    unknown, over, broken = signer(), signer(lasts=LASTS_A_DAY), signer()
    over.put_into(folder)
    (folder / f"{broken.certificate_id}.pem").write_text("no certificate")
    odd = signer().sign(DATA) | {"img_signature_certificate_uuid": "../signers/x"}
    async with strict(tmp_path, glance) as rig:
        for properties in (*(each.sign(DATA) for each in (unknown, over, broken)), odd):
            async with refusing("signature-certificate"):
                await bring(rig, glance.add(DATA, **properties))
    assert glance.calls("data") == []


async def test_certificate_has_to_lead_to_the_authority(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """With ``signature_ca_file`` a certificate in the folder needs somebody who stands for it."""
    root = authority()
    good, bad = signer(issuer=root), signer(issuer=authority(number=101))
    for each in (good, bad):
        each.put_into(folder)
    async with strict(tmp_path, glance, root) as rig:
        async with refusing("signature-certificate"):
            await bring(rig, glance.add(DATA, **bad.sign(DATA)))
        assert len((await bring(rig, glance.add(DATA, **good.sign(DATA)))).signatures) == 1


async def test_authorities_that_cannot_be_read_refuse_nothing_for_good(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """A mistake of the operator is no fault of the image: whoever asks is told to ask again."""
    root = authority()
    owner = signer(issuer=root)
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA))
    async with strict(tmp_path, glance, root) as rig:
        (tmp_path / "authorities.pem").unlink()
        with pytest.raises(GlanceUnavailableError, match="signature_ca_file"):
            await bring(rig, wanted)


# --- the key manager -----------------------------------------------------------------------------


class Identity:
    """An agent with a token, in a cloud with one key manager."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def key_managers(self) -> Sequence[str]:
        """Give the address."""
        return (self._url,)

    async def token(self) -> str | None:
        """Give the token."""
        return "token-of-the-agent"

    async def renew(self, refused: str) -> str | None:
        """Give none: it is always accepted."""
        raise AssertionError(refused)


async def test_certificate_comes_from_the_key_manager(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """It is asked for what the folder lacks, and only where an authority has to stand for that."""
    root = authority()
    owner = signer(issuer=root)
    image = replace(await described(glance, tmp_path, owner), image_id=glance.add(DATA))
    async with FakeBarbican() as keys:
        keys.secrets[owner.certificate_id] = ("text/plain", owner.pem)
        async with (
            Barbican(BarbicanSettings(), Identity(keys.url)) as barbican,
            strict(tmp_path, glance, root) as trusting,
            strict(tmp_path / "other", glance, certificates_dir=str(folder)) as folder_alone,
        ):
            asked = Signatures(replace(trusting.parts, barbican=barbican))
            assert await asked.demanded(image, Caller()) is not None
            unasked = Signatures(replace(folder_alone.parts, barbican=barbican))
            async with refusing("signature-certificate"):
                await unasked.demanded(image, Caller())
        assert {secret for secret, _ in keys.asked} == {owner.certificate_id}


async def described(glance: LyingGlance, tmp_path: Path, owner: Signer) -> Any:  # noqa: ANN401  a GlanceImage
    """Give the description of an image that its owner has signed."""
    wanted = glance.add(DATA, **owner.sign(DATA))
    async with rig_on(tmp_path / "describing", glance.url) as rig:
        return await rig.parts.glance.show(wanted, NOBODY)


# --- a base that came without the check ----------------------------------------------------------


async def brought_before(tmp_path: Path, glance: LyingGlance, wanted: ImageId) -> None:
    """Bring an image in while nobody asks for signatures."""
    async with rig_on(tmp_path, glance.url) as rig:
        await bring(rig, wanted)
    glance.seen.clear()


async def test_base_that_came_without_the_check_is_checked(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """The file that is here is read again, and the signature checked, before anybody gets it."""
    owner = signer()
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA))
    await brought_before(tmp_path, glance, wanted)
    async with strict(tmp_path, glance) as rig:
        found = await rig.bases.ensure(wanted, NOBODY)
        assert (found.result, len(found.base.signatures)) == (CacheResult.HIT, 1)
        assert (await row_of(rig, found.base)).signatures == found.base.signatures
    assert glance.calls("data") == []


async def test_base_that_came_without_the_check_is_refused(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """Without a signature that holds it serves nobody; the base is not damaged by that."""
    owner = signer()
    owner.put_into(folder)
    unsigned, forged = glance.add(DATA), glance.add(DATA, **owner.sign(DATA + b"more"))
    await brought_before(tmp_path, glance, unsigned)
    await brought_before(tmp_path, glance, forged)
    async with strict(tmp_path, glance) as rig:
        async with refusing("signature-missing"):
            await bring(rig, unsigned)
        async with refusing("signature-invalid"):
            await bring(rig, forged)
        (base,) = await rig.parts.catalog.bases()
        assert base.signatures == ()
        assert path_of(rig, base).exists()
        assert rig.metric("reinspections_total", result="refused") == 0
        # The same content with a signature that holds is given out all the same.
        good = await bring(rig, glance.add(DATA, **owner.sign(DATA)))
        assert (good.base_id, len(good.signatures)) == (base.base_id, 1)
    assert glance.calls("data") == []


async def test_each_image_of_a_base_needs_a_signature_of_its_own(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """What was checked for one image says nothing about another signature over the same bytes."""
    one, two, stranger = signer(), signer(number=1), signer(number=2)
    for each in (one, two):
        each.put_into(folder)
    async with strict(tmp_path, glance) as rig:
        await bring(rig, glance.add(DATA, **one.sign(DATA)))
        async with refusing("signature-certificate"):
            await bring(rig, glance.add(DATA, **stranger.sign(DATA)))
        base = await bring(rig, glance.add(DATA, **two.sign(DATA)))
        assert {each.certificate for each in base.signatures} == {
            one.certificate_id,
            two.certificate_id,
        }
    assert len(glance.calls("data")) == 1


async def test_converted_base_is_fetched_anew_for_the_check(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """A signature is over the image as it came: its source comes again, and the file stays."""
    owner = signer()
    owner.put_into(folder)
    image = await asyncio.to_thread(qcow2_of, DATA, tmp_path)
    wanted = glance.add(image, disk_format="qcow2", virtual_size=MIB, **owner.sign(image))
    await brought_before(tmp_path, glance, wanted)
    (file,) = (tmp_path / "state" / "bases").glob("*.raw")
    inode = file.stat().st_ino
    async with strict(tmp_path, glance) as rig:
        base = await bring(rig, wanted)
        assert len(base.signatures) == 1
        assert path_of(rig, base).stat().st_ino == inode
    assert len(glance.calls("data")) == 1


async def test_check_outlives_the_catalog(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """The manifest knows what was checked: without the catalog nothing has to come again."""
    owner = signer()
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA))
    async with strict(tmp_path, glance) as rig:
        await bring(rig, wanted)
    for left in (tmp_path / "state").glob("catalog.db*"):
        left.unlink()
    async with strict(tmp_path, glance) as rig:
        await rig.reconcile.run(rig.parts.now())
        assert (await rig.bases.ensure(wanted, NOBODY)).result is CacheResult.HIT


# --- who may sign changes ------------------------------------------------------------------------


async def test_authority_that_is_removed_vouches_for_nothing(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """What was proved by another authority's word is refused, and given again when it returns."""
    old, new = authority(), authority(number=101)
    owner = signer(issuer=old)
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA))
    authorities = tmp_path / "authorities.pem"
    async with strict(tmp_path, glance, old) as rig:
        base = await bring(rig, wanted)
        authorities.write_bytes(new.pem)
        assert await rig.bases.ready(wanted) is None
        async with refusing("signature-certificate"):
            await bring(rig, wanted)
        # The base stays, for others and for later.
        assert path_of(rig, base).exists()
        authorities.write_bytes(new.pem + old.pem)
        again = await rig.bases.ensure(wanted, NOBODY)
        assert (again.result, len(again.base.signatures)) == (CacheResult.HIT, 1)
    assert len(glance.calls("data")) == 1


async def test_certificate_that_is_removed_vouches_for_nothing(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """Taken away, or another under its name: that is seen without a restart."""
    owner, other = signer(), signer(number=1)
    owner.put_into(folder)
    file = folder / f"{owner.certificate_id}.pem"
    wanted = glance.add(DATA, **owner.sign(DATA))
    async with strict(tmp_path, glance) as rig:
        await bring(rig, wanted)
        file.unlink()
        async with refusing("signature-certificate"):
            await bring(rig, wanted)
        file.write_bytes(other.pem)
        async with refusing("signature-invalid"):
            await bring(rig, wanted)
        file.write_bytes(owner.pem)
        assert (await rig.bases.ensure(wanted, NOBODY)).result is CacheResult.HIT
    assert len(glance.calls("data")) == 1


async def test_certificate_beside_it_changes_nothing(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """A new signer in the folder makes nobody read or fetch the images of the others again."""
    owner = signer()
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA))
    async with strict(tmp_path, glance) as rig:
        await bring(rig, wanted)
        signer(number=1).put_into(folder)
        assert await rig.bases.ready(wanted) is not None


async def test_authorities_that_cannot_be_read_let_nothing_out(
    tmp_path: Path, glance: LyingGlance, folder: Path
) -> None:
    """Whom to trust is not known, so a base that was proved before waits for the operator."""
    root = authority()
    owner = signer(issuer=root)
    owner.put_into(folder)
    wanted = glance.add(DATA, **owner.sign(DATA))
    async with strict(tmp_path, glance, root) as rig:
        await bring(rig, wanted)
        (tmp_path / "authorities.pem").unlink()
        with pytest.raises(GlanceUnavailableError, match="signature_ca_file"):
            await bring(rig, wanted)
