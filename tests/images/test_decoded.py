"""Decoded images on disk are what decoding gives, go on after an interruption, and are checked on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from benchmarks.images.decoded import CHUNK, Images, decoded
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
    lines = (folder / "chunks.jsonl").read_text().splitlines(keepends=True)
    (folder / "chunks.jsonl").write_text(lines[0] + lines[1][:4])  # the kill came while a line was written
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
def test_a_changed_pixel_is_found_on_reading(data: Dataset, tmp_path: Path, position: int) -> None:
    folder = decode(data, tmp_path).folder
    flip(folder / "images.u8", position)
    with pytest.raises(UserError, match=r"decoded images are damaged \(chunk \d\); delete the folder"):
        decode(data, tmp_path).all()


def test_a_cut_file_is_found_on_reading(data: Dataset, tmp_path: Path) -> None:
    folder = decode(data, tmp_path).folder
    content = (folder / "images.u8").read_bytes()
    (folder / "images.u8").write_bytes(content[:-7])
    with pytest.raises(UserError, match="decoded images are damaged"):
        decode(data, tmp_path).all()


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
