"""Content by digest: added whole or not at all, and continued where it broke off."""

import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from unionfs.store import Corrupt, InvalidArgument, NotFound, Store

DATA = b"content" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def leftovers(store: Store) -> list[str]:
    return os.listdir(f"{store.root}/ingest")


def test_content_is_found_by_its_digest(store: Store) -> None:
    assert DIGEST not in store.blobs
    blob = store.blobs.add(DATA)
    assert (blob.digest, blob.size) == (DIGEST, len(DATA))
    assert DIGEST in store.blobs
    with store.blobs.open(DIGEST) as file:
        assert file.read() == DATA
    assert store.blobs.path(DIGEST) == f"{store.root}/blobs/sha256/{DIGEST[7:]}"
    assert [*store.blobs] == [blob]
    assert store.blobs.add(io.BytesIO(DATA)) == blob
    assert store.blobs.add([DATA[:10], DATA[10:]], digest=DIGEST, size=len(DATA)) == blob
    assert leftovers(store) == []


def test_what_has_another_digest_or_size_is_not_added(store: Store) -> None:
    with pytest.raises(Corrupt, match="the bytes have digest sha256:"):
        store.blobs.add(DATA + b"!", digest=DIGEST)
    with pytest.raises(Corrupt, match="10 bytes came where 7000 were promised"):
        store.blobs.add(DATA[:10], digest=DIGEST, size=len(DATA))
    with pytest.raises(Corrupt):
        store.blobs.add(DATA, size=1)
    assert [*store.blobs] == []
    assert leftovers(store) == []


def test_a_digest_cannot_lead_elsewhere(store: Store) -> None:
    for digest in ("sha256:../../../etc/passwd", "md5:" + "0" * 32, "", "sha256:" + "A" * 64):
        with pytest.raises(InvalidArgument, match="not a digest"):
            store.blobs.add(DATA, digest=digest or "none")
        assert digest not in store.blobs
    with pytest.raises(NotFound, match="pull or import it"):
        store.blobs.open(DIGEST)


def test_a_sha512_digest_is_kept_apart(store: Store) -> None:
    digest = "sha512:" + hashlib.sha512(DATA).hexdigest()
    assert store.blobs.add(DATA, digest=digest).digest == digest
    assert digest in store.blobs and DIGEST not in store.blobs


def test_a_download_goes_on_where_it_broke_off(store: Store) -> None:
    with pytest.raises(ConnectionError), store.blobs.writer(DIGEST, len(DATA)) as writer:
        assert writer.offset == 0
        writer.write(DATA[:3000])
        raise ConnectionError
    with pytest.raises(Corrupt), store.blobs.writer(DIGEST, len(DATA)) as writer:
        assert writer.offset == 3000
        writer.write(DATA[3000:5000])  # the connection ended early, and nobody noticed
    assert DIGEST not in store.blobs
    store.cleanup()  # keeps it, as it is young

    with Store(store.root) as other, other.blobs.writer(DIGEST, len(DATA)) as writer:
        assert writer.offset == 5000
        assert not writer.complete
        writer.write(DATA[5000:])
    assert DIGEST in store.blobs
    with store.blobs.writer(DIGEST, len(DATA)) as writer:
        assert writer.complete
        assert writer.offset == len(DATA)
    assert leftovers(store) == []


def test_a_download_of_wrong_bytes_starts_anew(store: Store) -> None:
    with pytest.raises(Corrupt), store.blobs.writer(DIGEST, len(DATA)) as writer:
        writer.write(b"x" * len(DATA))
    with store.blobs.writer(DIGEST, len(DATA)) as writer:
        assert writer.offset == 0
        writer.write(DATA[:10])
        writer.restart()
        assert writer.offset == 0
        writer.write(DATA)
    assert DIGEST in store.blobs


def test_two_who_write_one_blob_take_turns(store: Store) -> None:
    offsets = []

    def write(other: Store) -> None:
        with other.blobs.writer(DIGEST, len(DATA)) as writer:
            offsets.append(writer.offset)
            writer.write(DATA[writer.offset :])

    with Store(store.root) as other:
        with store.blobs.writer(DIGEST, len(DATA)) as writer:
            second = threading.Thread(target=write, args=(other,))
            second.start()
            writer.write(DATA)
        second.join()
    assert offsets == [len(DATA)]
    assert leftovers(store) == []


def test_a_store_of_a_later_release_is_refused(store: Store, tmp_path: Path) -> None:
    with store._catalogue.change() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(OSError, match=r"version 99, this unionmount knows \d; update"):
        Store(store.root)


def test_a_damaged_catalogue_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "catalogue.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(OSError, match="catalogue: file is not a database; check the disk"):
        Store(tmp_path)
