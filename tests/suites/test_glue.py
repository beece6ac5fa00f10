"""The suites of FLAN-T5 on GLUE: what the experts were trained on and how FusionBench evaluates them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.suites import forms
from benchmarks.suites import load as suites
from benchmarks.suites.forms import TextSuite, TextTask
from benchmarks.suites.prompt import read

FULL, LORA = "flan-t5-base-glue8", "flan-t5-base-glue8-lora16"
ONE, TWO = ["sentence"], ["sentence1", "sentence2"]
A, B = "A first text's", "the {other} one"

# FusionBench, commit 54c9e8c, fusion_bench/tasks/flan_t5_text_generation/
COLA = (
    'Indicate if the following sentence is grammatically correct or not: "{sentence}". '
    "Answere 'acceptable' or 'unacceptable'."
)
MNLI = (
    "Does the premise: '{premise}' logically imply, contradict, or is neutral to the hypothesis: "
    "'{hypothesis}'? Answere with 'entailment', 'contradiction', or 'neutral'."
)
MRPC = (
    "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? "
    "Answere with 'yes' or 'no'."
)
QNLI = (
    "Given the context: '{sentence}', does the question '{question}' have an answer based on the "
    "information provided? Answer with 'yes' or 'no'."
)
QQP = "Do the questions '{question1}' and '{question2}' have the same intent? Answere with 'yes' or 'no'."
RTE = "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'."
SST2 = "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?"
STSB = (
    "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely different) "
    "to 5 (completely similar), rate the similarity."
)
Prompt = tuple[str, dict[int, str] | None, list[str]]  # template, answers by label, columns in its order
PROMPTS: dict[str, Prompt] = {
    "cola": (COLA, {0: "unacceptable", 1: "acceptable"}, ONE),
    "mnli": (MNLI, {0: "entailment", 1: "neutral", 2: "contradiction"}, ["premise", "hypothesis"]),
    "mrpc": (MRPC, {0: "no", 1: "yes"}, TWO),
    "qnli": (QNLI, {0: "yes", 1: "no"}, ["sentence", "question"]),
    "qqp": (QQP, {0: "no", 1: "yes"}, ["question1", "question2"]),
    "rte": (RTE, {0: "yes", 1: "no"}, TWO),
    "sst2": (SST2, {0: "negative", 1: "positive"}, ONE),
    "stsb": (STSB, None, TWO),
}
EVALUATED = {
    "cola": ("validation", 1043),
    "mnli": ("validation_matched", 9815),
    "mrpc": ("validation", 408),
    "qnli": ("validation", 5463),
    "qqp": ("validation", 40430),
    "rte": ("validation", 277),
    "sst2": ("validation", 872),
    "stsb": ("validation", 1500),
}


def suite(name: str) -> TextSuite:
    found = suites.load(name)
    assert isinstance(found, TextSuite)
    return found


def tasks(name: str) -> dict[str, TextTask]:
    return {task.task: task for task in suite(name).tasks}


@pytest.mark.parametrize("name", [FULL, LORA])
def test_a_glue_suite_is_bundled_with_its_tasks_in_order(name: str) -> None:
    assert name in suites.names()
    found = suite(name)
    assert (found.name, found.version, found.rehearsal) == (name, 1, False)
    assert found.base == "google/flan-t5-base"
    assert (found.architecture, found.max_length) == ("encoder-decoder", 512)
    assert list(tasks(name)) == list(PROMPTS)


@pytest.mark.parametrize(("name", "end"), [(FULL, ""), (LORA, "_lora-16")])
def test_every_task_has_an_expert_of_its_own(name: str, end: str) -> None:
    experts = {task: found.expert for task, found in tasks(name).items()}
    assert experts == {task: f"tanganke/flan-t5-base_glue-{task}{end}" for task in PROMPTS}


@pytest.mark.parametrize("task", PROMPTS)
def test_a_prompt_is_the_experts_word_for_word(task: str) -> None:
    template, answers, columns = PROMPTS[task]
    read_task = read(tasks(FULL)[task].prompt)
    row: dict[str, Any] = dict(zip(columns, [A, B], strict=False))
    assert read_task.prompt(row) == template.format(**row)
    if answers:
        assert read_task.choices == [answers[label] for label in range(len(answers))]
        assert [read_task.target({**row, "label": label}) for label in answers] == list(answers.values())
    else:
        rated = [read_task.target({**row, "label": label}) for label in (0.0, 3.8, 4.25, 5.0)]
        assert rated == ["0.0", "3.8", "4.2", "5.0"]


@pytest.mark.parametrize("task", PROMPTS)
def test_only_stsb_is_ranked(task: str) -> None:
    assert read(tasks(FULL)[task].prompt).metric == ("spearman" if task == "stsb" else "accuracy")


@pytest.mark.parametrize("task", PROMPTS)
def test_the_data_are_the_hubs_glue_with_fusionbenchs_splits(task: str) -> None:
    data, read_task = tasks(FULL)[task].dataset, read(tasks(FULL)[task].prompt)
    assert (data.path, data.config, data.revision) == ("nyu-mll/glue", task, None)
    assert data.train_split == "train"
    assert data.train_size is None  # unknown until pinned
    assert (data.eval_split, data.eval_size) == EVALUATED[task]
    assert data.columns == PROMPTS[task][2] == list(read_task.columns)
    assert data.label_column == read_task.label == "label"


def test_both_suites_differ_in_their_experts_alone() -> None:
    own = {"expert", "source"}
    full, lora = ([task.model_dump(exclude=own) for task in suite(name).tasks] for name in (FULL, LORA))
    assert full == lora
    assert suites.fingerprint(suite(FULL)) == suites.fingerprint(suite(LORA))
    assert suite(FULL).comparisons == suite(LORA).comparisons


def test_the_comparisons_are_those_of_the_clip_suites() -> None:
    clip = suites.load("clip-vit-b32-8")
    assert suite(FULL).comparisons == clip.comparisons


@pytest.mark.parametrize("name", [FULL, LORA])
def test_every_task_says_where_its_facts_are_from(name: str) -> None:
    for task in suite(name).tasks:
        assert task.source is not None
        assert task.source.repository == "https://github.com/tanganke/fusion_bench"
        assert task.source.commit == "54c9e8c9d9621620c720452cd8533332a32d3689"
        pool = "flan-t5-base_glue_lora16.yaml" if name == LORA else "flan-t5-base_glue.yaml"
        assert f"config/modelpool/Seq2SeqLMPool/{pool}" in task.source.paths


def test_odd_spelling_is_noted_where_it_is() -> None:
    for name, task in tasks(FULL).items():
        assert ("Answere" in PROMPTS[name][0]) == any("Answere" in note for note in task.notes)


def test_the_towers_size_is_flan_t5_bases() -> None:
    tower = suite(FULL).tower
    assert tower is not None
    assert tower.parameters == pytest.approx(247_577_856, rel=1e-3)  # the plan leaves norms and biases out


def test_files_are_indented_as_the_others() -> None:
    for name in (FULL, LORA):
        text = (forms.FOLDER / f"{name}.json").read_text("utf-8")
        assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
