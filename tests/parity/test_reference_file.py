"""Saved reference logits: files are read back exactly, and damaged ones are refused with their name."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError, OutputError, ReferenceFileError
from gptoss_convert.parity.checkpoint_reference import CheckpointReference
from gptoss_convert.parity.metrics import Distributions, compare
from gptoss_convert.parity.reference_file import About, SavedReference
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import write_checkpoint

from .checkpoints import overwrite
from .conftest import SMALL

VOCAB = 40
DIGEST = "0" * 64


@st.composite
def references(draw: Callable[[Any], Any]) -> SavedReference:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    count, kept = sum(lengths), draw(st.integers(1, VOCAB))
    logits = draw(arrays.arrays(np.float32, (count, VOCAB), elements=st.floats(-50, 50, width=32)))
    tokens = draw(arrays.arrays(np.int32, count, elements=st.integers(0, VOCAB - 1)))
    states = st.none() | arrays.arrays(np.float32, (3, lengths[0], 2), elements=st.floats(-9, 9, width=32))
    name, index = draw(st.text(max_size=5)), draw(st.sampled_from([None, DIGEST]))
    about = About(
        name=name, revision=None, config_sha256=DIGEST, index_sha256=index, vocab_size=VOCAB, text="", lengths=lengths
    )
    return SavedReference(about, tokens, Distributions(logits).top_k(kept), draw(states))


def content(reference: SavedReference) -> dict[str, Any]:
    parts = (reference.tokens, reference.hidden_states, *vars(reference.distributions).values())
    return {"about": reference.about, "arrays": [None if part is None else part.tolist() for part in parts]}


def example(folder: Path, **changes: Any) -> Path:
    """A file with two sequences of 3 and 2 tokens; parts can be replaced."""
    rng = np.random.default_rng(0)
    kept = Distributions(rng.standard_normal((5, VOCAB)).astype(np.float32)).top_k(4)
    about = About(
        name="x", revision=None, config_sha256=DIGEST, index_sha256=None, vocab_size=VOCAB, text="", lengths=(3, 2)
    )
    made = SavedReference(about, np.arange(5, dtype=np.int32), kept, np.ones((3, 2, 4), np.float32))
    file = folder / "reference.npz"
    made.write(file)
    if changes:
        parts = dict(np.load(file)) | changes
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in parts.items():
                if part is not None:
                    stream = io.BytesIO()
                    np.save(stream, part, allow_pickle=True)
                    archive.writestr(f"{name}.npy", stream.getvalue())
    return file


def about_with(**changes: Any) -> NDArray[np.uint8]:
    usual = {"version": 1, "name": "x", "revision": None, "config_sha256": DIGEST, "index_sha256": None}
    told = json.dumps(usual | {"vocab_size": VOCAB, "text": "", "lengths": [3, 2]} | changes)
    return np.frombuffer(told.encode(), np.uint8)


@settings(max_examples=60, deadline=None)
@given(references())
def test_a_saved_reference_is_read_back(reference: SavedReference) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.npz"
        reference.write(file)
        assert content(SavedReference.read(file)) == content(reference)
        first = file.read_bytes()
        reference.write(file)
        assert file.read_bytes() == first
        assert set(np.load(file)) >= {"tokens", "ids", "logits", "rest"}  # numpy reads it as well
        assert [path.name for path in Path(folder).iterdir()] == ["reference.npz"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_found(data: st.DataObject) -> None:
    """Changed, missing or inserted bytes: the file is refused, or its contents are intact."""
    with tempfile.TemporaryDirectory() as folder:
        file = example(Path(folder))
        whole, expected = file.read_bytes(), content(SavedReference.read(file))
        at = data.draw(st.integers(0, len(whole) - 1))
        damage = data.draw(st.sampled_from(["cut", "flip", "insert", "zeros"]))
        after = {
            "cut": b"",
            "flip": bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
            "insert": b"\0" + whole[at:],
            "zeros": bytes(40) + whole[at + 40 :],
        }
        file.write_bytes(whole[:at] + after[damage])
        found = read_or_refuse(file)
        if isinstance(found, ReferenceFileError):
            assert str(file) in found.message
            assert found.remedy
        else:
            assert content(found) == expected


def read_or_refuse(file: Path) -> SavedReference | ReferenceFileError:
    try:
        return SavedReference.read(file)
    except ReferenceFileError as error:
        return error


@given(st.binary(max_size=200))
def test_other_files_are_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.npz"
        file.write_bytes(data)
        with pytest.raises(ReferenceFileError, match=r"reference\.npz"):
            SavedReference.read(file)


BAD: dict[str, dict[str, Any]] = {
    "no logits": {"logits": None},
    "no about": {"about": None},
    "about is no JSON": {"about": np.frombuffer(b"{", np.uint8)},
    "of a later version": {"about": about_with(version=2)},
    "a vocabulary of none": {"about": about_with(vocab_size=0)},
    "a vocabulary that is smaller": {"about": about_with(vocab_size=4)},
    "other lengths": {"about": about_with(lengths=[3, 3])},
    "an empty sequence": {"about": about_with(lengths=[5, 0])},
    "no digest": {"about": about_with(config_sha256="no")},
    "an object array": {"tokens": np.array([{}, {}, {}, {}, {}], object)},
    "other types": {"tokens": np.arange(5, dtype=np.int64)},
    "other byte order": {"tokens": np.arange(5, dtype=">i4")},
    "other dimensions": {"rest": np.zeros((5, 1))},
    "column order": {"logits": np.asfortranarray(np.zeros((5, 4), np.float32))},
    "a token outside": {"tokens": np.array([0, 1, 2, 3, VOCAB], np.int32)},
    "a negative token": {"tokens": np.array([0, 1, 2, 3, -1], np.int32)},
    "a kept token outside": {"ids": np.full((5, 4), VOCAB, np.int32)},
    "more ids than logits": {"ids": np.zeros((5, 5), np.int32)},
    "nothing kept": {"ids": np.zeros((5, 0), np.int32), "logits": np.zeros((5, 0), np.float32)},
    "more kept than there are": {"ids": np.zeros((5, 41), np.int32), "logits": np.zeros((5, 41), np.float32)},
    "logits that are not numbers": {"logits": np.full((5, 4), np.nan, np.float32)},
    "infinite logits": {"logits": np.full((5, 4), np.inf, np.float32)},
    "logits that ascend": {"logits": np.tile(np.arange(4, dtype=np.float32), (5, 1))},
    "a rest that is no number": {"rest": np.full(5, np.nan)},
    "states of more positions": {"hidden_states": np.zeros((3, 4, 4), np.float32)},
    "states that are not finite": {"hidden_states": np.full((3, 2, 4), np.inf, np.float32)},
    "no states": {"hidden_states": np.zeros((3, 0, 4), np.float32)},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_inconsistent_arrays_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    assert SavedReference.read(example(tmp_path, rest=np.zeros(5))).about.lengths == (3, 2)
    with pytest.raises(ReferenceFileError, match=r"reference\.npz"):
        SavedReference.read(example(tmp_path, **changes))


def test_an_array_that_claims_more_than_the_file_has_is_not_allocated(tmp_path: Path) -> None:
    file = example(tmp_path)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (5, 1 << 40)})
    parts = dict(np.load(file))
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            if name != "logits":
                whole = io.BytesIO()
                np.save(whole, part)
                archive.writestr(f"{name}.npy", whole.getvalue())
        archive.writestr("logits.npy", stream.getvalue())
    with pytest.raises(ReferenceFileError, match=r"logits is \[5, 1099511627776\] in \d+ bytes"):
        SavedReference.read(file)


def test_a_damaged_name_does_not_hide_an_optional_array(tmp_path: Path) -> None:
    file = example(tmp_path)
    before, name, after = file.read_bytes().rpartition(b"hidden_states")  # in the zip's central directory
    file.write_bytes(before + b"hidden-states" + after)
    with pytest.raises(ReferenceFileError, match="unknown arrays"):
        SavedReference.read(file)
    start, _, entry = before.rpartition(b"PK\1\2")[0].rpartition(b"PK\1\2")  # the entry before it
    entry = entry[:28] + b"\xff\xff" + entry[30:]  # the length of its comment
    file.write_bytes(start + b"PK\1\2" + entry + b"PK\1\2" + before.rpartition(b"PK\1\2")[2] + name + after)
    with pytest.raises(ReferenceFileError, match="comments"):
        SavedReference.read(file)


def test_a_compressed_file_is_refused_unread(tmp_path: Path) -> None:
    file = example(tmp_path)
    np.savez_compressed(file, **dict(np.load(file)))
    with pytest.raises(ReferenceFileError, match="about is compressed"):
        SavedReference.read(file)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="nowhere"):
        SavedReference.read(tmp_path / "nowhere")
    reference = SavedReference.read(example(tmp_path))
    with pytest.raises(OutputError, match="no folder"):
        reference.write(tmp_path / "no folder" / "reference.npz")


def test_a_checkpoints_reference_is_saved_as_it_is(tmp_path: Path) -> None:
    """The same distributions, sequences and hidden states, and every position of every sequence."""
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", SMALL, shards=2))
    ids = [generate_sequences(512, count=1, length=length)[0] for length in (300, 20)]
    live = CheckpointReference(checkpoint, ids, "random ids")
    live.compute(layers=True)
    live.to_saved(512).write(tmp_path / "all.npz")
    live.to_saved(16).write(tmp_path / "some.npz")
    whole, some = SavedReference.read(tmp_path / "all.npz"), SavedReference.read(tmp_path / "some.npz")
    assert whole.about == live.about
    assert live.about.index_sha256 is not None
    assert whole.token_ids == ids
    np.testing.assert_array_equal(whole.hidden_states, live.hidden_states)
    where = [(1, 0), (0, 299), (0, 0), (1, 19)]
    kept = whole.distributions_at(where)
    logits = np.empty((4, 512), np.float32)
    assert kept.ids is not None
    np.put_along_axis(logits, kept.ids, kept.logits, axis=-1)
    np.testing.assert_allclose(logits, live.distributions_at(where).logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(some.distributions_at(where).ids, kept.ids[:, :16])
    other = logits + np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
    exact, bounded = compare(live.distributions_at(where), other), compare(some.distributions_at(where), other)
    np.testing.assert_allclose(compare(kept, other).kl, exact.kl, rtol=1e-4)
    assert (bounded.kl <= exact.kl).all()
    assert (bounded.kl > 0).all()


def test_logits_that_are_not_finite_are_the_checkpoints_fault(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, SMALL))
    overwrite(tmp_path, "lm_head.weight", 0, np.nan)
    with pytest.raises(CheckpointError, match="logits are not finite"):
        CheckpointReference(checkpoint, [[1, 2]], "").distributions_at([(0, 0)])
