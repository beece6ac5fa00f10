"""Evaluation: the same predictions for any batch size, and for towers evaluated alone or together."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.images.decoded import CHUNK, Images, decoded
from benchmarks.images.predict import features, fitting_batch_size, predictions
from benchmarks.images.preprocess import Preprocess
from benchmarks.workbench.machine import Machine
from epmq.errors import UserError
from epmq.models.open_clip_vision import tower as open_clip_tower
from tests.fixtures.tiny_suite import TinyVisual

COUNT = CHUNK + 44
PREPROCESS = Preprocess(
    lambda image: np.asarray(image).transpose(2, 0, 1).copy(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), {}
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    rows = {"image": [Image.fromarray(x) for x in pixels], "label": [0] * COUNT}
    columns = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    data = datasets.Dataset.from_dict(rows, features=columns)
    return decoded(data, ("image", "label"), PREPROCESS, tmp_path_factory.mktemp("i"), identity={}, what="x")


@pytest.fixture(scope="module")
def head() -> Tensor:
    return torch.randn(200, 8, generator=torch.Generator().manual_seed(2))


def directly(visual: TinyVisual, checkpoint: dict[str, Tensor], head: Tensor, images: Images) -> list[int]:
    """With open_clip's own tower, one sample at a time."""
    state = {**visual.visual.state_dict(), **checkpoint}
    visual.visual.load_state_dict(state)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        each = [visual.visual(((x / 255 - mean) / std)[None]) for x in images.all()]
    return (torch.cat(each) @ head.T).argmax(1).tolist()


@pytest.mark.parametrize("batch_size", [None, 1, 7, 64, CHUNK])
def test_the_batch_size_does_not_change_predictions(
    tiny_visual: TinyVisual, images: Images, head: Tensor, batch_size: int | None
) -> None:
    found = predictions([tiny_visual.tower], head, images, PREPROCESS, Machine(), batch_size)
    assert found.shape == (1, COUNT)
    assert found.dtype == np.int32
    assert found[0].tolist() == directly(tiny_visual, {}, head, images)


def test_towers_together_predict_what_each_does_alone(
    tiny_visual: TinyVisual, images: Images, head: Tensor
) -> None:
    experts = [open_clip_tower(tiny_visual.visual).load_all(x) for x in tiny_visual.experts.values()]
    towers = [tiny_visual.tower, *experts]
    together = predictions(towers, head, images, PREPROCESS, Machine())
    alone = [predictions([tower], head, images, PREPROCESS, Machine())[0] for tower in towers]
    assert np.array_equal(together, np.stack(alone))
    assert len({tuple(row) for row in together.tolist()}) == 3, "the towers differ"


def test_bfloat16_evaluates_a_copy(tiny_visual: TinyVisual, images: Images, head: Tensor) -> None:
    machine = Machine.choose("cpu", "bfloat16")
    ready = machine.ready(tiny_visual.tower)
    before = {name: p.clone() for name, p in tiny_visual.tower.named_parameters()}
    coarse = predictions([ready], head, images, PREPROCESS, machine)
    fine = predictions([tiny_visual.tower], head, images, PREPROCESS, Machine())
    assert next(ready.parameters()).dtype == torch.bfloat16
    assert (coarse == fine).mean() > 0.9
    assert all(torch.equal(before[name], p) for name, p in tiny_visual.tower.named_parameters())


class Small(nn.Module):
    """Takes so many samples at once, and remembers what it was given."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.sizes = limit, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return 2 * x


def test_a_batch_that_does_not_fit_is_halved() -> None:
    small = Small(3)
    x = torch.arange(10.0)[:, None]
    assert torch.equal(features(small, x), 2 * x)
    assert small.sizes == [10, 5, 2, 3, 5, 2, 3]


def test_a_sample_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UserError, match="does not take one sample; free some, or use --device cpu"):
        features(Small(0), torch.ones(4, 1))


def test_batches_are_smaller_for_larger_models(
    tiny_visual: TinyVisual, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = torch.zeros(1, 3, 16, 16)
    assert fitting_batch_size(tiny_visual.tower, sample, Machine()) == CHUNK
    per_sample = 4 * 5 * 64 * 4  # alive activations, tokens, the MLP's width, bytes
    monkeypatch.setattr("benchmarks.images.predict.ACTIVATIONS", 10 * per_sample)
    assert fitting_batch_size(tiny_visual.tower, sample, Machine()) == 10
    monkeypatch.setattr("benchmarks.images.predict.ACTIVATIONS", 1)
    assert fitting_batch_size(tiny_visual.tower, sample, Machine()) == 1


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "cuda:x", "cuda:", "CUDA"])
def test_an_unknown_device_is_refused(name: str) -> None:
    if name == "cuda:" and torch.cuda.is_available():
        pytest.skip("an empty number means the first GPU")
    with pytest.raises(UserError, match=r"is unknown; give auto, cpu, cuda or cuda:N|is not there"):
        Machine.choose(name)


def test_a_missing_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"'cuda:99' is not there: \d+ CUDA devices are seen"):
        Machine.choose("cuda:99")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UserError, match="dtype 'float8' is unknown"):
        Machine.choose("cpu", "float8")


def test_auto_is_the_cpu_where_there_is_no_gpu(tmp_path: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Machine.choose().device.type == expected
