"""Templates that others wrote, made to take both forms of content and to mark their answers."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoProcessor
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.conversations_json import load, record, written
from tests.support.old_folder import LISTS_ALONE
from tests.support.tiny_models import CHATML, tiny_model
from tests.support.tiny_tokenizers import byte_level
from trainer.data.conversations import read_conversations
from trainer.export.run import ExportSettings, export_model
from trainer.model.chat_template import both_forms, chat_template, with_marks
from trainer.model.fixed_date import with_fixed_date
from trainer.model.load import open_model_folder

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|' + message['role'] + '|>\n\n' + message['content'] | trim + "
    "'<|eot|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
)
"""Turns a list into the text of a list, and says nothing of it."""
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|over|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Refuses a turn of the system by its name."""
IN_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('expected user and assistant in turns') }}{% elif message['role'] == 'user' %}"
    "{{ '<Q>' + message['content'] + '<A>' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
"""Refuses it as what comes first and is no question."""
FORGETS = (
    "{% for message in messages %}{% if message['role'] == 'user' or loop.last %}"
    "[{{ message['content'] }}]{% endif %}{% endfor %}"
)
"""Leaves out answers that are not the last turn, as templates of thinking models do with thoughts."""
LISTED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [("user", "<image>\nWhat?"), ("assistant", "a cat"), ("user", "Where?"), ("assistant", "on a mat")]
STRINGS = [{"role": role, "content": text} for role, text in TURNS]
LISTS: list[dict[str, Any]] = [
    {"role": role, "content": [{"type": "text", "text": text.removeprefix("<image>\n")}]} for role, text in TURNS
]
LISTS[0]["content"].insert(0, {"type": "image"})


def rendered(template: str, messages: list[dict[str, Any]], prompt: bool = False) -> str:
    (text,), _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )
    return str(text)


def answers(template: str) -> list[str]:
    (text,), (spans,) = render_jinja_template(
        [STRINGS], chat_template=template, return_assistant_tokens_mask=True, bos_token="<s>", eos_token="</s>"
    )  # fmt: skip
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    "own", [CHATML, LLAMA3, NO_SYSTEM, IN_TURNS, LISTS_ALONE, chat_template(None), chat_template(CHATML)]
)
@pytest.mark.parametrize("prompt", [False, True])
def test_both_forms_say_the_same(own: str, prompt: bool) -> None:
    template = with_marks(both_forms(own))
    last = slice(0, 3) if prompt else slice(None)
    text = rendered(template, STRINGS[last], prompt)
    assert text == rendered(template, LISTS[last], prompt)
    assert text == rendered(own, (LISTS if own == LISTS_ALONE else STRINGS)[last], prompt)
    assert text.count("<image>\n") == 1
    assert both_forms(template) == template


@pytest.mark.parametrize(
    ("own", "end"),
    [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot|>"), (NO_SYSTEM, "<|over|>"), (IN_TURNS, "</s>"), (LISTS_ALONE, " ")],
)
def test_answers_are_marked_up_to_the_end_of_their_turn(own: str, end: str) -> None:
    assert answers(with_marks(both_forms(own))) == [f"a cat{end}", f"on a mat{end}"]


@pytest.mark.parametrize("own", [NO_SYSTEM, IN_TURNS])
def test_what_a_template_refuses_it_refuses_with_marks_too(own: str) -> None:
    with pytest.raises(TemplateError):
        rendered(with_marks(own), [{"role": "system", "content": "be brief"}, *STRINGS])


@pytest.mark.parametrize("own", ["{{ raise_exception('no') }}", FORGETS])
def test_a_template_that_renders_nothing_or_forgets_stays_as_it_is(own: str) -> None:
    """Marks around what later turns take away would write it twice."""
    assert with_marks(own) == own


DATES = ["%d %b %Y", "%A, %-d. %B %y", "100 %% on %Y-%m-%d %H:%M:%S", "%F %T %j %p %I", "no date", "%%d"]
CALLS = {
    "a literal": "{{- strftime_now('FORMAT') }}",
    "a variable": "{%- set style = 'FORMAT' %}{{- strftime_now(style) }}",
    "a default": "{{- strftime_now(date_format | default('FORMAT')) }}",
    "behind a test": "{%- if strftime_now is defined %}{{- strftime_now( 'FORMAT' ~ '') }}{%- endif %}",
    "in a macro": "{%- macro day() %}{{- strftime_now('FORM' + 'AT') }}{%- endmacro %}{{- day() }}",
}


class Later(datetime.datetime):
    """Another day than any of the templates'."""

    @classmethod
    def now(cls, tz: Any = None) -> "Later":
        return cls(2031, 2, 3, 4, 5, 6)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("style", DATES)
def test_a_date_is_the_same_every_day(call: str, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    own = CALLS[call].replace("FORMAT", style).replace("FORM' + 'AT", f"{style[:2]}' + '{style[2:]}")
    (text,), _ = render_jinja_template([[]], chat_template=with_fixed_date(own))
    assert text == datetime.datetime(2024, 7, 26).strftime(style)
    without = "{{- messages }}strftime_now"
    assert with_fixed_date(without) == without


def test_rows_are_the_same_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a folder whose template nobody has changed."""
    tokenizer = byte_level()
    tokenizer.chat_template = CALLS["a literal"].replace("FORMAT", "%d %b %Y") + CHATML
    data, ids = written(tmp_path, record([("What?", "A cat.")])), []
    for day in (datetime.datetime, Later):
        monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / day.__name__))
        monkeypatch.setattr(chat_template_utils, "datetime", day)
        ids.append(read_conversations(data, tokenizer, template="own", image_tokens=5).rows[0]["input_ids"])
    assert ids[0] == ids[1]


@pytest.mark.slow
@pytest.mark.parametrize("image", ["<image>", " [IMG]<image>[/IMG] "])
def test_a_model_may_write_an_image_its_own_way(image: str, tmp_path: Path) -> None:
    """Rows have the ids that its processor gives, before and after an export."""
    model = tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(LISTED.replace("IMAGE", image))
    out = export_model(ExportSettings.of(source=model, out=tmp_path / "out")).out
    data = written(tmp_path, record([("<image>\nWhat?", "a cat"), ("Where?", "on a mat")], "a.jpg"))
    for folder in (model, out):
        tokenizer = open_model_folder(folder).processor.tokenizer
        (row,) = load(data, tokenizer, "own", image_tokens=16)
        token = tokenizer.convert_tokens_to_ids("<image>")
        ids = [one for given in row["input_ids"] for one in [given] * (16 if given == token else 1)]
        stock = AutoProcessor.from_pretrained(folder)
        text = stock.apply_chat_template(LISTS)
        assert image in text
        assert stock(images=Image.new("RGB", (32, 32)), text=text)["input_ids"][0][: len(ids)] == ids
