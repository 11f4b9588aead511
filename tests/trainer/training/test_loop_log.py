"""What a run says while it trains, and settings that must not change what it does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerState, TrainingArguments

from sea_pipeline.labels.store import open_labels
from tests.support.heard import Heard
from tests.support.paths import ROOT
from tests.support.pretend_gpu import pretend_gpu
from tests.support.refused import refused
from tests.support.tiny_runs import ROWS, FinishedRuns, SquareEncoder, World, logged, tiny_recipe, tiny_trainer
from trainer.data.dataset import TrainingData
from trainer.losses import equations
from trainer.model.aligned_llava import AlignedLlava
from trainer.training.align_trainer import AlignTrainer
from trainer.training.arguments import DEFAULTS
from trainer.training.callbacks import MetricsLog, Screen
from trainer.training.run import train
from trainer.training.run_summary import start_and_end


def run(tiny: World, out: Path, steps: int = 2, **changes: Any) -> tuple[AlignTrainer, list[dict[str, Any]]]:
    arguments = {"max_steps": steps, "save_strategy": "no"} | changes.pop("training_arguments", {})
    trainer = tiny_trainer(tiny_recipe(tiny, training_arguments=arguments, **changes), out)
    trainer.train()
    return trainer, logged(out)


def close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> None:
    """All losses and gradient norms of all steps."""
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("loss", "loss_lm", "loss_sea", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=tolerance), name
        assert mine["sea_pairs"] == other["sea_pairs"]


@pytest.mark.parametrize(("warmup", "ends"), [(500, True), (100, False), (0.9, False), (0, False)])
def test_a_run_that_ends_in_its_warm_up_is_told(warmup: float, ends: bool, tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup, use_cpu=True)
    heard = Heard()
    Screen(heard).on_train_begin(args, TrainerState(max_steps=100), None)
    said = "the run has 100 steps and its warm-up 500, so no step has more than 0.2 of the learning rate"
    assert heard.warnings == ([f"training_arguments.warmup_steps: {said}"] if ends else [])


@pytest.mark.slow
def test_every_step_has_a_line(tiny: World, tmp_path: Path) -> None:
    trainer, lines = run(tiny, tmp_path, 8, loss={"lm": 0.5, "sea": {"weight": 3.0}})
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert line.keys() >= {"loss", "loss_lm", "loss_sea", "sea_pairs", "sea_scale", "learning_rate", "seconds"}
        assert line["sea_weight"] == 3.0
        assert line["epoch"] == pytest.approx(line["step"] / 3, abs=1e-3)
    assert sorted(line["seconds"] for line in lines) == [line["seconds"] for line in lines]
    measured = [line["step"] for line in lines if "grad_norm_sea" in line]
    assert measured == [1], "by default one step in ten is measured"
    scale = lines[-1]["sea_scale"]
    assert scale == pytest.approx(float(trainer.model.sea_term.log_scale.detach().exp()))
    assert scale != lines[0]["sea_scale"] == 1.0, "the first step of a warm-up is one of rate 0"
    rates = [line["learning_rate"] for line in lines]
    assert rates[-1] < rates[4] < rates[1] <= 1e-3, "a cosine"


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "together"), [("batch", 1), ("token", 2)])
def test_the_logged_terms_add_up_to_the_loss(norm: str, together: int, tiny: World, tmp_path: Path) -> None:
    """One photo or text in a micro-batch, so that some have no pairs, and another number of tokens."""
    weight = "auto" if together == 1 else 2.0
    loss = {"lm": 0.5, "norm": norm, "sea": {"weight": weight}, "das": {"weight": 3.0}, "measure_every": 1}
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": together}
    trainer, lines = run(tiny, tmp_path, 6, loss=loss, training_arguments=arguments)
    assert len(lines) == 6 / together
    for line in lines:
        terms = [line[f"{name}_weight"] * line[f"loss_{name}"] for name in ("sea", "das")]
        assert line["loss"] == pytest.approx(0.5 * line["loss_lm"] + sum(terms), rel=1e-5)
    assert [line["sea_weight"] == 1 for line in lines] == [weight == "auto", *[False] * (len(lines) - 1)]
    assert trainer.balances["sea"].weight != 1


@pytest.mark.slow
def test_a_temperature_beyond_the_clamp_comes_back(tiny: World, tmp_path: Path) -> None:
    loss, rates = {"lm": 0, "sea": {"weight": 1, "logit_scale_init": 5.5}}, {"projector": 1e-6, "logit_scale": 0.3}
    trainer, lines = run(tiny, tmp_path, 8, loss=loss, learning_rates=rates)
    assert lines[0]["sea_scale"] == pytest.approx(100, rel=1e-5)  # the exponential of a rounded logarithm
    assert lines[-1]["sea_scale"] < 60
    assert float(trainer.model.sea_term.log_scale.detach()) < 4.1


def test_no_line_is_lost_where_the_trainer_counts_tokens(tiny: World, tmp_path: Path) -> None:
    _, lines = run(tiny, tmp_path, 2, training_arguments={"include_num_input_tokens_seen": "all"})
    assert [line["step"] for line in lines] == [1, 2]


def test_a_damaged_log_is_not_cut(tmp_path: Path) -> None:
    """Nor is a later evaluation the start's, if its line was removed."""
    path, end = tmp_path / "metrics.jsonl", '{"step": 2, "seconds": 2, "eval_gap": 1.0}\n'
    path.write_text(f'{{"step": 0, "seconds"\n{end}')
    log = MetricsLog(path, lambda *_: None)
    with refused(": line 1: damaged"):
        log.cut(1)
    assert path.read_text().endswith(end)
    path.write_text(end)
    heard = Heard()
    assert start_and_end(log.lines(), 2, tmp_path, heard) == ({}, {"gap": 1.0})
    assert heard.warnings == [f"{path}: has no metrics at the start; summary.json leaves them out"]


@pytest.mark.slow
def test_a_line_of_several_steps_says_their_means(tiny: World, tmp_path: Path) -> None:
    loss = {"sea": {"weight": "auto"}, "measure_every": 2}
    _, each = run(tiny, tmp_path / "each", 6, loss=loss)
    _, seldom = run(tiny, tmp_path / "seldom", 6, loss=loss, training_arguments={"logging_steps": 3})
    assert [line["step"] for line in seldom] == [3, 6]
    for place, line in enumerate(seldom):
        for name in ("loss", "loss_lm", "loss_sea", "sea_pairs"):
            values = [one[name] for one in each[3 * place : 3 * place + 3]]
            assert line[name] == pytest.approx(sum(values) / 3, rel=1e-5), name
    assert seldom[-1]["sea_weight"] == each[-1]["sea_weight"], "how often a run logs does not change it"


@pytest.mark.slow
def test_the_gradient_norms_are_the_terms_own(tiny: World, tmp_path: Path) -> None:
    """Unweighted and by the projector's weights, of the whole step, whatever surrounds it."""
    arguments = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    for norm in ("batch", "token"):
        loss = {"lm": 0.3, "norm": norm, "sea": {"weight": 5.0}}
        trainer, (line,) = run(tiny, tmp_path / norm, 1, loss=loss, training_arguments=arguments)
        fresh = tiny_trainer(trainer.recipe, tmp_path / "fresh")
        order = list(fresh._get_train_sampler())
        batches = [fresh.data_collator([fresh.data[index] for index in order[at : at + 3]]) for at in (0, 3)]
        given = [fresh.model(**batch) for batch in batches]
        tokens = [len(batch["targets"]) for batch in batches]
        shares = [2 * one for one in tokens] if norm == "batch" else [sum(tokens)] * 2
        weights = list(fresh.model.model.multi_modal_projector.parameters())
        total = sum(one["lm"] / share for one, share in zip(given, shares, strict=True))
        lm = torch.autograd.grad(total, weights, retain_graph=True)
        sea = torch.autograd.grad((given[0]["sea"] + given[1]["sea"]) / 2, weights)
        norms = [float(torch.cat([one.flatten() for one in each]).norm()) for each in (lm, sea)]
        assert line["grad_norm_lm"] == pytest.approx(norms[0], rel=1e-4)
        assert line["grad_norm_sea"] == pytest.approx(norms[1], rel=1e-4)
        assert line["grad_ratio_sea"] == pytest.approx(5 * norms[1] / norms[0], rel=1e-4)


@pytest.mark.slow
def test_the_gradient_norms_are_the_terms_own_whatever_scales_the_loss(tiny: World, tmp_path: Path) -> None:
    """fp16 multiplies the loss by 65,536 at first, so that small gradients do not vanish."""
    loss = {"sea": {"weight": "auto"}, "measure_every": 1}
    _, plain = run(tiny, tmp_path / "plain", 3, loss=loss)
    arguments = {"max_steps": 3, "save_strategy": "no", "max_grad_norm": 0}
    trainer = tiny_trainer(tiny_recipe(tiny, training_arguments=arguments, loss=loss), tmp_path / "scaled")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer.train()
    scaled = logged(tmp_path / "scaled")
    for name in ("grad_norm_lm", "grad_norm_sea", "grad_ratio_sea"):
        assert scaled[0][name] == pytest.approx(plain[0][name], rel=1e-5), name


@pytest.mark.slow
def test_auto_holds_the_ratio(tiny: World, tmp_path: Path) -> None:
    loss = {"sea": {"weight": "auto", "ratio": 0.4}, "measure_every": 1}
    _, lines = run(tiny, tmp_path, 12, loss=loss, learning_rates={"projector": 1e-4})
    ratios = [line["grad_ratio_sea"] for line in lines]
    assert ratios[0] == pytest.approx(0.4, rel=1e-6)
    assert sum(ratios) / 12 == pytest.approx(0.4, rel=0.25)
    assert len({line["sea_weight"] for line in lines}) == 12
    assert lines[-1]["sea_weight"] != pytest.approx(1.0, rel=0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("terms", [("sea",), ("sea", "das", "sds")])
def test_compiled_code_is_measured_alike(
    terms: tuple[str, ...], tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that are compiled are small here. With BASIC the LLM is not."""

    def tower(model: AlignedLlava, pixels: torch.Tensor) -> torch.Tensor:
        width = model.projector.linear_1.in_features
        return pixels.flatten(1)[:, : 16 * width].reshape(-1, 16, width)

    def language_loss(model: AlignedLlava, ids: Any, batch: Any, encoded: Any, nothing: Any = None) -> torch.Tensor:
        return torch.stack(list(encoded.pooler_output)).square().sum()

    monkeypatch.setattr(AlignedLlava, "tower_output", tower)
    if len(terms) == 1:
        monkeypatch.setattr(AlignedLlava, "_language_loss", language_loss)
    torch._dynamo.reset()
    loss: dict[str, Any] = {"measure_every": 1} | {name: {"weight": "auto"} for name in terms}
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    lines = []
    for name, arguments in (("plain", {}), ("compiled", compiled)):
        lines.append(run(tiny, tmp_path / name, 3, loss=loss, training_arguments=arguments)[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for plain, ours in zip(*lines, strict=True):
        assert {name: ours[name] for name in ours.keys() - {"seconds"}} == pytest.approx(
            {name: plain[name] for name in plain.keys() - {"seconds"}}, rel=1e-4
        )
        assert ours.keys() >= {f"grad_ratio_{name}" for name in terms}


@pytest.mark.slow
def test_activation_checkpointing_changes_nothing(tiny: World, tmp_path: Path) -> None:
    for name, rates in (("stage 1", {}), ("stage 2", {"llm": 1e-3, "vision": 1e-3})):
        loss = {"sea": {"weight": "auto"}, "measure_every": 1}
        _, plain = run(tiny, tmp_path / name / "plain", 3, loss=loss, learning_rates=rates)
        arguments = {"activation_checkpointing": True}
        _, ours = run(tiny, tmp_path / name / "ours", 3, loss=loss, learning_rates=rates, training_arguments=arguments)
        close(ours, plain, 1e-5)
        assert [one["grad_ratio_sea"] for one in ours] == pytest.approx(
            [one["grad_ratio_sea"] for one in plain], rel=1e-4
        )


@pytest.mark.processes
def test_processes_that_load_change_nothing(tiny: World, tmp_path: Path) -> None:
    changes = {"data": {"random_crop": 0.5}, "labels": {"transfer": True}}
    _, plain = run(tiny, tmp_path / "plain", 4, **changes)
    _, ours = run(tiny, tmp_path / "ours", 4, training_arguments={"dataloader_num_workers": 2}, **changes)
    close(ours, plain, 0)


@pytest.mark.slow
def test_features_are_computed_on_the_gpu(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "use_cpu", False)
    given: list[tuple[str, int]] = []
    output = AlignedLlava.tower_output

    def spy(model: AlignedLlava, pixels: torch.Tensor) -> torch.Tensor:
        given.append((pixels.device.type, len(pixels)))
        return output(model, pixels)

    monkeypatch.setattr(AlignedLlava, "tower_output", spy)
    with pretend_gpu():
        trainer = tiny_trainer(tiny_recipe(tiny, data={"keep_features": True}), tmp_path / "run")
    assert given == [("cuda", 11)]
    assert trainer.data.kept is not None
    assert {kept.values.device.type for kept in trainer.data.kept.values()} == {"cpu"}


@pytest.mark.slow
def test_features_that_all_processes_keep_must_fit(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps all of them, and a container may use less than the machine has."""
    recipe = tiny_recipe(tiny, data={"keep_features": True})
    data = tiny_trainer(recipe, tmp_path / "run").data
    assert data.kept is not None
    size = sum(4 * kept.values.numel() for kept in data.kept.values())
    monkeypatch.setattr("trainer.data.kept_features.usable_memory", lambda: 4 * size)
    for processes in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        tiny_trainer(recipe, tmp_path / "fits")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with refused("in each of 3 processes", start="data.keep_features: 11 images need "):
        tiny_trainer(recipe, tmp_path / "too many")


@pytest.mark.slow
def test_under_bfloat16_l_a_stays_float32(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = equations.sea

    def spy(visual: torch.Tensor, words: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        value = real(visual, words, log_scale)
        assert torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(value, real(visual, words, log_scale))
        seen.append((visual.dtype, words.dtype, log_scale.dtype))
        return value

    _, plain = run(tiny, tmp_path / "plain", 3, learning_rates={"llm": 1e-3})
    monkeypatch.setattr(equations, "sea", spy)
    loss = {"sea": {"weight": 1.0}, "measure_every": 1}
    trainer, ours = run(
        tiny, tmp_path / "ours", 3, loss=loss, learning_rates={"llm": 1e-3}, training_arguments={"bf16": True}
    )
    assert set(seen) == {(torch.float32, torch.float32, torch.float32)}
    assert len(seen) == 3
    assert ours[0]["loss_lm"] != plain[0]["loss_lm"], "it is on"
    close(ours, plain, 0.05)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_frozen_parts_in_half_precision(tiny: World, tmp_path: Path) -> None:
    _, plain = run(tiny, tmp_path / "plain", 3)
    arguments = {"bf16": True}
    trainer, ours = run(tiny, tmp_path / "ours", 3, frozen_dtype="bfloat16", training_arguments=arguments)
    close(ours, plain, 0.05)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in trainer.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.slow
def test_each_epoch_draws_anew(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = TrainingData.__getitem__
    monkeypatch.setattr(TrainingData, "__getitem__", lambda data, index: (asked.append(index), real(data, index))[1])
    trainer, _ = run(tiny, tmp_path, 6)
    first, second = asked[:ROWS], asked[ROWS:]
    assert sorted(first) == list(range(ROWS))
    assert sorted(second) == list(range(ROWS, 2 * ROWS))
    assert [index - ROWS for index in second] != first, "another order"
    drawn = [[(*trainer.data[row + epoch]["patches"], *trainer.data[row + epoch]["words"]) for row in range(ROWS)]
             for epoch in (0, ROWS, 0)]  # fmt: skip
    assert drawn[0] == drawn[2]
    assert sum(one != other for one, other in zip(drawn[0], drawn[1], strict=True)) >= ROWS - 2


def test_without_l_a_there_is_no_term_and_no_label_is_read(tiny: World, tmp_path: Path) -> None:
    trainer, lines = run(tiny, tmp_path, loss={"sea": {"weight": 0}})
    assert trainer.model.sea_term is None
    assert not trainer.balances
    assert trainer.data.labels is None
    assert not {name for line in lines for name in line if "sea" in name}
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_lm"], rel=1e-5)


@pytest.mark.slow
def test_without_l_lm_the_llm_s_layers_are_not_there(tiny: World, tmp_path: Path) -> None:
    trainer, lines = run(tiny, tmp_path, 3, loss={"lm": 0}, learning_rates={"projector": 1e-2})
    assert len(trainer.model.model.language_model.layers) == 0
    full = tiny_trainer(tiny_recipe(tiny), tmp_path / "full")
    batch = full.data_collator([full.data[index] for index in list(full._get_train_sampler())[:4]])
    assert lines[0]["loss_sea"] == pytest.approx(float(full.model(**batch)["sea"].detach()), rel=1e-5)
    assert lines[0]["sea_pairs"] == len(batch["sea_words"]) > 4
    assert all("loss_lm" not in line and line["loss_sea"] == pytest.approx(line["loss"]) for line in lines)


def test_tensorboard(tiny: World, tmp_path: Path) -> None:
    where = {"report_to": "tensorboard", "save_strategy": "no", "max_steps": 2}
    train(tiny_recipe(tiny, training_arguments=where), tmp_path / "out")
    events = list((tmp_path / "out").rglob("events.out.tfevents.*"))
    assert events
    assert b"loss_sea" in b"".join(path.read_bytes() for path in events)
    assert not list(Path(ROOT).glob("**/events.out.tfevents.*"))


def test_what_is_logged_is_json(tiny: World, finished: FinishedRuns) -> None:
    recipe = tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)}, training_arguments={"max_steps": 2})
    text = (finished(recipe) / "metrics.jsonl").read_text()
    assert '"eval_tacs"' in text
    for line in text.splitlines():
        values = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        assert values["step"] <= 2
        assert values["seconds"] >= 0


@pytest.mark.slow
def test_an_evaluation_in_bfloat16_keeps_words_in_float32(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.Linear(3, 3)
    embed = SquareEncoder.words

    def words(encoder: SquareEncoder, words: Any, advance: Any) -> torch.Tensor:
        with torch.no_grad():
            return F.normalize(layer(embed(encoder, words, advance)).float(), dim=-1)

    monkeypatch.setattr(SquareEncoder, "words", words)
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "cache"))
    data = {"evaluate": str(tiny.held_out)}
    trainer = tiny_trainer(tiny_recipe(tiny, data=data, training_arguments={"bf16": True}), tmp_path / "run")
    heard = Heard()
    trainer._evaluator.reporter = heard  # type: ignore[union-attr]
    trainer.evaluate()
    assert f"embedding 8 words once; kept in {tmp_path / 'cache' / 'words'}" in heard.lines
    listed = open_labels(tiny.labels).words
    kept = [np.load(path)["embeddings"] for path in (tmp_path / "cache" / "words").glob("*.npz")]
    plain = words(SquareEncoder(), listed, lambda _: None).numpy()
    assert any(one.shape == plain.shape and (one == plain).all() for one in kept)
