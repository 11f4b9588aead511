"""transformers' Trainer and TRL's SFTTrainer with an attached model: what enters their loss, and what does not."""

import copy
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import DefaultDataCollator, Trainer, TrainerCallback

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.trainer.attach.families import MAKERS
from tests.trainer.attach.trained import Collate, OwnTrainer, attached_to, logged, own_trainer, rows, sft_trainer
from tests.trainer.attach.worlds import Pictures
from trainer.attach import AttachMixin

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # peft's and TRL's use of transformers
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
BASIC: dict[str, Any] = {"das": {}, "sds": {"weight": 0.1}}


def trainers(kind: str) -> Any:
    if kind == "trl":
        pytest.importorskip("trl")
        return sft_trainer
    return own_trainer


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("trl", "qwen2_5_vl"), ("transformers", "smolvlm"), ("trl", "llava")])
def test_the_terms_are_added_and_fall(kind: str, name: str, pictures: Pictures, tmp_path: Path) -> None:
    made, one = attached_to(name, pictures, sea={"weight": 3.0}, basic={})
    ours = trainers(kind)(made, pictures, tmp_path / "a", one, max_steps=12, eval_dataset=rows(pictures, 4))
    ours.train()
    theirs = trainers(kind)(MAKERS[name](), pictures, tmp_path / "b", None, max_steps=12)
    theirs.train()
    added = 3 * logged(ours, "loss_sea")[0] + logged(ours, "loss_das")[0] + 0.01 * logged(ours, "loss_sds")[0]
    assert logged(ours, "loss")[0] == pytest.approx(logged(theirs, "loss")[0] + added, rel=1e-4)
    fallen = [sum(logged(ours, each)[-3:]) / sum(logged(ours, each)[:3]) for each in ("loss_sea", "loss_das")]
    assert min(fallen) < 0.97
    assert logged(ours, "sea_scale")[-1] != 1
    assert min(logged(ours, "sea_pairs")) > 0
    measured = ours.evaluate()
    assert {"eval_loss", "eval_label_hit@1", "eval_gap"} <= measured.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_accumulation_gives_the_same_step(kind: str, pictures: Pictures, tmp_path: Path) -> None:
    """Of BASIC, which is a mean over samples; SEA's negatives are those of a micro-batch.

    TRL's own steps differ by 2e-4 without any of it: it gives micro-batches that are padded otherwise other losses.
    """
    after = []
    for batch, steps in ((4, 1), (2, 2), (1, 4)):
        made, one = attached_to("qwen2_5_vl", pictures, **BASIC)
        changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "optim": "sgd"}
        trainer = trainers(kind)(made, pictures, tmp_path / str(steps), one, max_steps=2, **changes)
        trainer.train()
        state = {name: each.clone() for name, each in made.model.state_dict().items()}
        after.append((logged(trainer, "loss"), logged(trainer, "loss_das"), state))
    (losses, das, whole), *others = after
    for found, terms, state in others:
        assert terms[0] == pytest.approx(das[0], rel=1e-5)
        assert found == pytest.approx(losses, rel=1e-6 if kind == "transformers" else 1e-3)
        for name, each in state.items():
            assert torch.allclose(each, whole[name], atol=1e-6 if kind == "transformers" else 5e-4), name


@pytest.mark.slow
def test_a_second_forward_of_a_step_does_not_count(pictures: Pictures, tmp_path: Path) -> None:
    """TRL runs one more for its own metrics if the loss is a function of the user's."""
    pytest.importorskip("trl")
    seen = []
    for function in (None, lambda outputs, labels, num_items_in_batch: outputs.logits.float().square().mean()):
        made, one = attached_to("llava", pictures, sea={}, basic={})
        trainer = sft_trainer(made, pictures, tmp_path, one, max_steps=1, compute_loss_func=function)
        trainer.train()
        seen.append([logged(trainer, name) for name in ("loss_sea", "loss_das", "loss_sds")])
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_adapters_of_trl_are_trained_with_the_terms(pictures: Pictures, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from peft import LoraConfig

    made, one = attached_to("llava", pictures, sea={"weight": 3.0}, basic={})
    layers, whole = r".*language_model.*\.(q_proj|v_proj)", ["multi_modal_projector"]
    config = LoraConfig(r=4, target_modules=layers, modules_to_save=whole)
    trainer = sft_trainer(made, pictures, tmp_path, one, peft_config=config, max_steps=3)
    trainer.train()
    weights = {name: each.clone() for name, each in trainer.model.named_parameters()}
    start = MAKERS["llava"]().model.model.multi_modal_projector.state_dict()
    saved = [name for name in weights if "multi_modal_projector.modules_to_save" in name]
    assert len(saved) == len(start)
    for name in saved:
        assert not torch.equal(weights[name], start[name.partition("modules_to_save.default.")[2]])
    assert len(logged(trainer, "loss_sea")) == 3


@pytest.mark.slow
def test_a_run_goes_on_with_its_temperature(pictures: Pictures, tmp_path: Path) -> None:
    found = []
    for stops in (False, True):
        out = tmp_path / str(stops)
        made, one = attached_to("smolvlm", pictures, sea={"weight": 3.0})
        changes = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        own_trainer(made, pictures, out, one, max_steps=2 if stops else 4, **changes).train()
        if stops:
            made, one = attached_to("smolvlm", pictures, sea={"weight": 3.0})
            changes["restore_callback_states_from_checkpoint"] = True
            own_trainer(made, pictures, out, one, max_steps=4, **changes).train(resume_from_checkpoint=True)
        found.append((one.scale, copy.deepcopy(made.model.state_dict())))
        assert not any("attach" in file.name or "sea" in file.name for file in out.rglob("*"))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[0][0] != 1
    for name, each in found[0][1].items():
        assert torch.allclose(each, found[1][1][name], atol=1e-6), name


@pytest.mark.slow
def test_basic_is_a_mean_over_samples_with_images(pictures: Pictures, tmp_path: Path) -> None:
    """However a step is cut: into micro-batches with unlike numbers of them, or with text alone."""
    terms = []
    for batch, steps in ((4, 1), (2, 2), (3, 2), (1, 4)):
        losses = []
        for one in (None, attached_to("qwen2_5_vl", pictures, **BASIC)):
            made, attached = one or (MAKERS["qwen2_5_vl"](), None)
            changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1}
            trainer = own_trainer(made, pictures, tmp_path, attached, **changes)
            trainer.train_dataset = [
                {"images": [pictures.image(each) for each in names], "image_ids": names}
                for names in (["wide.png"], [], ["tall.png", "odd.png"], ["odd.png"])
            ]
            trainer.train()
            losses.append(logged(trainer, "loss")[0])
        terms.append([logged(trainer, name)[0] for name in ("loss_das", "loss_sds")])
        assert losses[1] - losses[0] == pytest.approx(terms[-1][0] + 0.1 * terms[-1][1], rel=1e-5)
    for found in terms[1:]:
        assert found == pytest.approx(terms[0], rel=1e-5)


def test_rows_to_measure_need_no_names_for_basic(pictures: Pictures, tmp_path: Path) -> None:
    """Names of the last batch of training are not taken for theirs, and callbacks get what is measured."""
    heard: list[set[str]] = []
    hearing = TrainerCallback()
    hearing.on_evaluate = lambda *_, metrics, **__: heard.append(set(metrics))  # type: ignore[method-assign]
    made, one = attached_to("llava", pictures, **BASIC)
    unnamed = rows(pictures, 2).remove_columns("image_ids")
    trainer = own_trainer(made, pictures, tmp_path, one, max_steps=1, eval_dataset=unnamed, callbacks=[hearing])
    trainer.train()
    assert not [name for name in trainer.evaluate() if "label_hit" in name]
    trainer.evaluate({"a": rows(pictures, 2), "b": rows(pictures, 2)})
    assert ["eval_a_label_hit@1" in heard[1], "eval_b_label_hit@1" in heard[2]] == [True, True]
    assert logged(trainer, "eval_a_gap")
    assert trainer.predict(rows(pictures, 2)).metrics.keys() >= {"test_loss"}


def test_rows_that_can_be_read_once_are_measured_alike(pictures: Pictures, tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = iter(rows(pictures, 3))

        def __iter__(self) -> Iterator[Any]:
            return self.rows

    made, one = attached_to("llava", pictures, **BASIC)
    trainer = own_trainer(made, pictures, tmp_path, one, per_device_eval_batch_size=2)
    whole, once = trainer.evaluate(rows(pictures, 3)), trainer.evaluate(Stream())
    measured = {name for name in whole if "runtime" not in name and "second" not in name}
    assert {"eval_loss", "eval_label_hit@1", "eval_right_photo_gain"} <= measured
    assert {name: once[name] for name in measured} == {name: whole[name] for name in measured}
    one.detach()
    with pytest.warns(UserWarning, match=r"detach\(\) was called; eval_\* has the trainer's metrics alone"):
        assert "eval_gap" not in trainer.evaluate(rows(pictures, 3))


class Rough(Trainer):
    """Ends an evaluation after two batches, spoils its inputs, and may read the data once more."""

    again = False

    def evaluation_loop(self, dataloader: Any, *given: Any, **named: Any) -> Any:
        class TwoBatches:
            dataset = dataloader.dataset

            def __iter__(self) -> Iterator[Any]:
                return islice(iter(dataloader), 2)

            def __len__(self) -> int:
                return 2

        found = super().evaluation_loop(TwoBatches(), *given, **named)
        assert not self.again or len(list(dataloader)) == 3
        return found

    def prediction_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        found = super().prediction_step(model, inputs, *given, **named)
        inputs["labels"].fill_(-100)
        inputs["pixel_values"].zero_()
        return found


class RoughWithTerms(AttachMixin, Rough):
    """What a user writes."""


def test_what_a_trainer_does_with_its_batches_changes_no_metric(pictures: Pictures, tmp_path: Path) -> None:
    made, one = attached_to("llava", pictures, sea={}, **BASIC)
    trainer = own_trainer(made, pictures, tmp_path, one, per_device_eval_batch_size=2)
    plain = trainer.evaluate(rows(pictures, 4))
    trainer.__class__ = RoughWithTerms
    measured = {name for name in plain if "runtime" not in name and "second" not in name}
    assert {"eval_loss", "eval_label_hit@1", "eval_lm_loss"} <= measured
    for trainer.again in (False, True):
        rough = trainer.evaluate(rows(pictures, 5))
        assert {name: rough[name] for name in measured} == {name: plain[name] for name in measured}


def test_a_forward_without_gradients_before_the_one_that_trains(pictures: Pictures, tmp_path: Path) -> None:
    """As a loss has it that looks at the model's own answers first."""

    def looks(compute: Any) -> Any:
        def compute_loss(trainer: Any, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            with torch.no_grad():
                model(**inputs)
            return compute(trainer, model, inputs, *given, **named)

        return compute_loss

    losses = []
    for kind in (Trainer, type("Looking", (Trainer,), {"compute_loss": looks(Trainer.compute_loss)})):
        made, one = attached_to("llava", pictures, **BASIC)
        trainer = own_trainer(made, pictures, tmp_path, one, max_steps=2)
        trainer.__class__ = type("Mine", (AttachMixin, kind), {})
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_the_trainer_in_front_is_refused() -> None:
    class Helper:
        """Of the user's own."""

    with refused(match=r"write class Mine\(AttachMixin, Helper, Trainer\)"):
        type("Mine", (Helper, Trainer, AttachMixin), {})

    class Logging(Trainer):
        """One whose methods call the next one's."""

    type("Mine", (Logging, OwnTrainer), {})


def test_the_collator_stays_the_users(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer saves its tokenizer, TRL asks of which class it is and sets its options, workers get a copy."""
    made, one = attached_to("llava", pictures, sea={})
    monkeypatch.setattr(Collate, "tokenizer", made.processor.tokenizer, raising=False)
    trainer = own_trainer(made, pictures, tmp_path, one)
    trainer.save_model()
    assert (tmp_path / "tokenizer_config.json").is_file()
    trainer.data_collator = own = DefaultDataCollator()
    trainer.data_collator.return_tensors = "np"
    assert own.return_tensors == "np"
    for carrying in (trainer.data_collator, pickle.loads(pickle.dumps(trainer.data_collator))):
        assert isinstance(carrying, DefaultDataCollator)
        batch = carrying([{"a": 1.0, "image_ids": "wide.png"}])
        assert [type(batch["a"]), batch["image_ids"]] == [np.ndarray, [["wide.png"]]]


def test_a_trainers_own_loader_carries_names(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how samplers of one's own come in; a batch without names has none of another's."""
    made, one = attached_to("llava", pictures, sea={})
    trainer = own_trainer(made, pictures, tmp_path, one, max_steps=1)
    collate = trainer.data_collator
    own_loader = lambda: DataLoader(trainer.train_dataset, batch_size=2, collate_fn=collate)  # noqa: E731
    monkeypatch.setattr(trainer, "get_train_dataloader", own_loader)
    trainer.train()
    assert len(logged(trainer, "loss_sea")) == 1
    assert one.last_ids == ["wide.png", "tall.png"]
    collate = Collate(made)
    with pytest.raises(UserError, match="expected ids of all 2 images of the batch, in their order; found 0"):
        trainer.train()


def test_a_loss_scale_does_not_reach_the_temperature(pictures: Pictures, tmp_path: Path) -> None:
    """With fp16 the gradient is divided by it, and a step that the model skips is none of the temperature's."""
    found = []
    for scaled, overflows in ((False, False), (True, False), (True, True)):
        made, one = attached_to("llava", pictures, sea={"weight": 3.0})
        trainer = own_trainer(made, pictures, tmp_path, one, max_steps=3, lr_scheduler_type="constant")
        if scaled:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
        if overflows:
            next(one._parts.projector.parameters()).register_hook(lambda gradient: gradient * torch.inf)
        found.append([one.scale])
        trainer.train()
        found[-1].append(one.scale)
    (start, plain), (_, scaled_too), (_, skipped) = found
    assert plain != start
    assert scaled_too == pytest.approx(plain, rel=1e-6)
    assert skipped == start


@pytest.mark.slow
def test_offloaded_activations_are_refused_with_basic(pictures: Pictures, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    made, one = attached_to("llava", pictures, **BASIC)
    with pytest.raises(UserError, match="set activation_offloading=False"):
        sft_trainer(made, pictures, tmp_path, one, activation_offloading=True)


@pytest.mark.parametrize("kind", ["DPOTrainer", "KTOTrainer", "GRPOTrainer"])
def test_other_trainers_of_trl_are_refused(kind: str, pictures: Pictures) -> None:
    """DPO's forward holds each image twice, KTO's first one has no gradients, and GRPO's batches are lists."""
    trl = pytest.importorskip("trl")
    made, one = attached_to("llava", pictures, sea={})
    with pytest.raises(UserError, match=f"or TRL's SFTTrainer; found TRL's {kind}, which may"):
        type("Attaching", (AttachMixin, getattr(trl, kind)), {})(made.model, attached=one)


def test_rows_without_names_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    made, one = attached_to("llava", pictures, sea={})
    trainer = own_trainer(made, pictures, tmp_path, one)
    trainer.train_dataset = trainer.train_dataset.remove_columns("image_ids")
    with pytest.raises(UserError, match="expected a column image_ids in the rows of the data"):
        trainer.train()


def test_numbers_for_names_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    made, one = attached_to("llava", pictures, sea={})
    for wrong in ([1], 1):
        trainer = own_trainer(made, pictures, tmp_path, one, max_steps=1)
        trainer.train_dataset = [{"images": [pictures.image("wide.png")], "image_ids": wrong}] * 2
        with pytest.raises(UserError, match=r"image_ids: .* found 1, of the type int"):
            trainer.train()
