"""What comes in to be played: which bytes and notes fit, and that nothing is lost of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from contrafact.engine.v1.grains_pb2 import GrainLibrary, LibraryPiece, NoteBatch

from servers.grains.incoming import STEP_NOTES, Order, Upload
from servers.grains.library import InvalidLibrary
from servers.grains.messages import BATCH_NOTES, PIECE_BYTES, batches, pieces
from servers.grains.notes import join, to_batch, to_messages
from servers.platform.errors import ApiError
from tests.grains.sounds import notes_of, random_notes

DATA = GrainLibrary(audio=bytes(range(256)) * 10).SerializeToString()
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_an_upload() -> None:
    upload = Upload(SHA256, len(DATA))
    for begin, end in ((0, 1), (1, 2000), (2000, len(DATA))):
        assert not upload.complete
        upload.add(LibraryPiece(offset=begin, data=DATA[begin:end]), keep=True)
    assert upload.complete
    upload.check_complete()
    assert upload.library().SerializeToString() == DATA


def test_an_upload_of_other_bytes() -> None:
    upload = Upload(SHA256, len(DATA))
    upload.add(LibraryPiece(data=b"x" * len(DATA)), keep=True)
    with pytest.raises(InvalidLibrary, match="SHA-256"):
        upload.library()


@pytest.mark.parametrize(
    ("sent", "reason", "field"),
    [
        ([(1, DATA)], "WRONG_START", "library.offset"),
        ([(0, DATA[:9]), (0, DATA[:9])], "WRONG_START", "library.offset"),
        ([(0, DATA + b"x")], "INVALID_LIBRARY", "library.data"),
        ([(0, DATA[:-1])], "INVALID_LIBRARY", "library.data"),
        ([], "INVALID_LIBRARY", "library.data"),
    ],
)
def test_uploads_that_do_not_fit(sent: Sequence[tuple[int, bytes]], reason: str, field: str) -> None:
    def take() -> None:
        upload = Upload(SHA256, len(DATA))
        for offset, data in sent:
            upload.add(LibraryPiece(offset=offset, data=data), keep=True)
        upload.check_complete()

    with pytest.raises(ApiError) as refusal:
        take()
    assert (refusal.value.reason, [field for field, _ in refusal.value.fields]) == (reason, [field])


def test_notes_are_taken_in_a_few_at_a_time() -> None:
    notes = random_notes(np.random.default_rng(1), 1000, 100_000)
    order, parts, before = Order(100_000), [], 0
    for batch in batches(to_messages(notes.part(0, 300)), int(notes.starts[300])):
        parts += order.notes(batch)
    parts += order.notes(NoteBatch(until=int(notes.starts[300])))
    parts += order.notes(to_batch(notes.part(300, 1000), 100_000))
    for part, until in parts:
        assert len(part) <= STEP_NOTES
        assert all(before <= start < until for start in part.starts)
        before = until
    assert before == 100_000
    assert to_messages(join([part for part, _ in parts])) == to_messages(notes)


@pytest.mark.parametrize(
    ("starts", "until", "field"),
    [
        ([10, 30, 20], 100, "notes.notes[2].start"),
        ([10, 20, 20], 100, "notes.notes[2].start"),
        ([9, 20], 100, "notes.notes[0].start"),
        ([20, 30], 30, "notes.notes[1].start"),
        ([20, 95], 100, "notes.notes[1].frames"),
        ([100], 100, "notes.notes[0].start"),
        ([2**62], 100, "notes.notes[0].start"),
        ([], 9, "notes.until"),
        ([], 101, "notes.until"),
    ],
)
def test_notes_that_do_not_fit(starts: list[int], until: int, field: str) -> None:
    order = Order(100)
    order.notes(to_batch(notes_of([5], [440.0], frames=10), 10))
    with pytest.raises(ApiError) as refusal:
        order.notes(to_batch(notes_of(starts, [440.0] * len(starts), frames=10), until))
    assert (refusal.value.reason, [name for name, _ in refusal.value.fields]) == ("UNEXPECTED_DATA", [field])


def test_what_is_sent_is_neither_large_nor_lost() -> None:
    rng = np.random.default_rng(2)
    notes = to_messages(random_notes(rng, 10_000, 1_000_000))
    for long in (5, 6, 7):
        notes[long].levels = bytes(900_000)
    sent = list(batches(notes, 1_000_000))
    assert [note for batch in sent for note in batch.notes] == notes
    assert len(sent) > 4
    for batch, following in zip(sent, [*sent[1:], NoteBatch()], strict=True):
        assert len(batch.notes) <= BATCH_NOTES
        assert batch.ByteSize() < PIECE_BYTES + 50_000
        assert batch.until == (following.notes[0].start if following.notes else 1_000_000)
    assert [batch.until for batch in batches([], 7)] == [7]
    data = rng.bytes(2 * PIECE_BYTES + 1)
    assert b"".join(piece.data for piece in pieces(data)) == data
    assert [piece.offset for piece in pieces(data)] == [0, PIECE_BYTES, 2 * PIECE_BYTES]
