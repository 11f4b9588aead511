"""Tokens and masks of conversations against LLaVA's own rules."""

import copy
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.llava_json import images_of, records
from tests.support.conversations_json import ANSWERS, Pairs, Row, load, record, rows_of, samples, written
from tests.support.refused import refused
from tests.support.tiny_tokenizers import CHATML, CHATML_MARKED, byte_level, llama_like
from trainer.data.bad_rows import missing_images
from trainer.data.conversations import Summary, read_conversations, summary
from trainer.model.prompts import VICUNA_SYSTEM, RenderedText
from trainer.model.tokenise import Conversation, ConversationTokenizer

# The slow twins: LLaVA tokenises what stands between images by itself, and finds masks by counting tokens of pieces.


def llava_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    image = tokenizer.get_added_vocab()["<image>"]
    first, *others = [own_text(tokenizer, piece) for piece in prompt.split("<image>")]
    ids = [tokenizer.bos_token_id, *first]
    for other in others:
        ids += [image, *other]
    return ids


def llava_v1(tokenizer: PreTrainedTokenizerFast, pairs: Pairs) -> tuple[list[int], list[bool]]:
    prompt = VICUNA_SYSTEM + " "
    for question, answer in pairs:
        if "<image>" in question:
            question = ("<image>\n" + question.replace("<image>", "").strip()).strip()
        prompt += f"USER: {question} ASSISTANT: {answer}</s>"
    ids = llava_ids(tokenizer, prompt)
    mask, place = [False] * len(ids), 1
    for turn in prompt.split("</s>")[:-1]:
        instruction = turn.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        start = place + len(llava_ids(tokenizer, instruction)) - 2
        place += len(llava_ids(tokenizer, turn))
        mask[start:place] = [True] * (place - start)
    assert place == len(ids), "LLaVA would ignore this sample: tokenization mismatch"
    return ids, mask


def piecewise(tokenizer: PreTrainedTokenizerFast, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    """Each piece as it is tokenised in the middle of a text: behind a special token, which is then taken off.

    But what stands behind an image, which is a text of its own.
    """
    ids, mask = list(tokenizer("")["input_ids"]), [False] * len(tokenizer("")["input_ids"])
    for number, (piece, trained) in enumerate(pieces):
        first, image, behind = piece.partition("<image>" * max(1, piece.count("<image>")))
        text = first if number == 0 else "<image>" + first
        found = tokenizer(text, add_special_tokens=False)["input_ids"][min(number, 1) :]
        found += tokenizer(image, add_special_tokens=False)["input_ids"] + own_text(tokenizer, behind)
        ids += found
        mask += [trained and token != tokenizer.get_added_vocab()["<image>"] for token in found]
    return ids, mask


def own_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """As SentencePiece does: a space before any text, where the tokenizer puts one before any text at all."""
    spaced = tokenizer("a")["input_ids"] == tokenizer(" a")["input_ids"]
    ids: list[int] = tokenizer(" " * (spaced and text[:1] == " ") + text, add_special_tokens=False)["input_ids"]
    return ids


def v1_pieces(pairs: Pairs, eos: str) -> list[tuple[str, bool]]:
    pieces = [(f"{VICUNA_SYSTEM}", False)]
    for number, (question, answer) in enumerate(pairs):
        if "<image>" in question:
            question = ("<image>\n" + question.replace("<image>", "").strip()).strip()
        pieces += [(" " * (number == 0) + f"USER: {question} ASSISTANT:", False), (f" {answer}", True), (eos, True)]
    return pieces


@pytest.mark.slow
def test_v1_is_llavas_token_by_token(tmp_path: Path) -> None:
    tokenizer = llama_like("always")
    data = written(tmp_path, *(record(pairs, image) for pairs, image in samples(empty=False)))
    expected = [llava_v1(tokenizer, pairs) for pairs, _ in samples(empty=False)]
    assert rows_of(load(data, tokenizer, "vicuna_v1")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [llama_like("first"), byte_level()], ids=["first", "bytes"])
def test_other_tokenizers_begin_anew_behind_images_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    eos = str(tokenizer.eos_token)
    data = written(tmp_path, *(record(pairs, image) for pairs, image in samples(empty=False)))
    expected = [piecewise(tokenizer, v1_pieces(pairs, eos)) for pairs, _ in samples(empty=False)]
    assert rows_of(load(data, tokenizer, "vicuna_v1")) == expected
    data = written(tmp_path, *(record([("Describe it.", answer)], ["a.jpg", "b.jpg"]) for answer in ANSWERS))
    for answer, (ids, mask) in zip(ANSWERS, rows_of(load(data, tokenizer, "plain")), strict=True):
        expected = own_text(tokenizer, f"{answer}\n")
        front = len(ids) - len(expected)
        assert ids[front:] == expected
        assert mask == [False] * front + [True] * len(expected)


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED], ids=["prefix", "marked"])
def test_own_is_what_transformers_marks(tmp_path: Path, template: str) -> None:
    """But of empty answers, of which nothing is trained."""
    tokenizer = byte_level(template)
    marked = byte_level(CHATML_MARKED.replace("== 'assistant'", "== 'assistant' and message['content']"))
    data = written(tmp_path, *(record(pairs, image) for pairs, image in samples()))
    for (pairs, _), row in zip(samples(), load(data, tokenizer, "own"), strict=True):
        messages = []
        for question, answer in pairs:
            if "<image>" in question:
                question = "<image>\n" + question.replace("<image>", "").strip()
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        truth = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert row["input_ids"] == truth["input_ids"]
        assert row["trained"] == [bool(mark) for mark in truth["assistant_masks"]]


def test_bos_once_and_no_eos_that_the_template_did_not_write(tmp_path: Path) -> None:
    data = written(tmp_path, record([("What?", "A cat.")], "a.jpg"))
    plain = load(data, llama_like(ends=True), "plain")[0]["input_ids"]
    assert plain == load(data, llama_like(), "plain")[0]["input_ids"]
    assert plain[0] == 1
    assert not {1, 2} & set(plain[1:])
    writes_bos = llama_like(chat_template="{{ bos_token }}" + CHATML)
    ids = load(data, writes_bos, "own")[0]["input_ids"]
    assert ids.count(1) == 1
    assert ids == load(data, llama_like(chat_template=CHATML), "own")[0]["input_ids"]


def test_rows_say_what_they_hold(tmp_path: Path) -> None:
    rows = [
        record([("<image>", "A cat.")], "x/../cats/1.jpg", id=7),
        record([("<image> and <image>", "Two.")], ["./2.jpg", "3.jpg"], id="two"),
        record([("Hello", "Hi.")], model="gpt-4"),
        record([("Hello", "Hi.")], []),
    ]
    for name in ("data.json", "data.jsonl"):
        dataset = load(written(tmp_path, *rows, name=name), llama_like(), "vicuna_v1")
        assert dataset["id"][:] == ["7", "two", "3", "4"]
        assert dataset["images"][:] == [["x/../cats/1.jpg"], ["./2.jpg", "3.jpg"], [], []]
        for row in dataset:
            assert row["length"] == len(row["input_ids"]) + 4 * len(row["images"])
        assert summary(dataset) == Summary(rows=4, text_only=2, truncated=0, images=3)
    (tmp_path / "2.jpg").touch()
    assert sorted(missing_images(dataset, tmp_path)) == ["3.jpg", "x/../cats/1.jpg"]


@pytest.mark.slow
def test_truncation_never_cuts_an_image(tmp_path: Path) -> None:
    """Whatever the length, the longest beginning that fits, or an error where no answer begins in it."""
    tokenizer = byte_level()
    draw = random.Random(0)
    pairs = [("Look: " + "<image> or " * draw.randint(2, 3), "What a cat! " * draw.randint(1, 3)) for _ in range(4)]
    names = [f"{number}.jpg" for number in range(sum(question.count("<image>") for question, _ in pairs))]
    data = written(tmp_path, record(pairs, names))
    image = tokenizer.get_added_vocab()["<image>"]
    whole = load(data, tokenizer, "own", image_tokens=17, max_length=10_000)[0]
    assert not whole["truncated"]
    costs = [17 if token == image else 1 for token in whole["input_ids"]]
    least = sum(costs[: whole["trained"].index(True) + 1])
    for limit in [*draw.sample(range(1, whole["length"]), 40), least - 1, least, whole["length"] - 1, whole["length"]]:
        if limit < least:
            with pytest.raises(UserError, match=f"within max_length {limit}; found {least - 1} tokens before it"):
                load(data, tokenizer, "own", image_tokens=17, max_length=limit)
            continue
        row = load(data, tokenizer, "own", image_tokens=17, max_length=limit)[0]
        kept = len(row["input_ids"])
        assert row["input_ids"] == whole["input_ids"][:kept]
        assert row["trained"] == whole["trained"][:kept]
        assert row["images"] == names[: row["input_ids"].count(image)]
        assert row["length"] == sum(costs[:kept]) <= limit
        assert row["truncated"] == (kept < len(costs)) == (limit < whole["length"])
        assert not row["truncated"] or sum(costs[: kept + 1]) > limit


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (record([("<image>", "b")], 7), "line 2, .*expected 'image' to be a path; found 7"),
        ({"image": "a.jpg", "id": "\ud800"}, r"line 2, id '.*ud800': expected 'conversations' to be a list"),
        (record([("half \ud800", "b")]), "line 2, .*half of a UTF-16 pair"),
        ({"other": 1}, "line 2, id '2': expected a LLaVA record"),
    ],
)
def test_one_bad_row_stops_with_its_name(tmp_path: Path, row: Row, expected: str) -> None:
    data = written(tmp_path, record([("What?", "A cat.")]), row, name="data.jsonl")
    with refused(start=str(data), match=expected):
        load(data, byte_level(), "own")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"id": ' + b"1" * 5000 + b"}", "found a number of more than 4300 digits; mend the line"),
        (b'{"image": "\xe9.jpg"}', "a line in UTF-8; found the byte 0xe9 at place 12; convert the file"),
    ],
)
def test_a_line_that_python_does_not_hold_costs_its_row(tmp_path: Path, line: bytes, expected: str) -> None:
    data = written(tmp_path, *[record([("What?", "A cat.")])] * 2, name="data.jsonl")
    data.write_bytes(data.read_bytes().replace(b"\n", b"\n" + line + b"\n"))
    read = read_conversations(data, byte_level(), template="own", image_tokens=5)
    assert (read.rows["number"][:], [(row.number, row.id) for row in read.bad]) == ([1, 3], [(2, "2")])
    with refused(expected, start="expected one JSON object a line"):
        [images_of(row) for _, row in records(data)]


def test_an_array_named_as_lines_is_read_when_its_name_is_mended(tmp_path: Path) -> None:
    rows = written(tmp_path, record([("What?", "A cat.")]), name="data.json")
    with pytest.raises(UserError, match=r"line 1, .*found list; if the file is one array, end its name with \.json"):
        load(rows.rename(tmp_path / "data.jsonl"), llama_like(), "vicuna_v1")
    assert len(load((tmp_path / "data.jsonl").rename(rows), llama_like(), "vicuna_v1")) == 1


def test_a_token_is_trained_if_any_of_its_characters_is(tmp_path: Path) -> None:
    marked = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT: ' }}{% else %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = llama_like(chat_template=marked)
    data = written(tmp_path, record([("a", "cat on")]))
    ((ids, mask),) = rows_of(load(data, tokenizer, "own"))
    trained = [token for token, mark in zip(ids, mask, strict=True) if mark]
    assert tokenizer.convert_ids_to_tokens(trained) == ["▁cat", "▁on", "</s>"]


def test_images_and_what_the_tokenizer_puts_in_front_are_never_trained() -> None:
    tokenizer = llama_like()
    everything = RenderedText("<image>cat", [(0, 10)])
    (row,) = ConversationTokenizer(tokenizer, 5, 100)([Conversation(1, "1", ["a.jpg"], everything)])
    assert row["input_ids"][:2].tolist() == [1, tokenizer.get_added_vocab()["<image>"]]
    assert row["trained"].tolist() == [False, False] + [True] * (len(row["input_ids"]) - 2)


def test_a_template_that_trains_nothing_or_loses_an_image(tmp_path: Path) -> None:
    data = written(tmp_path, record([("<image>", "A cat.")], "a.jpg"))
    nothing = CHATML_MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    nothing += "{% generation %}{% endgeneration %}"
    with pytest.raises(UserError, match="found none that is not empty"):
        load(data, byte_level(nothing), "own")
    loses = CHATML.replace("message['content']", "message['content'].replace('<image>', '')")
    with pytest.raises(UserError, match=r"expected 1 image tokens .* found 0"):
        load(data, byte_level(loses), "own")


@pytest.mark.parametrize(("template", "answer"), [("vicuna_v1", ""), ("own", ""), ("own", " \n")])
def test_a_sample_whose_answers_are_all_empty_is_refused(tmp_path: Path, template: str, answer: str) -> None:
    """Otherwise the token that ends a turn would be all that is trained."""
    data = written(tmp_path, record([("What?", answer)]))
    with pytest.raises(UserError, match="found none that is not empty"):
        load(data, byte_level(), template)


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    data = written(tmp_path, record([("a", "b")]))
    tokenizer = byte_level()
    with pytest.raises(UserError, match="expected the added token '<image>'"):
        load(data, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())), "own")
    with pytest.raises(UserError, match="1 or more; found 0"):
        load(data, tokenizer, "own", image_tokens=0)
    with pytest.raises(UserError, match="found none there"):
        load(tmp_path / "absent.json", tokenizer, "own")
    with pytest.raises(UserError, match="expected conversations; found none"):
        load(written(tmp_path), tokenizer, "own")


@pytest.mark.real
def test_smollm2s_own_tokenizer_and_template(smollm2: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(smollm2)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    data = written(tmp_path, *(record(pairs, image) for pairs, image in samples()))
    for (pairs, image), row in zip(samples(), load(data, tokenizer, "own"), strict=True):
        text = tokenizer.decode(row["input_ids"])
        assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        assert text.count("<image>") == (image is not None)
        answers = "".join(answer + "<|im_end|>" for _, answer in pairs if answer)
        trained = [token for token, mark in zip(row["input_ids"], row["trained"], strict=True) if mark]
        assert tokenizer.decode(trained) == answers
    data = written(tmp_path, *(record(pairs, image) for pairs, image in samples(empty=False)))
    expected = [piecewise(tokenizer, v1_pieces(pairs, "<|im_end|>")) for pairs, _ in samples(empty=False)]
    assert rows_of(load(data, tokenizer, "vicuna_v1")) == expected
