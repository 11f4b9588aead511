"""BASIC's premise on plain text: LLMs whose layers keep, turn or lose the embeddings, as planted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.refused import ran, refuses
from tests.support.tiny_models import VOCABULARY, tiny_llm, tiny_tokenizer
from tests.support.tiny_runs import World, tiny_recipe
from trainer.evaluation.llm_probe import KINDS, LlmProbeResult, LlmProbeSettings, probe_llm
from trainer.evaluation.premise import (
    Control,
    Lenses,
    Nearness,
    TextNearness,
    control,
    is_near,
    look_at_text,
    nearness,
    premise,
    text_rows,
    verdict,
)
from trainer.losses.lens import LensKind
from trainer.model import terms, text_lens
from trainer.model.load import load_model, open_model_folder
from trainer.model.plain_text import plain_text
from trainer.model.reader import Reader
from trainer.model.terms import lens_of, reader_of
from trainer.model.text_lens import text_lenses
from trainer.recipes.recipe import Basic
from trainer.teacher.run import TeachSettings, teach_images
from trainer.training.run import train

WIDTH = 64


class Layer(nn.Module):
    """Turns states, with some noise; the first one takes them to the nearest embedding before."""

    def __init__(self, turn: torch.Tensor, table: torch.Tensor | None, noise: float) -> None:
        super().__init__()
        self.turn = nn.Parameter(turn)
        self.table, self.noise = table, noise
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        if self.table is not None:
            hidden = self.table[(F.normalize(hidden, dim=-1) @ F.normalize(self.table, dim=-1).T).argmax(-1)]
        return (hidden @ self.turn + self.noise * torch.randn(hidden.shape, generator=self.generator),)


class Planted(nn.Module):
    """A decoder of two such layers."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed.weight.data = torch.randn(VOCABULARY, WIDTH, generator=generator)
        turns = [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0] for _ in range(2)]
        turns = turns if turned else [torch.eye(WIDTH)] * 2
        tables = (self.embed.weight.data, None)
        self.layers = nn.ModuleList(Layer(turn, table, 0.2) for turn, table in zip(turns, tables, strict=True))
        self.config = SimpleNamespace(hidden_size=WIDTH, to_dict=lambda: {"turned": turned})

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, use_cache: bool = False) -> torch.Tensor:
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            (hidden,) = layer(hidden)
        return hidden


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., tuple[Reader, Lenses, TextNearness]]:
    def make(*, turned: bool) -> tuple[Reader, Lenses, TextNearness]:
        tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
        llm = Planted(turned=turned)
        reader = Reader(llm, llm.embed, tokenizer, len(tokenizer))
        lenses: Lenses = {"none": None, **text_lenses(reader, KINDS, 2)}
        return reader, lenses, look_at_text(reader, text_rows(reader), Basic(layers=2), lenses)

    return make


def test_turned_states_are_found_through_the_lens_alone(planted: Callable[..., Any]) -> None:
    reader, lenses, found = planted(turned=True)
    assert found.layers[0] == Nearness(1.0, pytest.approx(1.0), 1.0)
    for raw in (*found.layers[1:], found.refined["none"], found.refined["centred"], found.refined["shuffled"]):
        assert raw.own < 0.2
        assert not is_near(raw)
    assert abs(found.refined["none"].cosine) < 0.1
    assert found.refined["ridge"].own > 0.95
    assert found.refined["ridge"].cosine > 0.9
    compared = control(reader, Basic(layers=2), lenses)
    assert compared["ridge"].words < 0.2 < 1 < compared["ridge"].random
    for kind in ("none", "centred", "shuffled"):
        assert compared[kind].words > 1.5
    said = verdict(found.refined["none"], compared["none"], reader.vocabulary)
    assert said.startswith("BASIC's premise does not hold on this LLM: V^ of text is not near its own embedding (")
    assert said.endswith("the loss cannot lead to words.")
    said = verdict(found.refined["ridge"], compared["ridge"], reader.vocabulary, "ridge")
    assert said.startswith("BASIC's premise holds on this LLM through the lens `ridge`: V^ of text is near its own")
    assert said.endswith("the loss can lead to words.")


@pytest.mark.parametrize("cosine", [0.9, 0.1])
@pytest.mark.parametrize("words", [0.2, 1.46])
def test_a_verdict_does_not_contradict_itself(cosine: float, words: float) -> None:
    """The premise holds if both of its conditions do; else the one that does not is named."""
    said = verdict(Nearness(0.9, cosine, 1), Control(words, 1.5), 100)
    near, lower = cosine > 0.25, words < 1.35
    assert said.startswith(f"BASIC's premise {'holds' if near and lower else 'does not hold'} on this LLM: V^ of text")
    assert said.endswith(f"the loss {'can' if near and lower else 'cannot'} lead to words.")
    assert ("is not near its own embedding" in said) is not near
    assert ("L_das of words is not clearly below" in said) is not lower
    assert (", but L_das" in said) is (near != lower)


def test_states_that_stay_are_near_without_a_lens(planted: Callable[..., Any]) -> None:
    reader, lenses, found = planted(turned=False)
    assert is_near(found.refined["none"])
    compared = control(reader, Basic(layers=2), lenses)
    assert verdict(found.refined["none"], compared["none"], reader.vocabulary).endswith("can lead to words.")
    assert not is_near(found.refined["shuffled"])


def test_nearness_beside_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(23, 5, generator=generator)
    table[9] = table[4]  # of equal rows none is nearer than the other
    tokens = torch.tensor([4, 9, 0, 22, 7, 7, 3])
    vectors = table[tokens] + 0.8 * torch.randn(7, 5, generator=generator)
    cosines = [[float(torch.cosine_similarity(one.double(), row.double(), dim=0)) for row in table] for one in vectors]
    own = [row[token] for row, token in zip(cosines, tokens.tolist(), strict=True)]
    ranks = [1 + sum(value > mine + 1e-6 for value in row) for row, mine in zip(cosines, own, strict=True)]
    found = nearness(vectors, tokens, table, block=3)
    assert found.own == pytest.approx(sum(rank == 1 for rank in ranks) / 7)
    assert found.cosine == pytest.approx(sum(own) / 7)
    assert found.rank == sorted(ranks)[3]
    assert len(set(ranks)) > 1


def test_layers_are_those_of_the_model_and_v_is_their_sum(tiny: World, deep: Path) -> None:
    folder = open_model_folder(deep)
    model = load_model(folder, tiny_recipe(tiny, model=str(deep)))
    reader = reader_of(model, folder)
    rows = reader.rows(plain_text(30), 200)
    assert rows.shape == (1, 128 + len(reader.front))
    found = look_at_text(reader, rows, Basic(layers=3), {"none": None})
    table, start = reader.embeddings, max(len(reader.front), 1)
    with torch.no_grad():
        listed = model.model.language_model.eval()(input_ids=rows, output_hidden_states=True).hidden_states
    states = [one[0, start:] for one in listed]
    for layer in range(4):  # the last one that is listed has gone through the norm
        assert found.layers[layer] == pytest.approx(nearness(states[layer], rows[0, start:], table))
    refined = (states[1] + 4 * states[2] + 9 * states[3]) / 14
    assert found.refined["none"] == pytest.approx(nearness(refined, rows[0, start:], table), abs=1e-6)
    assert len(found.layers) == 5


def test_plain_text_is_the_same_each_time_and_two_parts_share_no_rare_word() -> None:
    program = "from trainer.model.plain_text import plain_text; print(plain_text(3, skip=5))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == plain_text(3, skip=5) + "\n"
    assert plain_text(8).endswith(plain_text(3, skip=5))
    assert plain_text(200).isascii()
    assert "{" not in plain_text(2_000)


DAS: dict[str, Any] = {"sea": {"weight": 0}, "das": {"weight": 1}}


@pytest.mark.slow
def test_a_run_says_it_and_goes_on_with_its_own_lens_alone(
    tiny: World, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run(out: str, lens: LensKind = "none") -> Any:
        loss = DAS | ({"basic": {"lens": lens}} if lens != "none" else {})
        recipe = tiny_recipe(tiny, model=str(deep), loss=loss, training_arguments={"max_steps": 2})
        return train(recipe, tmp_path / out, reporter=Heard(said))

    run("plain")
    (line,) = (one for one in said if one.startswith("BASIC: "))
    assert "V^ of plain text is not near its own embeddings (cosine " in line
    assert line.endswith(f"see sea-pipeline probe --llm {deep}")
    fields = json.loads((tmp_path / "plain" / "run.json").read_text())["fields"]
    assert "lens" not in fields["recipe"]["loss"]["basic"]  # as before there was such a key
    said.clear()
    run("lens", "ridge")
    (line,) = (one for one in said if one.startswith("BASIC: "))
    assert "V^ of plain text through the lens `ridge`" in line
    fields = json.loads((tmp_path / "lens" / "run.json").read_text())["fields"]["recipe"]["loss"]["basic"]["lens"]
    assert fields["kind"] == "ridge"
    assert len(fields["text"]) == 64
    (tmp_path / "lens" / "summary.json").unlink()
    for other in ("none", "centred"):
        with pytest.raises(UserError, match=r"holds another run: loss\.basic\.lens"):
            run("lens", other)  # type: ignore[arg-type]
    monkeypatch.setattr(text_lens, "_pairs", lambda *_: pytest.fail("it is kept"))
    run("lens", "ridge")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_lens_is_of_the_llm_and_not_of_its_projector(tiny: World, deep: Path, tmp_path: Path) -> None:
    folder = open_model_folder(deep)
    recipe = tiny_recipe(tiny, model=str(deep), loss=DAS | {"basic": {"lens": "ridge"}})
    model = load_model(folder, recipe)
    first = lens_of(model, folder, recipe)
    nn.init.normal_(model.model.multi_modal_projector.linear_1.weight)
    assert lens_of(model, folder, recipe) is not None
    assert len(list((tmp_path / "cache" / "lenses").glob("*.npz"))) == 1
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
    second = lens_of(model, folder, recipe)
    assert len(list((tmp_path / "cache" / "lenses").glob("*.npz"))) == 2
    assert first is not None
    assert second is not None
    assert not torch.equal(first.maps[0].mean, second.maps[0].mean)


def test_what_is_found_once_is_kept(tiny: World, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_model_folder(deep)
    reader = reader_of(load_model(folder, tiny_recipe(tiny, model=str(deep))), folder)
    found = premise(reader, Basic(), None, "m")
    monkeypatch.setattr("trainer.evaluation.premise.look_at_text", lambda *_, **__: pytest.fail("it is kept"))
    assert premise(reader, Basic(), None, "m") == found
    (kept,) = (tmp_path / "cache" / "premises").glob("*.json")
    whole = kept.read_text()
    for damaged in ("[1, ", "[1, 2, 3]", whole.replace('"cosine": "', '"cosine": "1')):
        kept.write_text(damaged)
        with pytest.raises(pytest.fail.Exception, match="it is kept"):
            premise(reader, Basic(), None, "m")
    with pytest.raises(pytest.fail.Exception, match="it is kept"):
        premise(reader, Basic(layer_weights="dec"), None, "m")


def test_a_teacher_has_no_lens(deep: Path, tiny: World, tmp_path: Path) -> None:
    settings = TeachSettings.of(model=deep, data=str(tiny.data), out=tmp_path / "targets", basic=Basic(lens="ridge"))
    with pytest.raises(UserError, match=r"basic\.lens: .* expected none for a teacher's targets"):
        teach_images(settings)


@pytest.mark.slow
def test_an_llm_is_probed_on_a_text(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", num_hidden_layers=4, initializer_range=0.3)
    (tmp_path / "text.txt").write_text("The picture shows a red square and a green square on a white ground. " * 9)
    found = probe_llm(LlmProbeSettings.of(llm=str(llm), text=tmp_path / "text.txt", device="cpu"))
    assert isinstance(found, LlmProbeResult)
    told = found.to_json()
    json.dumps(told)
    assert [layer["layer"] for layer in told["layers"]] == [0, 1, 2, 3, 4]
    assert told["layers"][0]["own"] == 1
    assert set(told["refined"]) == set(KINDS)
    assert (told["k"], len(told["verdicts"])) == (2, 2)
    assert told["vocabulary"] < VOCABULARY


def test_an_llm_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"expected an LLM with a list of decoder layers named `layers`; GPT2Model has"):
        probe_llm(LlmProbeSettings.of(llm=str(tmp_path)))


def test_what_the_user_can_mend(deep: Path, tmp_path: Path) -> None:
    for name, data in (("short", b"Hi."), ("empty", b""), ("latin", b"caf\xe9 " * 20)):
        (tmp_path / name).write_bytes(data)
    for given, said in (
        ({"text": tmp_path / "short"}, "--text .*: expected 16 tokens or more; found"),
        ({"text": tmp_path / "empty"}, "--text .*: expected 16 tokens or more; found 0; give a longer text"),
        ({"text": tmp_path / "latin"}, "--text .*: expected UTF-8; byte 3"),
        ({"text": tmp_path / "none"}, "--text .*: expected a text file; No such file"),
        ({"layers": 9}, "layers: 9, but the LLM has 4 layers"),
    ):
        with pytest.raises(UserError, match=said):
            probe_llm(LlmProbeSettings.of(llm=str(deep), **given))


@pytest.mark.slow
def test_the_terms_of_a_recipe_have_the_lens_that_it_asks_for(tiny: World, deep: Path) -> None:
    folder = open_model_folder(deep)
    model = load_model(folder, tiny_recipe(tiny, model=str(deep), loss=DAS))
    for kind in ("none", *KINDS):
        recipe = tiny_recipe(tiny, model=str(deep), loss=DAS | {"basic": {"lens": kind}})
        lens = terms.lens_of(model, folder, recipe)
        term = terms.basic_term(model, folder, recipe, ["das"], lens)
        assert term.supervision is not None
        assert (term.supervision.lens is None) == (kind == "none")


@pytest.mark.slow
def test_the_command_prints_a_table_a_verdict_and_json(command: Any, deep: Path) -> None:
    stdout = ran(command, "probe", "--llm", deep, "--device", "cpu")
    verdict_of_it = "BASIC's premise does not hold on"
    for expected in ("own token nearest", "V^, lens ridge", "lens shuffled (control)", verdict_of_it):
        assert expected in stdout
    code, stdout, stderr = command("probe", "--llm", deep, "--device", "cpu", "--json")
    assert (code, stderr) == (0, "")  # no bar: the lenses are kept
    assert json.loads(stdout)["refined"]["none"]["near"] is False


def test_a_mistake_is_one_line(command: Any) -> None:
    for arguments, said in (
        ([], "probe: expected --data CAPTIONS.json, or --llm FOLDER; see --help"),
        (["--llm", "x", "--data", "y.json"], "--data: leave it out with --llm, which reads text"),
        (["--llm", "x", "--top-n", "3", "--seed", "1"], "--top-n, --seed: leave it out with --llm"),
        (["--data", "y.json", "--layer-weights", "dec"], "--layer-weights: is for --llm alone; leave it out"),
        (["--data", "y.json", "--text", "z"], "--text: is for --llm alone; leave it out"),
        (["--llm", "no where"], "no where: no such folder; expected `packaged`, a model folder, or a name on"),
    ):
        refuses(command, said, "probe", *arguments)


def test_adapters_that_have_not_trained_change_no_lens(tiny: World, deep: Path) -> None:
    folder = open_model_folder(deep)
    adapted = tiny_recipe(tiny, model=str(deep), lora={"rank": 2, "alpha": 4}, learning_rates={"llm": 1e-4})
    recipes = (adapted, tiny_recipe(tiny, model=str(deep)))
    with_adapters, without = (reader_of(load_model(folder, recipe), folder) for recipe in recipes)
    assert any(".lora_" in name for name, _ in with_adapters.llm.named_parameters())
    assert with_adapters.digest() == without.digest()
