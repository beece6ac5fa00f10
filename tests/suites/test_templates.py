"""A prompt's template of anybody's computes nothing: what it may hold is a short list."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.utils import env

from benchmarks.suites import prompt, templates
from epmq.errors import UserError

GOOD = {
    "Is it {{sentence}}?": "Is it a b ?",
    "{{sentence.strip() | upper}}": "A B",
    "{{ sentence.strip() + '!' if label > 0 else 'no' }}": "a b!",
    "{% if label == 1 %}yes{% else %}no{% endif %}": "yes",
    "{{'{:.1f}'.format(label)}}": "1.0",
    "{{choices[label]}}": None,
    "{{choices[0]}} {{sentence.replace('a', 'c')}}": "x c b ",
}
BAD = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ sentence.__init__.__globals__ }}",
    "{{ sentence['__class__'] }}",
    "{{ sentence|attr('__class__') }}",
    "{{ '{0.__class__}'.format(sentence) }}",
    "{{ '{0[x]}'.format(sentence) }}",
    "{{ sentence.format(label) }}",
    "{{ ('{0.__class__}' + '').format(sentence) }}",
    "{{ '{:999999999d}'.format(label) }}",
    "{{ '{:{}}'.format(label, 10) }}",
    "{{ 'a' * 10 ** 10 }}",
    "{% for i in range(10 ** 12) %}{{ sentence }}{% endfor %}",
    "{{ range(5) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__ }}",
    "{{ self }}{{ self.__init__() }}",
    "{% set x = sentence %}{{ x }}",
    "{% macro m() %}{{ sentence }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}{{ sentence }}",
    "{% import 'os' as os %}{{ sentence }}",
    "{% extends 'x' %}{{ sentence }}",
    "{{ sentence|map('upper')|list }}",
    "{{ '%1000000000d'|format(label) }}",
    "{{ sentence.encode() }}",
    "{{ sentence.join(choices) }}",
    "{{ dict(a=1) }}",
    "{{ joiner() }}",
    "{{ sentence.x }}",
    "{{ sentence",
    "{% if %}",
    "{{ " + "(" * 3000 + "sentence" + ")" * 3000 + " }}",
]


@pytest.mark.parametrize("template", GOOD)
def test_what_prompts_need_is_taken_and_rendered_as_lm_eval_renders_it(template: str) -> None:
    row = {"sentence": "a b ", "label": 1, "choices": ["x", "y"]}
    if GOOD[template] is None:
        with pytest.raises(ValueError, match="asks for a part by another thing"):
            templates.parsed(template)
        return
    templates.parsed(template)
    assert env.from_string(template).render(row) == GOOD[template]


@pytest.mark.parametrize("template", BAD, ids=lambda template: template[:40])
def test_what_computes_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"is no template|holds a|asks for|uses the filter|calls what"):
        templates.parsed(template)


def test_a_task_file_with_such_a_template_is_one_line(tmp_path: Path) -> None:
    text = (prompt.PROMPTS / "glue8" / "stsb.yaml").read_text()
    (tmp_path / "evil.yaml").write_text(text.replace("'{:.1f}'.format(label)", "label.__class__"))
    with pytest.raises(UserError, match=r"evil\.yaml: field 'doc_to_target' asks for \.__class__"):
        prompt.read(str(tmp_path / "evil.yaml"))


def test_an_alias_is_refused(tmp_path: Path) -> None:
    (tmp_path / "laughs.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    with pytest.raises(UserError, match=r"laughs\.yaml: is no YAML: an alias"):
        prompt.read(str(tmp_path / "laughs.yaml"))
