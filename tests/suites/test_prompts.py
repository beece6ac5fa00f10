"""Task files: what they ask and expect, word for word, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.utils import apply_template
from pyarrow import parquet

from benchmarks.suites import forms
from benchmarks.suites import prompt as prompts
from benchmarks.suites.prompt import PROMPTS, read
from epmq.errors import UserError

FILES = sorted(file.relative_to(PROMPTS).as_posix() for file in PROMPTS.glob("*/*.yaml"))
SNLI = (
    "Does the premise: {premise} imply, contradict, or is neutral to the hypothesis: {hypothesis} Answer "
    "entailment, contradiction or neutral."
)
WORDS: dict[str, tuple[str, list[str] | None]] = {
    "snli": (
        SNLI,
        ["entailment", "neutral", "contradiction"],
    ),
    "caption-paraphrase": (
        "Do the captions: {sentence1} and: {sentence2} show the same scene? Answer yes or no.",
        ["no", "yes"],
    ),
    "acceptability": (
        "Are the words in order: {sentence} Answer acceptable or unacceptable.",
        ["unacceptable", "acceptable"],
    ),
    "sarcasm": ("Given the headline: {sentence} Is it serious or sarcastic?", ["serious", "sarcastic"]),
    "sms-spam": ("Is this message wanted: {text} Answer spam or ham.", ["ham", "spam"]),
    "supersense": (
        "Given the definition: {gloss} Which kind does it define?",
        [
            *("act", "animal", "artifact", "attribute", "body"),
            *("cognition", "communication", "food", "person", "plant"),
        ],
    ),
    "definition": (
        "Given the definition: {gloss} Is it of the kind: {category}? Answer yes or no.",
        ["no", "yes"],
    ),
    "sentiment": ("Rate the review: {sentence} On a scale from -4 to 4.", None),
}
ODD = "  {{ label }} {% raw %} {sentence} 'a' \"b\" <c> & 100 %s \\n\té  "


def test_there_is_a_file_for_each_task_of_both_sets() -> None:
    glue = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    wanted = {f"glue8/{name}.yaml" for name in glue} | {f"micro_glue_8/{name}.yaml" for name in WORDS}
    assert set(FILES) == wanted


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_bundled_row_is_asked_and_answered_word_for_word(name: str, split: str) -> None:
    prompt, answers = WORDS[name]
    task = read(f"micro_glue_8/{name}.yaml")
    folder = forms.PACKAGE / "embedded" / "micro_glue_8" / "data" / name / "data"
    rows = parquet.read_table(folder / f"{split}-00000-of-00001.parquet").to_pylist()
    task.require(rows[0], "here")
    task.check([row["label"] for row in rows], "here")
    for row in rows:
        assert task.prompt(row) == prompt.format(**row)
        wanted = answers[row["label"]] if answers else "{:.1f}".format(row["label"])
        assert task.target(row) == wanted


@pytest.mark.parametrize("file", FILES)
def test_a_prompt_is_what_lm_eval_renders_and_reads_nothing_into_the_data(file: str) -> None:
    task = read(file)
    row = dict.fromkeys(task.columns, ODD) | {"label": 1}
    raw = yaml.load((PROMPTS / file).read_text("utf-8"), Loader=prompts._Loader)
    assert task.prompt(row) == apply_template(raw["doc_to_text"], row)
    assert task.prompt(row).count(ODD) == len(task.columns)


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_greedy_versioned_and_limited_as_fusionbench_limits(file: str) -> None:
    task = read(file)
    assert task.metadata.version == 1
    assert task.config["generation_kwargs"] == {"do_sample": False, "until": [], "max_gen_toks": 9}
    assert task.metric == ("spearman" if Path(file).stem in ("stsb", "sentiment") else "accuracy")
    assert (task.choices is None) == (task.metric == "spearman")
    assert task.label == "label"


@pytest.mark.parametrize(
    ("label", "text"), [(2.5, "2.5"), (3.75, "3.8"), (0.25, "0.2"), (4.999, "5.0"), (0, "0.0"), (5.0, "5.0")]
)
def test_a_score_is_rounded_to_one_decimal_as_python_rounds(label: float, text: str) -> None:
    assert read("glue8/stsb.yaml").target({"sentence1": "", "sentence2": "", "label": label}) == text


@pytest.mark.parametrize(
    ("file", "label", "expected"),
    [
        ("glue8/cola.yaml", -1, "0..1"),
        ("glue8/mnli.yaml", 3, "0..2"),
        ("glue8/cola.yaml", None, "0..1"),
        ("glue8/cola.yaml", True, "0..1"),
        ("glue8/cola.yaml", 1.0, "0..1"),
        ("glue8/stsb.yaml", -1.0, "0 to 5"),
        ("glue8/stsb.yaml", float("nan"), "0 to 5"),
        ("glue8/stsb.yaml", "3.0", "0 to 5"),
        ("micro_glue_8/sentiment.yaml", 4.5, "-4 to 4"),
    ],
)
def test_a_label_that_a_task_does_not_have_is_refused_by_name(file: str, label: Any, expected: str) -> None:
    task = read(file)
    row = dict.fromkeys(task.columns, "") | {"label": label}
    complaint = f"label {label!r} is none of the task {task.name}, {expected}; take a split with labels"
    with pytest.raises(UserError) as raised:
        task.target(row)
    assert complaint in str(raised.value)
    with pytest.raises(UserError) as raised:
        task.check([0, label], "data set glue (test)")
    assert str(raised.value).startswith(f"data set glue (test): {complaint}")


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(UserError) as raised:
        read("glue8/qnli.yaml").require(["question", "idx", "label"], "data set qnli (nyu-mll/glue, train)")
    said = str(raised.value)
    assert said.startswith("data set qnli (nyu-mll/glue, train) has no column 'sentence', which the task")
    assert "glue8_qnli needs, only question, idx, label; " in said
    with pytest.raises(UserError, match="has no column 'label'"):
        read("glue8/qnli.yaml").require(["question", "sentence"], "here")
    read("glue8/qnli.yaml").require(["question", "sentence", "label"], "here")


def test_a_row_without_a_field_is_refused() -> None:
    with pytest.raises(UserError, match="'sentence' is undefined"):
        read("glue8/cola.yaml").prompt({"text": "a"})


def test_columns_are_in_the_prompts_order() -> None:
    assert read("glue8/qnli.yaml").columns == ("sentence", "question")
    assert read("glue8/mnli.yaml").columns == ("premise", "hypothesis")
    assert read("micro_glue_8/definition.yaml").columns == ("gloss", "category")


def changed(tmp_path: Path, edit: Callable[[dict[str, Any]], object], file: str = "glue8/cola.yaml") -> Path:
    content = yaml.load((PROMPTS / file).read_text("utf-8"), Loader=prompts._Loader)
    edit(content)
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_of_ones_own_is_read_by_path(tmp_path: Path) -> None:
    file = changed(tmp_path, lambda task: task.update(doc_to_text="Is {{text}} fine?", target_delimiter=" "))
    assert read(str(file)).prompt({"text": "this"}) == "Is this fine?"
    assert read(str(file)).columns == ("text",)
    assert read(str(file)).data == {}


def test_lm_evals_fields_of_the_data_are_kept_apart(tmp_path: Path) -> None:
    data = {"dataset_path": "owner/name", "training_split": "train", "test_split": "validation"}
    task = read(str(changed(tmp_path, lambda task: task.update(data))))
    assert task.data == data
    assert task.config == read("glue8/cola.yaml").config


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda task: task.pop("doc_to_text"), "field 'doc_to_text' is missing"),
        (lambda task: task.pop("metric_list"), "field 'metric_list' is missing"),
        (lambda task: task.pop("metadata"), "field 'metadata' is missing"),
        (lambda task: task["metadata"].pop("version"), "field 'metadata.version' is missing"),
        (
            lambda task: task["metadata"].update(version="1"),
            "field 'metadata.version' is '1': Input should be",
        ),
        (lambda task: task["metadata"].update(version=0), "is 0: Input should be greater than or equal to 1"),
        (lambda task: task.update(metadata=[]), "field 'metadata' is []: expected fields"),
        (
            lambda task: task.update(description="Hello"),
            "field 'description' is unknown; known: dataset_name, ",
        ),
        (lambda task: task.update(num_fewshot=2), "field 'num_fewshot' is unknown; known: "),
        (lambda task: task.update(doc_to_text=3), "field 'doc_to_text' is 3: expected a text"),
        (lambda task: task.update(doc_to_text="{{ a"), "field 'doc_to_text' is no template"),
        (lambda task: task.update(doc_to_text="Well?"), "field 'doc_to_text' names no column"),
        (
            lambda task: task.update(doc_to_choice=[False, True]),
            "field 'doc_to_choice.0' is False: expected a text in quotation marks",
        ),
        (lambda task: task.update(doc_to_choice=["yes", "yes"]), "needs two or more different texts"),
        (lambda task: task.update(doc_to_target="{{label}}"), "'{{label}}' is no column name"),
        (
            lambda task: task.update(output_type="multiple_choice"),
            "is 'multiple_choice': Input should be 'generate_until'",
        ),
        (
            lambda task: task["generation_kwargs"].pop("max_gen_toks"),
            "'generation_kwargs.max_gen_toks' is missing",
        ),
        (
            lambda task: task["generation_kwargs"].update(do_sample=True),
            "do_sample' is True: Input should be False",
        ),
        (
            lambda task: task["generation_kwargs"].update(num_beams=4),
            "'generation_kwargs': field 'num_beams' is unknown; known: do_sample, max_gen_toks, until",
        ),
        (lambda task: task["generation_kwargs"].pop("until"), "field 'generation_kwargs.until' is missing"),
        (lambda task: task["generation_kwargs"].update(until=[2]), "until.0' is 2: expected a text in quot"),
        (
            lambda task: task["metric_list"][0].update(metric="bleu"),
            "field 'metric_list': ['bleu'] is none of ours, expected one",
        ),
        (
            lambda task: task["metric_list"][0].update(metric="os.system"),
            "field 'metric_list': ['os.system'] is none",
        ),
        (lambda task: task.update(metric_list=[]), "[] is none of ours, expected one of exact_label, "),
        (lambda task: task.pop("doc_to_choice"), "label_range is None, expected [low, high]"),
    ],
)
def test_a_bad_task_file(tmp_path: Path, edit: Callable[[dict[str, Any]], object], complaint: str) -> None:
    def without_choices(task: dict[str, Any]) -> None:
        edit(task)
        if "doc_to_choice" not in task:
            task["doc_to_target"] = "{{label}}"

    file = changed(tmp_path, without_choices)
    with pytest.raises(UserError) as raised:
        read(str(file))
    assert str(raised.value).startswith(f"{file}: ")
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_score_of_two_columns_is_refused(tmp_path: Path) -> None:
    file = changed(tmp_path, lambda task: task.update(doc_to_target="{{a}} {{b}}"), "glue8/stsb.yaml")
    with pytest.raises(UserError, match="names a, b, expected one column"):
        read(str(file))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: [", "is no YAML"),
        (b"- a\n- b\n", "expected the fields of a task, found list"),
        (b"", "expected the fields of a task, found NoneType"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"a: !!python/name:os.system\n", "is no YAML"),
    ],
)
def test_what_is_no_task_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read(str(file))
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"glue8/colla\.yaml: cannot read the task file: No such file"):
        read("glue8/colla.yaml")
