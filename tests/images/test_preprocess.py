"""Preprocessing in two steps is the library's in one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from benchmarks.images.preprocess import Preprocess, Which, of_open_clip, of_transformers
from epmq.errors import UserError
from tests.fixtures.tiny_clip import PREPROCESSOR

SIDE = 32
MODES = ("RGB", "L", "P", "CMYK", "RGBA", "1")
SIZES = ((32, 32), (5, 4), (40, 57), (301, 120))  # width, height: exact, tiny, landscape, large
SETTINGS = {**PREPROCESSOR, "crop_size": SIDE, "size": SIDE}


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert("RGB" if mode == "P" else "RGBA").convert(mode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


def processor(which: str, folder: Path) -> Any:
    """transformers' own, by the names that version 5 has for both."""
    name = "CLIPImageProcessorPil" if which == "slow" else "CLIPImageProcessor"
    return getattr(transformers, name).from_pretrained(folder)


def theirs(library: str, folder: Path, image: Image.Image) -> Tensor:
    if library == "open_clip":
        found: Tensor = open_clip.image_transform(SIDE, is_train=False)(image)
        return found
    done = processor(library, folder)(images=image, return_tensors="pt")
    return torch.as_tensor(done["pixel_values"][0])


def ours(library: str, folder: Path) -> Preprocess:
    if library == "open_clip":
        return of_open_clip({"size": SIDE})
    which: Which = "slow" if library == "slow" else "fast"
    return of_transformers(folder, which)


@pytest.mark.parametrize("library", ["open_clip", "slow", "fast"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_both_steps_make_the_librarys_output(
    library: str, size: tuple[int, int], mode: str, folder: Path
) -> None:
    image, preprocess = picture(mode, size), ours(library, folder)
    pixels = preprocess.geometry(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, SIDE, SIDE)
    expected = theirs(library, folder, image.convert("RGB"))
    found = preprocess.normalise(torch.from_numpy(pixels)[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(preprocess(image), found)


def test_slow_and_fast_differ(folder: Path) -> None:
    """So the choice is explicit, and is in the description that caches and records go by."""
    slow, fast = (ours(which, folder) for which in ("slow", "fast"))
    image = picture("RGB", (301, 120))
    assert (slow.geometry(image) != fast.geometry(image)).any()
    assert slow.description != fast.description


@pytest.mark.parametrize("library", ["open_clip", "slow", "fast"])
def test_a_description_is_json_and_says_what_matters(library: str, folder: Path) -> None:
    description = json.loads(json.dumps(ours(library, folder).description))
    assert description["library"] == ("open_clip" if library == "open_clip" else "transformers")
    assert SIDE in (description["size"], description["size"] == {"shortest_edge": SIDE} and SIDE)
    if library != "open_clip":
        assert description["implementation"] == library
        assert description["crop_size"] == {"height": SIDE, "width": SIDE}
        assert description["resample"] == 3
        assert description["image_mean"] == SETTINGS["image_mean"]


@pytest.mark.parametrize("library", ["open_clip", "slow", "fast"])
def test_the_geometry_can_be_sent_to_a_worker(library: str, folder: Path) -> None:
    geometry = ours(library, folder).geometry
    image = picture("L", (40, 57))
    assert (pickle.loads(pickle.dumps(geometry))(image) == geometry(image)).all()


@pytest.mark.keeps_rng
def test_preprocessing_draws_no_random_number(folder: Path) -> None:
    for library in ("open_clip", "slow", "fast"):
        ours(library, folder)(picture("L", (40, 57)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "preprocessor_config.json: cannot be used"),
        ("{", "preprocessor_config.json: cannot be used"),
        (json.dumps({**SETTINGS, "rescale_factor": 0.5}), "expected pixels scaled by 1/255 and normalised"),
        (json.dumps({**SETTINGS, "do_normalize": False}), "expected pixels scaled by 1/255 and normalised"),
    ],
    ids=["missing", "damaged", "other scale", "not normalised"],
)
def test_an_unusable_configuration_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        of_transformers(tmp_path, "slow")
    assert "\n" not in str(caught.value)
