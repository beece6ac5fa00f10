"""The tasks of the paper's suites are those of fusion-bench, on which the experts were trained.

Its configurations are composed and its loaders called as its own command does; only ``load_dataset`` is
replaced by a recorder. What its package cannot say is not compared: how many samples a split has, revisions,
which of transformers' image processors reads the images, and the split that calibrates on GLUE, where it has
no calibration. That the two names of a data set (``RENAMED``) hold the same samples needs the hub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from fusion_bench.constants import DEFAULT_CONFIG_PATH
from fusion_bench.dataset import fer2013
from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.tasks.flan_t5_text_generation import glue_load_dataset
from fusion_bench.tasks.flan_t5_text_generation.glue_evaluation import (
    evaluate_accuracy,
    evaluate_spearman_rho,
)
from fusion_bench.tasks.flan_t5_text_generation.glue_preprocessors import glue_processors
from fusion_bench.tasks.flan_t5_text_generation.glue_prompt_templates import glue_prompt_templates
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.lm_metrics import exact_label_value, spearman_text_value
from benchmarks.suites import load as suites
from benchmarks.suites import prompt as prompts
from benchmarks.suites.forms import ImageTask, Suite, TextTask
from epmq.errors import UserError

POOLS = {
    "clip-vit-l14-20": "CLIPVisionModelPool/clip-vit-large-patch14_TALL20",
    "clip-vit-l14-8": "CLIPVisionModelPool/clip-vit-large-patch14_TA8",
    "clip-vit-b32-20": "CLIPVisionModelPool/clip-vit-base-patch32_TALL20",
    "clip-vit-b32-8": "CLIPVisionModelPool/clip-vit-base-patch32_TA8",
    "flan-t5-base-glue8": "Seq2SeqLMPool/flan-t5-base_glue",
    "flan-t5-base-glue8-lora16": "Seq2SeqLMPool/flan-t5-base_glue_lora16",
}
IMAGES = {task.task: task for task in suites.load_clip("clip-vit-l14-20").tasks}
GLUE = {x.task: x for x in suites.load("flan-t5-base-glue8").tasks if isinstance(x, TextTask)}


class Read(NamedTuple):
    """A call of ``datasets.load_dataset``."""

    path: str
    config: str | None
    split: str | None


class Renamed(NamedTuple):
    """A data set that fusion-bench reads by an older name."""

    theirs: str
    ours: str
    why: str  # a note of our task where it has one on this


# Every deliberate difference. One that is no longer there fails the tests, as one that is not listed does.
GLUE_MOVED = "the bare id is an alias that only the hub resolves"
RENAMED = {
    "mnist": Renamed("mnist", "ylecun/mnist", "Was called mnist."),
    "svhn": Renamed("svhn", "ufldl-stanford/svhn", "Was called svhn; that id needed a loading script."),
    **{name: Renamed("glue", "nyu-mll/glue", GLUE_MOVED) for name in GLUE},
}
# The rows of GLUE's test splits (of all but one): fusion-bench would ask for an answer, ours refuses them.
UNLABELLED = "Test rows have the label -1, none: never evaluated."


@pytest.fixture(scope="module")
def configured() -> Iterator[Any]:
    """What fusion-bench's command reads for its options."""
    with initialize_config_dir(str(DEFAULT_CONFIG_PATH), version_base=None):
        yield lambda *options: compose("fabric_model_fusion", overrides=list(options))


def ours(task: ImageTask | TextTask, split: str) -> Read:
    """The read of a split that fusion-bench makes for the same samples, differences taken back."""
    path = task.dataset.path
    if task.task in RENAMED:
        assert path == RENAMED[task.task].ours, "the table of differences is out of date"
        path = RENAMED[task.task].theirs
    return Read(path, task.dataset.config, split)


def test_every_listed_difference_is_one_and_has_its_note() -> None:
    for name, difference in RENAMED.items():
        assert difference.theirs != difference.ours
        assert name in GLUE or difference.why in IMAGES[name].notes
    assert [name for name, task in GLUE.items() if UNLABELLED not in task.notes] == ["mrpc"]


@pytest.mark.filterwarnings("ignore:In .*Defaults list is missing:UserWarning")
@pytest.mark.parametrize("name", POOLS)
def test_base_and_experts_are_those_of_the_model_pool_in_its_order(name: str, configured: Any) -> None:
    suite: Suite = suites.load(name)
    pool = configured(f"modelpool={POOLS[name]}").modelpool

    def checkpoint(model: Any) -> str:
        if isinstance(model, str):
            return model
        return str(model.get("peft_model_path") or model.pretrained_model_name_or_path)

    theirs = {str(task): checkpoint(model) for task, model in pool.models.items()}
    assert theirs.pop("_pretrained_") == suite.base
    prefix = "" if suite.kind == "clip" else "glue-"
    assert list(theirs.items()) == [(prefix + task.task, task.expert) for task in suite.tasks]


@pytest.mark.parametrize("name", IMAGES)
def test_class_names_and_prompts_are_fusion_benchs_in_order(name: str) -> None:
    names, templates = get_classnames_and_templates(name)
    assert IMAGES[name].class_names == names
    for c in (*names, "{c} {} \"'"):
        assert [t.replace("{c}", c) for t in IMAGES[name].templates] == [write(c) for write in templates]


@pytest.mark.filterwarnings("ignore:In .*Defaults list is missing:UserWarning")
@pytest.mark.parametrize("use", ["calibration", "evaluation"])
def test_images_are_read_from_fusion_benchs_data_splits_and_columns(
    use: str, configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Read] = []
    columns: dict[str, list[Any]] = {}

    def load_dataset(path: str, name: str | None = None, *, split: str) -> datasets.Dataset:
        read.append(Read(path, name, split))
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(fer2013, "load_dataset", load_dataset)
    pool = configured(f"modelpool={POOLS['clip-vit-l14-20']}").modelpool
    taskpool = configured("taskpool=CLIPVisionModelTaskPool/clip-vit-classification_TALL20").taskpool
    loaders = pool.train_datasets if use == "calibration" else taskpool.test_datasets
    assert list(loaders) == list(IMAGES)
    for name, loader in loaders.items():
        data = IMAGES[name].dataset
        columns.update(
            {data.image_column: ["an image"], data.label_column: [1], "__key__": [""], "__url__": [""]}
        )
        assert ImageClassificationDataset(instantiate(loader))[0] == ("an image", 1), name
        assert read.pop() == ours(IMAGES[name], data.train_split if use == "calibration" else data.eval_split)
        assert not read
        columns.clear()


class _Read(Exception):
    """Stands for the data, which is not there."""


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_read_from_fusion_benchs_data_and_split(
    name: str, configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(path: str, name: str | None = None) -> datasets.DatasetDict:
        raise _Read(Read(path, name, None))

    monkeypatch.setattr(glue_load_dataset, "load_dataset", load_dataset)
    tasks = {x.name: x.dataset for x in configured("taskpool=flan-t5_glue_text_generation").taskpool.tasks}
    assert list(tasks) == list(GLUE)
    with pytest.raises(_Read) as raised:
        glue_load_dataset.load_glue_dataset(tasks[name].name, tokenizer=None, cache_dir=None)
    theirs = raised.value.args[0]._replace(split=tasks[name].split)
    assert theirs == ours(GLUE[name], GLUE[name].dataset.eval_split)


def written(name: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt and the answer that fusion-bench makes of a row."""
    processor = glue_processors[name](tokenizer=None, template=glue_prompt_templates[name])
    prompt, answer = processor.preprocess(**row)
    return prompt, answer


@pytest.mark.parametrize("name", GLUE)
def test_glues_prompts_and_answers_are_fusion_benchs(name: str) -> None:
    task = prompts.read(GLUE[name].prompt)
    row = {
        column: f"  {column} {{label}} {{{{x}}}} 'a' \"b\" <c> & 100 %s \\n\té  " for column in task.columns
    }
    scores = [x / 40 for x in range(201)]
    for label in scores if task.choices is None else range(len(task.choices)):
        labelled = {**row, "label": label}
        assert (task.prompt(labelled), task.target(labelled)) == written(name, labelled)
    if task.choices is not None:
        assert written(name, {**row, "label": len(task.choices)})[1] == "", "they have a label more"
        assert list(glue_prompt_templates[name]["target_text"].values()) == task.choices


@pytest.mark.parametrize("name", GLUE)
def test_a_row_without_a_label_is_refused_where_fusion_bench_asks_for_something(name: str) -> None:
    task = prompts.read(GLUE[name].prompt)
    row = {**dict.fromkeys(task.columns, ""), "label": -1}
    assert written(name, row)[1] == ("-1.0" if task.choices is None else "")
    with pytest.raises(UserError, match="is none of the task"):
        task.target(row)


class Answering:
    """A model and a tokenizer in one: a token is the place of a text in ``texts``."""

    all_special_ids: tuple[int, ...] = ()

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.asked: dict[str, Any] = {}

    def eval(self) -> Answering:
        return self

    def generate(self, inputs: Tensor, **options: Any) -> Tensor:
        self.asked = options
        return inputs

    def batch_decode(self, tokens: Any, **_: Any) -> list[str]:
        return [self.texts[int(row[0])] for row in tokens]


def scored_by_them(speaker: Answering, pairs: list[tuple[str, str]], evaluate: Callable[..., float]) -> float:
    """Fusion-bench's score of (label, answer) pairs."""
    place = {text: i for i, text in enumerate(speaker.texts)}
    batch = {
        "input_ids": torch.tensor([[place[answer]] for _, answer in pairs]),
        "labels": torch.tensor([[place[label], -100] for label, _ in pairs]),
    }
    return float(evaluate(speaker, [batch], speaker))


ANSWERS = [
    "",
    "yes",
    "no",
    "Yes",
    " yes",
    "acceptable",
    "unacceptable",
    "4.2",
    "0.5",
    "3",
    "2.0",
    "5.0 x",
    "-1.0",
]


@pytest.mark.parametrize("name", GLUE)
def test_answers_are_asked_for_and_scored_as_fusion_bench_does(name: str) -> None:
    task = prompts.read(GLUE[name].prompt)
    scored = task.metric == "spearman"
    wanted = ["4.2", "0.5", "3.0", "2.0", "1.5", "5.0"] if scored else ["yes", "no"]
    speaker = Answering(ANSWERS + wanted)
    pairs = [(label, answer) for i, label in enumerate(wanted) for answer in ANSWERS[i:]]
    theirs = scored_by_them(speaker, pairs, evaluate_spearman_rho if scored else evaluate_accuracy)
    value = (spearman_text_value if scored else exact_label_value)(pairs)
    assert value == pytest.approx(theirs, abs=1e-12)
    assert value not in (0, 1)
    # Their count includes the token with which the decoder starts.
    assert speaker.asked == {"max_length": task.config["generation_kwargs"]["max_gen_toks"] + 1}


def test_an_answer_that_is_not_a_number_costs_one_row_and_not_the_score() -> None:
    """Fusion-bench takes the text "nan" for a number, and its correlation is then none."""
    pairs = [("1.0", "1.0"), ("2.0", "2.0"), ("3.0", "nan")]
    speaker = Answering(["", "1.0", "2.0", "3.0", "nan"])
    assert math.isnan(scored_by_them(speaker, pairs, evaluate_spearman_rho))
    assert spearman_text_value(pairs) == spearman_text_value([*pairs[:2], ("3.0", "0.0")]) == -0.5
