"""What `init` does to a tokenizer: its template, the end of a turn, padding."""

from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from tests.support.initialised import ANSWER, LIST, STRING, around, edit, load
from tests.support.tiny_models import CHATML, tiny_llm, tiny_model
from tests.support.tiny_tokenizers import CHATML_MARKED, byte_level
from trainer.model.chat_template import with_marks, without_final_eos
from trainer.model.prompts import load_template
from trainer.model.tokenizer import prepare_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, CHATML], ids=["vicuna", "chatml"])
def test_both_forms_of_content_give_one_text(tmp_path: Path, template: str | None) -> None:
    _, processor = load(around(tiny_llm(tmp_path / "llm", template=template), tmp_path / "model"))
    texts = {
        template.apply_chat_template(messages + ANSWER, tokenize=False)
        for messages in (LIST, STRING)
        for template in (processor, processor.tokenizer)
    }
    expected = {
        None: "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT: a red square</s>",
        CHATML: "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>\n",
    }
    assert texts == {expected[template]}


def test_vicuna_marks_what_is_trained(tmp_path: Path) -> None:
    _, processor = load(tiny_model(tmp_path / "model"))
    tokenizer = processor.tokenizer
    messages = [{"role": "system", "content": "Be brief."}, *STRING, *ANSWER, *STRING, *ANSWER]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    whole = "Be brief. " + 2 * "USER: <image>\nWhat is it? ASSISTANT: a red square</s>"
    assert tokenizer.decode(out["input_ids"]) == whole
    trained = [token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(trained).replace(" a", "a") == 2 * "a red square</s>"
    prompt = tokenizer.apply_chat_template(STRING, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("What is it? ASSISTANT:")


FINAL = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ eos_token }}{% endif %}"
)
EVERY = "{% for message in messages %}{{ message['content'] + '<|im_end|>' + eos_token }}{% endfor %}"
LAST = "{% for message in messages %}{{ message['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
SAID = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "text", "eos"),
    [
        (CHATML, SAID, "<|im_end|>"),
        (CHATML + "</s>", SAID + "</s>", "<|im_end|>"),  # as Phi-3's
        (CHATML.replace("<|im_end|>", "."), SAID.replace("<|im_end|>", "."), "</s>"),
        (FINAL, "user: Q<|im_end|>assistant: A<|im_end|>", "<|im_end|>"),
        (EVERY, "Q<|im_end|></s>A<|im_end|></s>", "<|im_end|>"),
        (LAST, "QA</s>", "</s>"),
    ],
    ids=["chatml", "phi3-like", "no special token", "final", "every", "last"],
)
def test_the_end_of_a_turn_becomes_the_eos(tmp_path: Path, template: str, text: str, eos: str) -> None:
    """An EOS in the template stays what it is; behind the last turn it is left out, if that has an end."""
    model, processor = load(around(tiny_llm(tmp_path / "llm", template=template), tmp_path / "model"))
    tokenizer = processor.tokenizer
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    assert tokenizer.eos_token == eos
    assert tokenizer.pad_token == "<pad>"
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("</s>", eos)}
    assert model.generation_config.eos_token_id == sorted(ends)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no roles here') }}", "no roles here"),
        ("{% for tool in tools %}{{ tool }}{% endfor %}" + CHATML, "TypeError: 'NoneType' object is not iterable"),
        ("{{ 1 // 0 }}" + CHATML, "ZeroDivisionError: .* by zero"),
    ],
)
def test_a_template_that_cannot_answer(template: str, said: str) -> None:
    """With tools alone, as Hermes 2 Pro's `tool_use`."""
    with pytest.raises(UserError, match=rf"cannot render a question with its answer \({said}\); correct"):
        prepare_tokenizer(byte_level(template), "llm")


def test_a_template_that_loses_the_question_or_its_image() -> None:
    for lost in ("{{ messages[-1]['content'] }}", CHATML.replace("['content']", "['content'].replace('<image>', '')")):
        with pytest.raises(UserError, match="llm: its chat template does not write a question and its answer as they"):
            prepare_tokenizer(byte_level(lost), "llm")


THINKS = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
LISTS_OF_TEXT = CHATML.replace("message['content']", "message['content'] | map(attribute='text') | join")


CLOSES = CHATML.replace("role'] + '\n'", "role'] + '\n' + ('</think>' if message['role'] == 'assistant' else '')")


@pytest.mark.parametrize(
    ("own", "thought"),
    [
        (THINKS, ""),
        (CHATML_MARKED.replace("t\n' }}{% endif", "t\n<think>\n' }}{% endif"), ""),
        (CLOSES.replace("t\n' }}{% endif", "t\n<think>' }}{% endif"), "</think>"),
        (CLOSES.replace("t\n' }}{% endif", "t\n<think>\n' }}{% endif").replace("</", "<think></"), "<think></think>"),
        (CLOSES.replace("t\n' }}{% endif", "t\n<think>' }}{% endif").replace("</", "\uff5c</"), "\uff5c</think>"),
        ("{{ '<|im_start|>Give an answer: ' }}" + THINKS, ""),
    ],
    ids=["DeepSeek-R1", "Qwen3-Thinking", "GLM-4.7", "Nemotron 3", "wide bars", "a system turn that speaks of answers"],
)
def test_a_prompt_opens_no_thought_because_rows_have_none(own: str, thought: str) -> None:
    assert "<think>" in byte_level(own).apply_chat_template(STRING, tokenize=False, add_generation_prompt=True)
    tokenizer, _ = prepare_tokenizer(byte_level(own), "llm")
    row = load_template("own", tokenizer)([*STRING, *ANSWER])
    ((start, _),) = row.spans
    assert tokenizer.apply_chat_template(STRING, tokenize=False, add_generation_prompt=True) == row.text[:start]
    assert tokenizer.apply_chat_template([*STRING, *ANSWER], tokenize=False) == row.text
    assert row.text.endswith(SAID_OF_IMAGE.replace("assistant\n", f"assistant\n{thought}"))


ENDLESS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
ENDS_EARLIER = ENDLESS.replace("}}{% endfor", "+ ('' if loop.last else '<|im_end|>') }}{% endfor")


WITHOUT_ENDS = pytest.mark.parametrize(
    "own",
    [
        ENDLESS,
        ENDLESS.replace("message['content']", "'</think>' + message['content'].strip()"),
        ENDLESS.replace("}}{% endfor", "+ '\n\n' }}{% endfor").replace("<|im_start|>", ""),
        CHATML_MARKED.replace("'<|im_end|>'", "''").replace("<|im_end|>", ""),
        ENDS_EARLIER,
    ],
    ids=["ends no turn", "GLM-4.7", "RWKV", "marked", "ends earlier turns"],
)


@pytest.mark.slow
@WITHOUT_ENDS
@pytest.mark.parametrize("answers", [("a b", ""), ("", "c"), ("a \n", " c "), ("a<|im_end|>", "c"), (" a", "a")])
def test_rows_of_new_folders_are_those_of_folders_that_were_made_before(own: str, answers: tuple[str, str]) -> None:
    made, _ = prepare_tokenizer(byte_level(own), "llm")
    chat = [*STRING, {"role": "assistant", "content": answers[0]}, {"role": "user", "content": "Why?"}]
    chat.append({"role": "assistant", "content": answers[1]})
    found, before = (load_template("own", each)(chat) for each in (made, byte_level(own)))
    assert found == before
    trained = [found.text[start:end] for start, end in found.spans]
    assert len(trained) == sum(map(bool, answers))
    assert all(each.endswith("<|im_end|>") and not each.endswith("<|im_end|>" * 2) for each in trained)


@WITHOUT_ENDS
def test_a_prompt_of_a_second_turn_is_the_beginning_of_a_row(own: str) -> None:
    tokenizer, _ = prepare_tokenizer(byte_level(own), "llm")
    chat = [*STRING, {"role": "assistant", "content": "red \n"}, {"role": "user", "content": "Why?"}, *ANSWER]
    row = load_template("own", tokenizer)(chat)
    assert row == load_template("own", byte_level(own))(chat), "as rows of folders that were made before"
    for first in (STRING, LIST):
        prompt = tokenizer.apply_chat_template([*first, *chat[1:3]], tokenize=False, add_generation_prompt=True)
        assert prompt == row.text[: row.spans[1][0]]


SAID_OF_IMAGE = "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>\n"


def test_a_template_for_lists_alone_writes_what_a_row_has() -> None:
    tokenizer, _ = prepare_tokenizer(byte_level(LISTS_OF_TEXT), "llm")
    assert load_template("own", tokenizer)([*STRING, *ANSWER]).text == SAID_OF_IMAGE
    for messages in (STRING, LIST):
        assert tokenizer.apply_chat_template([*messages, *ANSWER], tokenize=False) == SAID_OF_IMAGE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pad", "unknown", "expected"), [(None, "<unk>", "<unk>"), ("</s>", None, "<pad>"), (None, "</s>", "<pad>")]
)
def test_padding_is_no_end(tmp_path: Path, pad: str | None, unknown: str | None, expected: str) -> None:
    llm = tiny_llm(tmp_path / "llm")
    edit(llm / "tokenizer_config.json", pad_token=pad, unk_token=unknown)
    model, processor = load(around(llm, tmp_path / "model"))
    assert processor.tokenizer.pad_token == expected
    assert processor.tokenizer.eos_token == "</s>"
    assert model.config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_answers_are_not_marked_into_the_next_question() -> None:
    """Where a conversation ends otherwise than its first turns."""
    assert with_marks(FINAL) == FINAL
    assert "generation" in with_marks(without_final_eos(FINAL))
