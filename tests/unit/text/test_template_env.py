from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from windlass.errors import InvalidRequestError, LoadError
from windlass.text import template_env
from windlass.text.template_env import compile_template, render_template
from windlass.text.tokenizer import MARK


def render(source: str, **variables: Any) -> str:
    template = compile_template(source, "chat_template.jinja", lambda: dt.datetime(2024, 7, 26))
    return render_template(template, variables)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{{ {'b': '<é>\\'', 'a': 1} | tojson }}", '{"b": "<é>\'", "a": 1}'),
        ("{{ {'b': 2, 'a': 1} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 1,\n  "b": 2\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}{{ 'é' | tojson(ensure_ascii=True) }}", '[1,2]"\\u00e9"'),
        ("{{ '<b>' }}", "<b>"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% generation %}x{{ 1 }}{% endgeneration %}y", "x1y"),
        ("{% set n = namespace(a=1) %}{% for i in range(3) %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}", "4"),
        ("{{ dict(a=1) }}{{ dict([('b', 2)]).b }}", "{'a': 1}2"),
        ("{{ missing }}{{ missing is defined }}", "False"),
    ],
)
def test_what_templates_rely_on(source: str, expected: str) -> None:
    assert render(source) == expected


def test_the_mark_survives_ascii_json() -> None:
    assert render("{{ x | tojson(ensure_ascii=True) }}", x=f"<{MARK}|é") == f'"<{MARK}|\\u00e9"'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ (messages | attr('__class__')).__base__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__.x }}",
        "{{ dict.fromkeys([1]) }}",
        "{% set n = namespace(_a=1) %}",
        "{% set n = namespace() %}{% set n._a = 1 %}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update(role='system') %}",
        "{{ lipsum() }}",
        "{% include 'other' %}",
        "{{ 'a' * 2000000 }}",
        "{{ [1] * 2000000 }}",
        "{{ 10 ** 10 }}",
        "{% for i in range(1000000) %}{% endfor %}",
    ],
)
def test_what_templates_may_not_do(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        render(source, messages=[{"role": "user"}])
    assert caught.value.param == "messages"


def test_a_templates_own_refusal_is_told() -> None:
    with pytest.raises(InvalidRequestError, match="rejects the messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_undefined_values_are_told() -> None:
    with pytest.raises(InvalidRequestError, match="fails on these messages: 'm' is undefined"):
        render("{{ m.content }}")


def test_other_errors_say_only_their_kind() -> None:
    with pytest.raises(InvalidRequestError, match=r"fails on these messages \(TypeError\)$") as caught:
        render("{{ 'secret ' + x }}", x=None)
    assert isinstance(caught.value.__cause__, TypeError)


def test_endless_output_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_env, "MAX_OUTPUT", 1000)
    assert len(render("{% for i in range(1000) %}x{% endfor %}")) == 1000
    written = []
    with pytest.raises(InvalidRequestError, match="longer than 1000 characters"):
        render("{% for i in range(9999) %}{{ write(i) or 'x' }}{% endfor %}", write=written.append)
    assert len(written) == 1001


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | nosuchfilter }}", "a\n{% endfor %}", "{% generation %}"])
def test_a_template_that_is_not_valid_names_its_file(source: str) -> None:
    with pytest.raises(LoadError, match=r"chat_template\.jinja: the chat template is not valid, line \d"):
        render(source)


def test_an_old_jinja_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_env, "version", lambda _: "3.1.5")
    with pytest.raises(LoadError, match=r"jinja2 3\.1\.6 or newer, but 3\.1\.5"):
        render("a")


def test_without_a_clock_there_is_no_date() -> None:
    template = compile_template("{{ strftime_now is defined }}", "x", None)
    assert render_template(template, {}) == "False"
