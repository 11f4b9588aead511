"""What is trained and asked by the chat templates of published models, to the letter where their authors wrote it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.refused import refused
from tests.support.tiny_runs import colours, exchange
from tests.support.tiny_tokenizers import CHATML, byte_level
from tests.trainer.attach.existing import ExistingWorld
from trainer.attach.batches import processed
from trainer.attach.folder import ExistingFolder, open_existing_folder
from trainer.attach.rows import read_texts
from trainer.evaluation.answers import Question
from trainer.evaluation.evaluator import evaluating
from trainer.evaluation.existing_questions import ExistingAsker
from trainer.evaluation.existing_run import load_attached
from trainer.evaluation.questions import SHORT
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.model.chat_template import chat_template
from trainer.model.existing_folder import is_existing
from trainer.model.folder_check import check_model_folder
from trainer.model.message_forms import ROLES, Form
from trainer.model.prompts import VICUNA_SYSTEM, RenderedText, load_prompt, load_template, read_messages

LLAVA_15 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all video then #}{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM3 = (
    "{%- for message in messages -%}{%- set content = message.content if message.content is string else '' -%}"
    '{%- if message.role == "user" -%}\n    {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}\n'
    '    {%- elif message.role == "assistant" -%}\n        {% generation %}\n        {%- if thinks -%}\n'
    '            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}\n        {%- else -%}\n'
    '        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}'
    "\n        {%- endif -%}\n        {% endgeneration %}\n    {%- endif -%}\n{%- endfor -%}\n"
    '{%- if add_generation_prompt -%}\n    {%- if thinks -%}\n        {{ "<|im_start|>assistant\\n" }}\n'
    '    {%- else -%}\n        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n"  }}\n    {%- endif -%}\n'
    "{%- endif -%}"
)
"""Its loop; `thinks` stands for its reasoning mode."""
THINKING = (
    "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- set content %}{%- for item in message.content %}{%- if item.type == 'image' %}"
    "<|vision_start|><image><|vision_end|>{%- else %}{{- item.text }}{%- endif %}{%- endfor %}{%- endset %}"
    "{%- if message.role == 'user' %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}"
    "{%- else %}{%- set reasoning_content = '' %}{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + "
    "content.lstrip('\n') }}{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
"""Qwen3-VL-Thinking's turns, without tools and videos."""
PARTED = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
TURN_TEMPLATES = {
    "strings": "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}",
    "strings, or nothing": "{% set said = m['content'] if m['content'] is string else '' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}",
    "JSON of lists": "{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'] if m['content'] is string else "
    "m['content'] | tojson }}{{ '<|im_end|>\n' }}",
    "answers as strings": "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{{ m['content'] }}"
    "{% else %}PARTED{% endif %}{{ '<|im_end|>\n' }}",
    "rules as strings": "{% if m['role'] == 'system' %}{{ m['content'] + '\n' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}PARTED{{ '<|im_end|>\n' }}{% endif %}",
    "lists": "{{ '<|im_start|>' + m['role'] + '\n' }}PARTED{{ '<|im_end|>\n' }}",
}
"""What a turn is in templates that take one form of content, or one for each role."""
FORMS = {
    name: "{% for m in messages %}" + turn.replace("PARTED", PARTED) + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    for name, turn in TURN_TEMPLATES.items()
}
UNENDED = CHATML.replace("<|im_end|>\n", "\n")
MARKED = "{% generation %}{{ m['content'] }}{% endgeneration %}"
TURNS = ["<image>\nWhat?", "a cat", "Where?", "on a mat"]
REAL = {
    "llava": (LLAVA_15, [" a cat</s>", " on a mat</s>"]),
    "llava_onevision": (ONEVISION, ["\na cat<|im_end|>", "\non a mat<|im_end|>"]),
    "qwen3_vl": (THINKING, ["a cat<|im_end|>", "\n</think>\n\non a mat<|im_end|>"]),
}


def real(world: ExistingWorld, name: str, tmp_path: Path, template: str | None = None) -> ExistingFolder:
    """The family's tiny folder with the template of its published model, or another one."""
    path = tmp_path / name
    shutil.copytree(world.model(name), path)
    (path / "chat_template.jinja").write_text(template or REAL[name][0])
    return open_existing_folder(path)


def trained(rendered: RenderedText) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize("name", REAL)
def test_each_answer_is_trained_with_the_token_that_ends_its_turn(
    name: str, world: ExistingWorld, tmp_path: Path
) -> None:
    chat, expected = real(world, name, tmp_path).chat, REAL[name][1]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "wide.png", "conversations": exchange(*TURNS)}]))
    rows = read_texts(tmp_path / "data.json", chat)
    assert not rows.bad
    (row,) = rows.rows
    assert [row["text"][start:end] for start, end in row["spans"]] == expected
    given, mask = processed(chat, [row["text"]], [[Image.new("RGB", (60, 40))]], spans=[row["spans"]])
    words = chat.processor.tokenizer
    found = words.decode(given["input_ids"][0][mask[0]])
    assert "".join(found.split()) == "".join("".join(expected).split())
    ends = words.convert_tokens_to_ids(["</s>" if name == "llava" else "<|im_end|>"])
    assert int(torch.isin(given["input_ids"][0][mask[0]], torch.tensor(ends)).sum()) == 2


def test_llava_is_trained_on_the_text_of_its_own_training(world: ExistingWorld, tmp_path: Path) -> None:
    chat = real(world, "llava", tmp_path).chat
    for turns in (TURNS[:2], TURNS, ["What <image>?", "a cat,\na mat", "Why?", "it is"]):
        text, spans, _ = chat(exchange(*turns), 1)
        own = load_template("vicuna_v1", chat.processor.tokenizer)(read_messages(exchange(*turns), 1))
        assert f"{VICUNA_SYSTEM} {text}" == own.text
        shift = len(own.text) - len(text)
        assert [(start + shift, end + shift) for start, end in spans] == own.spans


QUOTES = "{'type': \"text\"}\n\n[{{ x }}] {% if %} \\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_messages_have_the_form_that_the_template_takes(name: str, world: ExistingWorld, tmp_path: Path) -> None:
    """As a run writes them, and as a LLaVA's own template does, with a photo and without one."""
    folder = real(world, "llava", tmp_path, FORMS[name])
    turns = [{"from": "system", "value": "Be brief."}, *exchange("What?", QUOTES, "Where?", "on a mat")]
    ends = [f"{QUOTES}<|im_end|>", "on a mat<|im_end|>"]
    for images in (0, 1):
        text, spans, _ = folder.chat(turns, images)
        front = "<image>\n" * images
        assert text.startswith(("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user", "Be brief.\n<|im_start|>"))
        assert f"<|im_start|>user\n{front}What?<|im_end|>" in text
        assert [text[start:end] for start, end in spans] == ends
        prompt = folder.chat.prompt(turns, images)
        assert text.startswith(prompt)
        assert prompt.endswith("Where?<|im_end|>\n<|im_start|>assistant\n")
        tokenizer = check_model_folder(folder.path).processor.tokenizer
        messages = read_messages(turns, images)
        assert trained(load_template("own", tokenizer)(messages)) == ends
        assert load_prompt("own", tokenizer)(messages[:-1]) == prompt
        bare = byte_level(FORMS[name])
        assert trained(load_template("own", bare)(messages)) == ends
        bare.chat_template = chat_template(FORMS[name])
        assert trained(load_template("own", bare)(messages)) == ends


def test_rows_of_a_form_that_was_not_taken_before_are_cached_apart(world: ExistingWorld, tmp_path: Path) -> None:
    chat = real(world, "llava", tmp_path, FORMS["strings"]).chat
    chat.form = Form(ROLES, chat.mark)  # an earlier state's
    before = read_texts(world.data, chat).rows
    chat.form = Form(frozenset(), chat.mark)
    assert read_texts(world.data, chat).rows.cache_files != before.cache_files


@pytest.mark.parametrize("answer", ["", "{{ m['content'] | upper }}"])
def test_a_template_without_answers_is_refused(answer: str, world: ExistingWorld, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}" + answer + "{% else %}Q{% endif %}{% endfor %}"
    )
    with refused("to write an answer as it is, from a string or a list of parts; found", "correct the template"):
        real(world, "llava", tmp_path, template)


def test_strings_lack_the_tokens_around_an_image_of_qwen(world: ExistingWorld, tmp_path: Path) -> None:
    chat = real(world, "qwen3_vl", tmp_path, FORMS["strings"]).chat
    assert chat(exchange("What?", "a cat"), 0).spans
    with refused("takes a question with an image as a list of parts; found", "take the family's own template"):
        chat(exchange("<image>\nWhat?", "a cat"), 1)


def test_an_answer_that_the_template_leaves_out_is_refused() -> None:
    """A thought before the rest may be left out, and white space changed."""
    own = FORMS["strings"].replace("m['content'] | trim", "m['content'].split('</think>')[-1] | trim")
    render = load_template("own", byte_level(own))
    thought = read_messages(exchange("What?", "<think>so</think>\n a cat "), 0)
    assert trained(render(thought)) == ["a cat<|im_end|>"]
    with refused("found that it leaves out text of '<think>so</think>'; correct the template, or remove the sample"):
        render(read_messages(exchange("What?", "<think>so</think>"), 0))


QUESTION = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (SMOLLM3, ["a cat<|im_end|>", "on a mat<|im_end|>"]),
        ("{%- set thinks = true -%}" + SMOLLM3, ["a cat<|im_end|>", "on a mat<|im_end|>"]),
        (SMOLLM3.replace('"<|im_end|>\\n"', '"\\n"'), ["a cat<|im_end|>", "on a mat<|im_end|>"]),
        (UNENDED, ["a cat<|im_end|>", "on a mat<|im_end|>"]),
        (QUESTION + "A" + MARKED + "\n##{% endif %}{% endfor %}",
         ["a cat<|im_end|>", "on a mat<|im_end|>"]),
        (QUESTION + MARKED + " <|e|>{% endif %}{% endfor %}",
         ["a cat <|e|>", "on a mat <|e|>"]),
        (QUESTION + "{% generation %}{{ m['content'] + '##' }}{% endgeneration %}{% endif %}{% endfor %}",
         ["a cat##", "on a mat##"]),
        ("{% for m in messages %}{{ m.role + m.content + '<|e|>' }}{% endfor %}{% if add_generation_prompt %}assistant"
         "{% else %}{{ eos_token }}{% endif %}", ["a cat<|e|>", "on a mat<|e|><|im_end|>"]),
    ],
    ids=["smollm3", "it thinks", "no end", "no marks, no end", "text after", "token after", "text in it", "final EOS"],
)  # fmt: skip
def test_marks_of_other_kinds(template: str, expected: list[str]) -> None:
    tokenizer = byte_level(template)
    tokenizer.add_tokens(["<|e|>"], special_tokens=True)
    rendered = load_template("own", tokenizer)(read_messages(exchange("What?", "a cat", "Where?", "on a mat"), 0))
    assert trained(rendered) == expected


def test_nothing_is_trained_of_an_empty_answer_without_an_end(world: ExistingWorld, tmp_path: Path) -> None:
    text, spans, _ = real(world, "llava", tmp_path).chat(exchange("<image>\nWhat?", "", "Where?", "there"), 1)
    assert [text[start:end] for start, end in spans] == [" there</s>"]


@pytest.mark.parametrize("name", REAL)
def test_questions_end_where_training_has_the_answer(name: str, world: ExistingWorld, tmp_path: Path) -> None:
    folder = real(world, name, tmp_path)
    model = load_attached(folder, world.pictures.open())
    asker = ExistingAsker(model, folder, world.pictures.image, batch_size=2)
    asked = [Question("wide.png", "Is it red?", ("yes",), True), Question("wide.png", "Is it red?", ("it is",), False)]
    with evaluating(model):
        prompt, free = asker.prompts(asked)
        assert asker(asked)["yes_no_questions"] == 1
    parts = [{"type": "image"}, {"type": "text", "text": f"Is it red?\n{SHORT}"}]
    own = folder.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert free.text == own + ("\n</think>\n\n" if name == "qwen3_vl" else "")
    image: Any = [[world.pictures.image("wide.png")]]
    before = processed(folder.chat, [prompt.text], image)[0]["input_ids"][0]
    for answer, tokens in (("Yes", prompt.yes), ("No", prompt.no)):
        text, _, _ = folder.chat(exchange(f"<image>\nIs it red?\n{SHORT}", answer), 1)
        row = processed(folder.chat, [text], image)[0]["input_ids"][0]
        assert row[: len(before)].tolist() == before.tolist()
        assert any(tuple(row[len(before) :][: len(each)].tolist()) == each for each in tokens)


def test_llava_is_measured_alike_as_an_existing_model_and_as_one_of_init(world: ExistingWorld, tmp_path: Path) -> None:
    """Its template writes an image's newline itself, whether a question comes as a string or as parts."""
    folder = real(world, "llava", tmp_path).path
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    (run / "run.json").write_text(json.dumps({"recipe": {"model": {"attach": str(folder)}}}))
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": "wide.png", "conversations": exchange("What?\n<image>", "red", "Why?", "it is")},
        {"id": "b", "image": ["tall.png", "odd.png"], "conversations": exchange("<image>\n<image>\nWhat?", "blue")},
        {"id": "c", "conversations": exchange("What?", "green")},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "asked.json").write_text(json.dumps([{"image": "wide.png", "question": "Red?", "label": "yes"}]))
    settings: dict[str, Any] = {"data": str(tmp_path / "data.json"), "image_root": world.pictures.folder}
    settings |= {"labels": world.pictures.labels, "transfer": True, "questions": tmp_path / "asked.json"}
    assert [is_existing(path) for path in (folder, run / "model")] == [False, True]
    with colours():
        asked = [EvaluateSettings.of(model=path, device="cpu", **settings) for path in (folder, run / "model")]
        of_init, existing = map(evaluate_model, asked)
    assert of_init == pytest.approx(existing, rel=1e-5)
