"""BASIC's analyses on the tiny world: nearest tokens layer by layer, and texts from replaced visual tokens."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import decoders
from torch import nn
from transformers import LlavaForConditionalGeneration

from sea_pipeline.errors import UserError
from sea_pipeline.store import open_labels
from tests.tiny_runs import World
from tests.tiny_tokenizers import byte_level, llama_like
from trainer.data import TrainingData
from trainer.evaluate import Evaluator, Shown
from trainer.layers import look_at_layers, nearest_by_layer, token_texts
from trainer.load import ModelFolder, load_model, open_model_folder
from trainer.model import AlignedLlava
from trainer.recipe import Data, Recipe
from trainer.replace import (
    answer_text,
    content_words,
    generate,
    nearest_in_place,
    prompted,
    replace_and_describe,
    shares,
)
from trainer.sources import labels_for, open_conversations

M = 16


class Ready(NamedTuple):
    """A model and what evaluates it."""

    folder: ModelFolder
    model: AlignedLlava
    evaluator: Evaluator
    embeddings: torch.Tensor

    def id(self, token: str) -> int:
        return int(self.folder.processor.tokenizer.convert_tokens_to_ids(token))


Make = Callable[..., Ready]


@pytest.fixture
def ready(tiny: World) -> Make:
    """Records, or the world's own, to a model with an evaluator."""

    def make(records: Path = tiny.data, *, labelled: bool = False, batch_size: int = 8) -> Ready:
        folder = open_model_folder(tiny.model)
        data = Data(train=str(records), image_root=tiny.data.parent / "images")
        conversations = open_conversations(data, folder)
        store = open_labels(tiny.labels) if labelled else None
        evaluator = Evaluator(
            TrainingData(conversations.train, conversations.locate, folder.processor, folder.grid),
            labels_for(store, folder, Recipe().loss.sea, transfer=False) if store else None,
            store,
            vocabulary=folder.vocabulary,
            batch_size=batch_size,
        )
        model = load_model(folder, Recipe(model=tiny.model)).train()
        spread(model, evaluator.data)
        return Ready(folder, model, evaluator, evaluator.embeddings(model))

    return make


@torch.no_grad()
def spread(model: AlignedLlava, data: TrainingData) -> None:
    """Makes visual tokens differ, and layers turn them: random weights of 0.02 do neither."""
    pixels = next(pixels for pixels in (data[row]["images"] for row in range(len(data))) if pixels is not None)
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    features = model.eval().tower_output(pixels).flatten(0, 1)
    first.weight.mul_(300)
    first.bias.copy_(-first.weight @ features.mean(0))
    second.bias.zero_()
    second.weight.div_(model.model.multi_modal_projector(features).norm(dim=-1).mean())
    model.train()
    for parameter in model.model.language_model.layers.parameters():
        if parameter.ndim == 2:
            parameter.mul_(20)
    norm = model.model.language_model.norm.weight  # of ones it would keep every direction, and hide from a cosine
    norm.copy_(torch.randn(norm.shape, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A text, an image, two images under a long system turn, an image again."""
    return write(
        tmp_path / "mixed.json",
        [
            record("text", [], "Which colour?", "red or blue"),
            record("one", ["00.png"], "What do you see?", "a red patch"),
            record("two", ["01.png", "03.png"], "What is the difference?", "green and blue", system="white " * 20),
            record("again", ["04.png"], "What?", "The left half is magenta, the right half is grey."),
        ],
    )


def record(name: str, images: list[str], question: str, answer: str, system: str = "") -> dict[str, Any]:
    turns = [{"from": "system", "value": system}] if system else []
    turns += [{"from": "human", "value": "<image>\n" * len(images) + question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": images, "conversations": turns} if images else {"id": name, "conversations": turns}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records))
    return path


class Planted(nn.Module):
    """A projector that always gives the same tokens, (m, d)."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.tokens.expand(len(features), -1, -1)


def nearest_twin(vectors: torch.Tensor, embeddings: torch.Tensor) -> list[int]:
    found = []
    for vector in vectors.double():
        cosines = [float(vector @ row / (vector.norm() * row.norm())) for row in embeddings.double()]
        found.append(cosines.index(max(cosines)))
    return found


# layers


def layers_twin(ready: Ready, row: int) -> list[list[list[int]]]:
    """layers -> images -> m tokens of one sample, in float64, on its own and without padding."""
    model = ready.model.eval().double()
    sample = ready.evaluator.data[row]
    assert sample["images"] is not None
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: states.append(out if torch.is_tensor(out) else out[0]))
        for layer in model.model.language_model.layers
    ]
    with torch.no_grad():
        visual = model.model.multi_modal_projector(model.tower_output(sample["images"].double()))
        LlavaForConditionalGeneration.forward(
            model, input_ids=sample["input_ids"][None], pixel_values=sample["images"].double()
        )
    for hook in hooks:
        hook.remove()
    model.float()
    image_token = ready.folder.processor.image_token_id
    places = [place for place, token in enumerate(sample["input_ids"].tolist()) if token == image_token]
    flat = [visual.flatten(0, 1), *(state[0, places] for state in states)]
    found = [nearest_twin(vectors, ready.embeddings) for vectors in flat]
    return [[layer[start : start + M] for start in range(0, len(layer), M)] for layer in found]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_nearest_tokens_are_those_of_a_slow_twin(ready: Make, mixed: Path, batch_size: int) -> None:
    """Beside texts, in batches with padding behind, with several images in a sample."""
    made = ready(mixed, batch_size=batch_size)
    told: list[int] = []
    found = look_at_layers(made.evaluator, made.model, advance=told.append)
    assert found.images == [Shown(1, "00.png"), Shown(2, "01.png"), Shown(2, "03.png"), Shown(3, "04.png")]
    assert (found.tokens.dtype, tuple(found.tokens.shape)) == (torch.int32, (3, 4, M))
    assert sum(told) == 4
    twins = [layers_twin(made, row) for row in (1, 2, 3)]
    for layer in range(3):
        assert found.tokens[layer].tolist() == [image for twin in twins for image in twin[layer]]
    kinds = [len(layer.unique()) for layer in found.tokens]
    assert min(kinds) >= 5, "eight colours should read as several tokens"
    assert min(kinds[1:]) > 20, "layers should tell patches of one colour apart"


def test_the_last_layer_is_looked_at_before_the_final_norm(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    (batch,) = made.evaluator.batches(torch.device("cpu"))
    found = nearest_by_layer(made.model.eval(), batch, made.embeddings)
    with torch.no_grad():
        made.model.model.language_model.norm.weight.neg_()
    assert nearest_by_layer(made.model, batch, made.embeddings).equal(found)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(ready: Make, mixed: Path, training: bool) -> None:
    made = ready(mixed)
    made.model.train(training)
    hooks = [dict(module._forward_hooks) for module in made.model.modules()]
    look_at_layers(made.evaluator, made.model, 1)
    replace_and_describe(made.evaluator, made.model, 1, 2)
    assert {module.training for module in made.model.modules()} == {training}
    assert [dict(module._forward_hooks) for module in made.model.modules()] == hooks


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_a_limit_counts_images_also_within_a_sample(ready: Make, mixed: Path, limit: int) -> None:
    made = ready(mixed, batch_size=2)
    every, some = look_at_layers(made.evaluator, made.model), look_at_layers(made.evaluator, made.model, limit)
    assert some.images == every.images[:limit]
    assert some.tokens.equal(every.tokens[:, :limit])


def test_a_planted_token_is_named(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    tokens = torch.tensor([made.id("Ġred")] * 8 + [made.id("Ġ")] * 4 + [made.id("</s>")] * 3 + [made.id("!")])
    assert made.id("!") == 1 + made.id("<|im_end|>"), "the first that is not special"
    made.model.model.multi_modal_projector = Planted(2.5 * made.embeddings[tokens])
    found = look_at_layers(made.evaluator, made.model)
    assert found.tokens[0].tolist() == [tokens.tolist()] * 4
    assert found.by_layer(2)[0] == [" red"] * 8 + [" "] * 4 + ["</s>"] * 3 + ["!"]
    assert found.summary[0] == {
        "layer": 0,
        "special": 3 / 16,
        "distinct_tokens": 4,
        "frequent": [
            {"token": " red", "share": 1 / 2},
            {"token": " ", "share": 1 / 4},
            {"token": "</s>", "share": 3 / 16},
            {"token": "!", "share": 1 / 16},
        ],
    }


def test_layer_0_agrees_with_the_metrics(ready: Make) -> None:
    made = ready(labelled=True)
    metrics, found = made.evaluator(made.model), look_at_layers(made.evaluator, made.model)
    assert len(found.images) == 11, "twelve samples, one of them a text"
    for name in ("meaningful", "meaningful_chance", "distinct_tokens"):
        assert found.summary[0][name] == metrics[name]  # type: ignore[literal-required]


def test_meaningful_finds_planted_labels_at_layer_0_only(ready: Make, tiny: World) -> None:
    made = ready(labelled=True)
    words = made.evaluator.words([Shown(0, "00.png")])[0, :, 0].tolist()
    names = open_labels(tiny.labels).words
    made.model.model.multi_modal_projector = Planted(made.embeddings[[made.id(f"Ġ{names[word]}") for word in words]])
    first = look_at_layers(made.evaluator, made.model, 1).summary
    assert first[0]["meaningful"] == 1.0
    assert "meaningful_chance" not in first[0], "there is no other image"
    some = look_at_layers(made.evaluator, made.model, 5).summary
    assert [one["layer"] for one in some] == [0, 1, 2]
    assert 0 < some[0]["meaningful_chance"] < 1


def test_numbers_that_are_none_are_told(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    with torch.no_grad():
        made.model.model.language_model.layers[0].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(UserError, match=r"^layer 1: expected numbers as visual tokens; found some that are not finite"):
        look_at_layers(made.evaluator, made.model)


def test_an_llm_without_layers_of_that_name(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    made.model.model.language_model.layers = nn.ModuleList()
    with pytest.raises(UserError, match="expected an LLM with a list of decoder layers"):
        look_at_layers(made.evaluator, made.model)


def test_tokens_read_as_in_running_text() -> None:
    pieces = llama_like()
    pieces.backend_tokenizer.decoder = decoders.Sequence(  # Llama 2's
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for tokenizer, before, newline in ((byte_level(), "Ġ", "Ċ"), (pieces, "▁", "<0x0A>")):
        names = [f"{before}cat", f"{before}photo", "at", before, newline, "</s>" if before == "▁" else "<|im_end|>"]
        ids = tokenizer.convert_tokens_to_ids(names)
        assert tokenizer.unk_token_id not in ids
        expected = [" cat", " photo", "at", " ", "\n", names[-1]]
        assert token_texts(tokenizer, ids) == dict(zip(ids, expected, strict=True))
    assert token_texts(byte_level(), byte_level().convert_tokens_to_ids(["â"])).popitem()[1] == "\ufffd"


# replace


def describe(made: Ready, new_tokens: int = 12, images: int = 2) -> list[list[int]]:
    pictures = [made.evaluator.data.image(f"{number:02d}.png", "")[0] for number in range(images)]
    written = generate(made.model.eval(), prompted(made.folder.processor, pictures), new_tokens)
    return written.tolist()  # type: ignore[no-any-return]


def greedy_twin(made: Ready, visual: torch.Tensor, new_tokens: int) -> list[int]:
    """Argmax after argmax without a cache, from embeddings put together by hand; visual (m, d)."""
    model, processor = made.model.eval(), made.folder.processor
    picture = made.evaluator.data.image("00.png", "")[0]
    ids = prompted(processor, [picture])["input_ids"][0].tolist()
    rows, place = [], 0
    for token in ids:
        is_image = token == processor.image_token_id
        rows.append(visual[place] if is_image else model.get_input_embeddings().weight[token])
        place += is_image
    assert place == len(visual)
    found: list[int] = []
    for _ in range(new_tokens):
        hidden = model.model.language_model(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0, -1]
        found.append(int((model.lm_head.weight.double() @ hidden.double()).argmax()))
        rows.append(model.get_input_embeddings().weight[found[-1]])
    return found


@torch.no_grad()
def test_texts_are_those_of_a_slow_twin(ready: Make) -> None:
    made = ready()
    pixels = made.evaluator.data[0]["images"]
    assert pixels is not None
    visual = made.model.eval().model.multi_modal_projector(made.model.tower_output(pixels))[0]
    replaced = made.embeddings[nearest_twin(visual, made.embeddings)]
    twins = [greedy_twin(made, given, 12) for given in (visual, replaced)]
    assert twins[0] != twins[1], "replacing changes nothing here"
    ends = made.model.generation_config.eos_token_id
    assert not {*twins[0], *twins[1]} & {*ends}, "a text ends early"
    assert describe(made)[0] == twins[0]
    with nearest_in_place(made.model, made.embeddings):
        assert describe(made)[0] == twins[1]
    assert describe(made)[0] == twins[0], "the projector stays replaced"


def test_tokens_that_are_embeddings_are_replaced_by_themselves(ready: Make) -> None:
    made = ready()
    exact = made.embeddings[7 * torch.arange(M)]
    texts = []
    for factor, noise in ((1.0, 0.0), (3.0, 0.002)):
        given = factor * exact + noise * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
        made.model.model.multi_modal_projector = Planted(given)
        texts.append(describe(made))
        with nearest_in_place(made.model, made.embeddings):
            texts.append(describe(made))
            assert made.model.model.multi_modal_projector(torch.zeros(2, M, 16)).equal(exact.expand(2, -1, -1))
    assert texts[0] == texts[1] == texts[3]
    assert texts[2] != texts[0], "three times as long, they should read otherwise"


def test_texts_and_their_control(ready: Make, mixed: Path) -> None:
    made = ready(mixed, batch_size=3)
    found = replace_and_describe(made.evaluator, made.model, 8, 6)
    assert [image.image_id for image in found.images] == ["00.png", "01.png", "03.png", "04.png"]
    assert [told["control_of"] for told in found.described] == ["01.png", "04.png", "04.png", "00.png"]
    texts = {image.image_id: told for image, told in zip(found.images, found.described, strict=True)}
    assert all(told["control"] == texts[told["control_of"]]["replaced"] for told in found.described)
    assert (found.summary["images"], found.summary["scored"]) == (4, 4)
    one = replace_and_describe(made.evaluator, made.model, 1, 6)
    assert one.described == [{"visual": texts["00.png"]["visual"], "replaced": texts["00.png"]["replaced"]}]
    assert {"visual", "replaced"} == {"visual", "visual_control", "replaced", "replaced_control"} & set(one.summary)


def test_no_image_is_its_own_control(ready: Make, tmp_path: Path) -> None:
    images = {"one": "00.png", "the same": "00.png", "other": "01.png"}
    records = [record(name, [image], "What?", "red") for name, image in images.items()]
    made = ready(write(tmp_path / "twice.json", records))
    found = replace_and_describe(made.evaluator, made.model, 3, 2)
    assert [told["control_of"] for told in found.described] == ["01.png", "01.png", "00.png"]


def test_new_tokens_are_at_most_so_many(ready: Make) -> None:
    made = ready()
    assert [len(text) for text in describe(made, new_tokens=5)] == [5, 5]
    ends = made.model.generation_config.eos_token_id
    with torch.no_grad():  # the head now says the end of the text, whatever it is given
        made.model.lm_head.weight = nn.Parameter(torch.zeros_like(made.model.lm_head.weight))
    made.model.generation_config.eos_token_id = [*ends, 0]
    assert [len(text) for text in describe(made, new_tokens=5)] == [1, 1]


def test_shares_by_hand() -> None:
    texts = ["A red CAT.", "two dogs", "a cat", "nothing"]
    answers = [{"cat", "mat"}, {"dog"}, set(), {"cat"}]
    others = [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1]]
    found = shares("visual", texts, answers, others)
    assert found == {"visual": 1 / 3, "visual_control": 2 / 8}
    assert shares("visual", texts[:1], answers[:1], [[]]) == {"visual": 1.0}
    assert shares("visual", texts[2:3], answers[2:3], [[]]) == {}


def test_content_words() -> None:
    assert content_words("Please describe the image: Two CATS, in détail 3x, on a tree-top.") == {
        "cats",
        "détail",
        "tree",
        "top",
    }


def test_answers_of_several_turns(ready: Make, tiny: World) -> None:
    made = ready()
    turns = json.loads(tiny.data.read_text())[1]["conversations"]
    assert answer_text(made.evaluator, 1).split() == f"{turns[1]['value']} {turns[3]['value']}".split()
    encoded = made.folder.processor.tokenizer(["red", "\n", "blue"], add_special_tokens=False)["input_ids"]
    row = {"input_ids": list(chain(*encoded)), "trained": [part is not encoded[1] for part in encoded for _ in part]}
    made.evaluator.data.rows = [row]
    assert answer_text(made.evaluator, 0) == "red blue", "also where no space stands before an answer"


# the command


@pytest.fixture
def evaluate(command: Any, tiny: World) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object, model: Path = tiny.model, data: Path = tiny.data) -> tuple[int, str, str]:
        images = tiny.data.parent / "images"
        code, stdout, stderr = command("evaluate", model, "--data", data, "--image-root", images, *arguments)
        return code, stdout, stderr.replace("\n", " ")

    return run


def test_the_command_writes_what_it_finds(evaluate: Any, tiny: World, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "found.json"
    analyses = ["--layers", "--replace", "--new-tokens", 4, "--labels", tiny.labels]
    code, plain, stderr = evaluate("--json", "--labels", tiny.labels, data=mixed)
    assert code == 0, stderr
    code, stdout, stderr = evaluate("--json", *analyses, "--out", out, data=mixed)
    assert code == 0, stderr
    found, written = json.loads(stdout), json.loads(out.read_text("utf-8"))
    assert list(out.parent.iterdir()) == [out]
    layers, replace = found.pop("layers"), found.pop("replace")
    assert found == json.loads(plain)
    texts = replace.pop("texts")
    assert {**written, "images": None} == {
        "model": str(tiny.model),
        "data": str(mixed),
        "layers": layers,
        "replace": replace,
        "images": None,
    }
    assert [one["layer"] for one in layers] == [0, 1, 2]
    assert {"meaningful", "meaningful_chance", "special", "distinct_tokens", "frequent"} < set(layers[0])
    assert [(one["sample"], one["image"]) for one in written["images"]] == [
        ("one", "00.png"),
        ("two", "01.png"),
        ("two", "03.png"),
        ("again", "04.png"),
    ]
    for image, text in zip(written["images"], texts, strict=True):
        assert image["grid"] == [4, 4]
        assert [len(layer) for layer in image["tokens"]] == [M, M, M]
        assert all(isinstance(token, str) for layer in image["tokens"] for token in layer)
        assert {"image": image["image"], "sample": image["sample"], **image["generated"]} == text
        assert set(image["generated"]) == {"visual", "replaced", "control", "control_of"}


def test_images_of_both_analyses_are_the_first_ones(evaluate: Any, tiny: World, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    for arguments, tokens, generated in (
        (["--layers", "--replace"], 11, 8),
        (["--layers"], 11, 0),
        (["--replace"], 0, 8),
        (["--layers", "--replace", "--limit-images", 2], 2, 2),
        (["--replace", "--limit-images", 10], 0, 10),
    ):
        code, _, stderr = evaluate(*arguments, "--new-tokens", 1, "--out", out)
        assert code == 0, stderr
        images = json.loads(out.read_text())["images"]
        assert len(images) == max(tokens, generated)
        assert ["tokens" in image for image in images] == [place < tokens for place in range(len(images))]
        assert ["generated" in image for image in images] == [place < generated for place in range(len(images))]


def test_the_command_hands_on_how_long_a_text_may_be(evaluate: Any) -> None:
    lengths = []
    for tokens in (1, 6):
        code, stdout, stderr = evaluate("--replace", "--json", "--limit-images", 1, "--new-tokens", tokens)
        assert code == 0, stderr
        lengths.append(len(json.loads(stdout)["replace"]["texts"][0]["replaced"]))
    assert lengths[0] < lengths[1]


def test_the_command_shows_tables(evaluate: Any, mixed: Path) -> None:
    code, stdout, stderr = evaluate("--layers", "--replace", "--new-tokens", 3, "--limit-images", 3, data=mixed)
    assert code == 0, stderr
    lines = stdout.splitlines()
    heading = next(line.split() for line in lines if "most frequent" in line)
    assert heading == ["layer", "special", "distinct", "most", "frequent"], "no labels, no meaningful"
    assert [line.split()[0] for line in lines if line.rstrip().endswith("%")] == ["0", "1", "2"]
    assert "own image" in stdout
    assert "00.png; control: the replaced tokens of 01.png" in lines
    _, plain, _ = evaluate(data=mixed)
    assert stdout.startswith(plain)
    assert "layer" not in plain


def test_what_does_not_fit_is_one_line(evaluate: Any, tiny: World, tmp_path: Path) -> None:
    text = write(tmp_path / "text.json", [record("text", [], "Which colour?", "red")])
    early = {"model": tmp_path / "nowhere"}  # what is wrong with --out is told before anything else is looked at
    for arguments, named, said in (
        (["--out", tmp_path / "x.json"], early, "holds what --layers and --replace find; give one of them"),
        (["--layers", "--out", tmp_path], early, "expected a file to write; found a folder"),
        (["--layers", "--out", tiny.data / "x.json"], early, "cannot be written"),
        (["--layers", "--limit-images", 0], {}, "--limit-images"),
        (["--replace", "--new-tokens", 0], {}, "--new-tokens"),
        (["--layers"], {"data": text}, "found none in 1 samples"),
        (["--replace"], {"data": text}, "found none in 1 samples"),
    ):
        code, stdout, stderr = evaluate(*arguments, **named)
        assert (code, stdout) == (1, "")
        assert said in stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{{ messages[0]['content'][-1]['text'] }}",
            "cannot write a question about an image (The total number of <image>",
        ),
        ("{{ raise_exception('only a system') }}", "cannot write a question about an image (only a system)"),
    ],
)
def test_a_chat_template_that_cannot_ask(ready: Make, template: str, said: str) -> None:
    made = ready()
    made.folder.processor.chat_template = template
    picture = made.evaluator.data.image("00.png", "")[0]
    with pytest.raises(UserError) as error:
        prompted(made.folder.processor, [picture])
    assert said in str(error.value)
