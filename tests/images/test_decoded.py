"""Decoded images on disk are what decoding gives, go on after an interruption, and are checked on reading."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from benchmarks.images.decoded import CHUNK, HASHES, PIXELS, Images, decoded
from benchmarks.images.preprocess import Preprocess
from epmq.errors import UserError

COUNT = 2 * CHUNK + 30


class Halved:
    """A geometry that counts its calls: every other pixel, channels first."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        self.calls += 1
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:, ::2, ::2].copy()


def preprocess(geometry: Halved, name: str = "halved") -> Preprocess:
    return Preprocess(geometry, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), {"name": name})


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def data(pixels: NDArray[np.uint8]) -> Dataset:
    features = datasets.Features(picture=datasets.Image(), positive=datasets.Value("bool"))
    rows = {"picture": [Image.fromarray(x) for x in pixels], "positive": [i % 3 == 0 for i in range(COUNT)]}
    return Dataset.from_dict(rows, features=features)


def decode(data: Dataset, root: Path, geometry: Halved | None = None, **changes: Any) -> Images:
    options: dict[str, Any] = {"identity": {"revision": "1"}, "what": "pictures (test)"} | changes
    return decoded(data, ("picture", "positive"), preprocess(geometry or Halved()), root, **options)


def expected(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels.transpose(0, 3, 1, 2)[:, :, ::2, ::2]


def test_samples_and_labels_are_those_of_the_data(
    data: Dataset, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    images = decode(data, tmp_path)
    assert np.array_equal(images.all().numpy(), expected(pixels))
    assert [len(chunk) for chunk in images.chunks()] == [CHUNK, CHUNK, 30]
    assert images.labels.tolist() == [int(i % 3 == 0) for i in range(COUNT)]
    assert images.labels.dtype == np.int64


def test_workers_decode_the_same(data: Dataset, tmp_path: Path) -> None:
    big = datasets.concatenate_datasets([data, data, data])
    (tmp_path / "other").mkdir()
    one, other = decode(big, tmp_path), decode(big, tmp_path / "other", workers=2)
    assert torch.equal(one.all(), other.all())


def test_nothing_is_decoded_twice(data: Dataset, tmp_path: Path) -> None:
    decode(data, tmp_path)
    geometry = Halved()
    decode(data, tmp_path, geometry)
    assert geometry.calls <= 1, "one sample, for its shape"


@pytest.mark.parametrize("lost", [0, 3, 1000])
def test_an_interrupted_set_goes_on_with_its_unfinished_chunk(
    data: Dataset, pixels: NDArray[np.uint8], tmp_path: Path, lost: int
) -> None:
    folder = decode(data, tmp_path).folder
    lines = (folder / HASHES).read_text().splitlines(keepends=True)
    (folder / HASHES).write_text(lines[0] + lines[1][:4])  # the kill came while a line was written
    written = (folder / "images.u8").read_bytes()
    (folder / "images.u8").write_bytes(written[: 2 * CHUNK * 12 + lost] if lost < 1000 else written)
    geometry = Halved()
    images = decode(data, tmp_path, geometry)
    assert np.array_equal(images.all().numpy(), expected(pixels))
    assert geometry.calls == COUNT - CHUNK + 1, "the first chunk was kept"


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("position", [0, 2 * CHUNK * 12 + 5, -1])
def test_a_changed_pixel_is_decoded_again(
    data: Dataset, pixels: NDArray[np.uint8], tmp_path: Path, position: int
) -> None:
    folder = decode(data, tmp_path).folder
    flip(folder / PIXELS, position)
    geometry = Halved()
    assert np.array_equal(decode(data, tmp_path, geometry).all().numpy(), expected(pixels))
    assert geometry.calls <= 1 + CHUNK, "the chunk that was damaged, and one sample for its shape"
    again = Halved()
    decode(data, tmp_path, again).all()
    assert again.calls == 1, "what was decoded again is on the disk"


def cut(folder: Path) -> None:
    (folder / PIXELS).write_bytes((folder / PIXELS).read_bytes()[:-7])


def no_pixels(folder: Path) -> None:
    (folder / PIXELS).unlink()


def nonsense(folder: Path) -> None:
    (folder / HASHES).write_bytes(b"\xff{]\n" * 3)


def other_hashes(folder: Path) -> None:
    lines = (folder / HASHES).read_text().splitlines()
    (folder / HASHES).write_text("".join(f"{line}\n" for line in reversed(lines)))


def too_many_hashes(folder: Path) -> None:
    (folder / HASHES).write_text((folder / HASHES).read_text() * 5)


@pytest.mark.parametrize("damage", [cut, no_pixels, nonsense, other_hashes, too_many_hashes])
def test_a_damaged_set_is_made_again(
    data: Dataset, pixels: NDArray[np.uint8], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(decode(data, tmp_path).folder)
    assert np.array_equal(decode(data, tmp_path).all().numpy(), expected(pixels))
    assert np.array_equal(decode(data, tmp_path).all().numpy(), expected(pixels))


@pytest.mark.parametrize("name", [PIXELS, HASHES, "lock", ""])
def test_a_link_is_never_written_through(
    data: Dataset, pixels: NDArray[np.uint8], tmp_path: Path, name: str
) -> None:
    (tmp_path / "cache").mkdir()
    folder = decode(data, tmp_path / "cache").folder
    target = tmp_path / "target"
    if name:
        (folder / name).unlink()
        target.write_text("mine")
    else:
        folder.rename(tmp_path / "away")
        target.mkdir()
    (folder / name).symlink_to(target)
    if name == "lock":
        with pytest.raises(UserError, match="the cache cannot be used there"):
            decode(data, tmp_path / "cache")
    else:
        assert np.array_equal(decode(data, tmp_path / "cache").all().numpy(), expected(pixels))
    assert target.read_text() == "mine" if name else list(target.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_one_line(data: Dataset, tmp_path: Path) -> None:
    folder = decode(data, tmp_path).folder
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(UserError, match=r"the cache cannot be used there \(File exists\); free some space"):
        decode(data, tmp_path)


def test_a_folder_in_place_of_a_file_is_one_line(data: Dataset, tmp_path: Path) -> None:
    folder = decode(data, tmp_path).folder
    (folder / PIXELS).unlink()
    (folder / PIXELS).mkdir()
    with pytest.raises(UserError, match="the cache cannot be used there"):
        decode(data, tmp_path)


def test_a_full_disk_is_one_line(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\); free some space"):
        decode(data, tmp_path)


def test_other_revisions_rows_or_preprocessing_are_other_sets(data: Dataset, tmp_path: Path) -> None:
    folders = {
        decode(data, tmp_path).folder,
        decode(data, tmp_path, identity={"revision": "2"}).folder,
        decode(data, tmp_path, identity={"revision": "1", "rows": "few"}).folder,
    }
    other = decoded(
        data,
        ("picture", "positive"),
        preprocess(Halved(), "x"),
        tmp_path,
        identity={"revision": "1"},
        what="",
    )
    assert len(folders | {other.folder}) == 4


@pytest.mark.parametrize("stray", [object(), Path("rows"), {1, 2}], ids=lambda x: type(x).__name__)
def test_what_has_no_name_of_its_own_is_no_part_of_a_key(data: Dataset, tmp_path: Path, stray: Any) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        decode(data, tmp_path, identity={"revision": "1", "rows": stray})
    assert not list(tmp_path.iterdir())


def test_a_sample_that_is_no_image_is_named(tmp_path: Path) -> None:
    rows = [{"bytes": b"GIF89a nonsense", "path": None}] * 2
    good = Image.new("RGB", (4, 4))
    features = datasets.Features(picture=datasets.Image(), positive=datasets.Value("bool"))
    data = Dataset.from_dict({"picture": [good, *rows], "positive": [True] * 3}, features=features)
    with pytest.raises(
        UserError, match=r"data set pictures \(test\): sample 1 is not an image: .*get the data"
    ):
        decode(data, tmp_path)
