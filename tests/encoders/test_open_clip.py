"""Labels by open_clip models with planted answers, and where such models come from."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file

from sea_pipeline import encoders, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, Preprocess, load_encoder
from sea_pipeline.encoders.text_tower import TextTower
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels import run as label_run
from tests.support.refused import refused
from tests.support.tiny_clip import (
    CLIP,
    HALF,
    add_architecture,
    changed,
    planted_clip,
    planted_siglip,
    random_model,
    save_model,
)
from tests.support.world import COLOURS, draw

PIXELS = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    add_architecture(monkeypatch)


@pytest.fixture
def run(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: Path
) -> Callable[..., tuple[int, str, str]]:
    """`sea-pipeline label` with real encoders, of the folder `photos`."""
    monkeypatch.setattr(label_run, "load_encoder", encoders.load_encoder)

    def label(spec: str, *arguments: object) -> tuple[int, str, str]:
        fixed = ("--images", tmp_path / "photos", "--wordlist", words, "--top-n", "3", "--device", "cpu")
        return command("label", "--encoder", spec, *fixed, *arguments)

    return label


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "side", "path", "sign"),
    [
        (make, side, path, sign)
        for make, side, path, other in (
            (planted_clip, 4, "final", "+"),
            (planted_clip, 4, "value", "-"),
            (planted_clip, 4, "vv", "-"),
            (planted_siglip, 10, "pool", "-"),
            (planted_siglip, 10, "final", "+"),
        )
        for sign in ("", other)
    ],
)
def test_the_planted_word_in_its_cell(
    run: Callable[..., Any], tmp_path: Path, make: Callable[[Path], Path], side: int, path: str, sign: str
) -> None:
    """Each path names a patch's colour with its own sign, and the complement with the other."""
    names = ["red", "green", "blue", "yellow", "cyan", "magenta"]
    cells = [[names[(5 * row + column * column) % 6] for column in range(2 * side)] for row in range(side)]
    draw(tmp_path / "photos" / "wide.png", cells, (side * 32, side * 16))
    code, _, stderr = run(f"open_clip:{make(tmp_path / 'model')}#{path}{sign}", "--out", tmp_path / "labels")
    assert code == 0, stderr
    store = open_labels(tmp_path / "labels")
    labels = store["wide.png"]
    assert (labels.grid, labels.crop_box) == ((side, side), (0.25, 0.0, 0.75, 1.0))
    swapped = dict(zip(names, ["cyan", "magenta", "yellow", "blue", "red", "green"], strict=True))
    inside = [name for row in cells for name in row[side // 2 : side // 2 + side]]
    expected = [swapped[name] for name in inside] if sign else inside
    assert [store.words[ids[0]] for ids in labels.word_ids] == expected
    assert labels.scores[:, 0].min() > 0.99
    assert labels.scores[:, 1].max() < 0.98


def test_the_folder_has_a_short_name(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos" / "a.png", [["red"]])
    folder = planted_clip(tmp_path / "models" / "my clip")
    assert run(f"open_clip:{folder}#vv", "--precision", "bfloat16", "--template", "photo")[0] == 0
    (out,) = (tmp_path / "runs" / "labels").iterdir()
    assert out.name[:-8] == "photos-my_clip-vv-colours-n3-bfloat16-photo-"


def test_a_padded_photo_keeps_its_cells(run: Callable[..., Any], tmp_path: Path) -> None:
    """Twice as wide as high: the outer rows of the grid see bars only, the inner ones the photo's own two rows."""
    model = planted_clip(tmp_path / "model")
    text = (model / "open_clip_config.json").read_text()
    (model / "open_clip_config.json").write_text(text.replace('"std"', '"resize_mode": "longest", "std"'))
    cells = [["red", "green", "blue", "yellow"], ["cyan", "magenta", "red", "green"]]
    draw(tmp_path / "photos" / "wide.png", cells, (64, 32))
    assert run(f"open_clip:{model}#value", "--out", tmp_path / "labels")[0] == 0
    store = open_labels(tmp_path / "labels")
    labels = store["wide.png"]
    assert labels.crop_box == (0.0, -0.5, 1.0, 1.5)
    assert [store.words[ids[0]] for ids in labels.word_ids[4:12]] == cells[0] + cells[1]
    assert set(COLOURS) == set(store.words)


@pytest.mark.slow
def test_every_kind_of_file_gives_the_same_vectors(tmp_path: Path, listed: None) -> None:
    model = random_model(CLIP)
    state = model.state_dict()
    optimiser = torch.optim.AdamW(model.parameters()).state_dict()
    save_model(tmp_path / "folder", model, CLIP, {"mean": None, "std": None})
    torch.save(state, tmp_path / "plain.pt")
    torch.save(
        {"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": optimiser},
        tmp_path / "epoch_3.pt",
    )
    save_file(state, tmp_path / "weights.safetensors")
    expected = load_encoder(f"open_clip:{tmp_path}/folder#vv", "cpu")
    for name in ("plain.pt", "epoch_3.pt", "weights.safetensors"):
        encoder = load_encoder(f"open_clip:tiny/{tmp_path}/{name}#vv", "cpu")
        assert torch.equal(encoder.patches(PIXELS), expected.patches(PIXELS)), name
        assert torch.equal(encoder.words(["red"], print), expected.words(["red"], print)), name


def test_a_spec_loads_the_encoder_again_and_a_file_may_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: None
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", random_model(CLIP), CLIP)
    encoder = load_encoder("open_clip:model", "cpu")
    assert encoder.spec == f"open_clip:{tmp_path}/model#final"
    assert load_encoder(encoder.spec, "cpu").fields() == encoder.fields()
    assert load_encoder("open_clip:model#final-", "cpu").spec == encoder.spec
    assert load_encoder("open_clip:model#final+", "cpu").spec.endswith("#final+")
    file = load_encoder("open_clip:tiny/model/model.safetensors", "cpu")
    assert file.spec == f"open_clip:tiny/{tmp_path}/model/model.safetensors#final"
    assert load_encoder(file.spec, "cpu").fields() == file.fields()
    (tmp_path / "model").rename(tmp_path / "moved")
    assert load_encoder("open_clip:moved", "cpu").fields() == encoder.fields()


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model", random_model(CLIP), CLIP)

    def fetch(model_id: str, filename: str | None = None, **_: object) -> str:
        assert model_id == "org/name"
        return str(folder / (filename or "model.safetensors"))

    for module in (factory, pretrained):
        monkeypatch.setattr(module, "download_pretrained_from_hf", fetch)
    hub, local = load_encoder("open_clip:hf-hub:org/name#vv", "cpu"), load_encoder(f"open_clip:{folder}#vv", "cpu")
    named = load_encoder(f"open_clip:local-dir:{folder}#vv", "cpu")
    assert (named.spec, named.fields()) == (local.spec, local.fields())
    assert hub.spec == "open_clip:hf-hub:org/name#vv"
    assert hub.fields() == local.fields()
    assert torch.equal(hub.patches(PIXELS), local.patches(PIXELS))
    assert torch.equal(hub.words(["red"], print), local.words(["red"], print))


def test_fields_tell_settings_apart_and_words_are_shared(tmp_path: Path) -> None:
    """What decides patches is in `fields`, what decides words in `word_fields`, which paths and precisions share."""
    one = save_model(tmp_path / "one", random_model(CLIP), CLIP)
    quick = save_model(tmp_path / "quick", random_model(CLIP), changed(CLIP, quick_gelu=True))
    other = save_model(tmp_path / "other", random_model(CLIP, seed=1), CLIP)
    grey = save_model(tmp_path / "grey", random_model(CLIP), CLIP, HALF | {"resize_mode": "longest", "fill_color": 9})

    def parts(spec: str, **options: Any) -> tuple[str, str]:
        encoder = load_encoder(spec, "cpu", EncoderOptions(**options))
        return str({**encoder.fields(), "name": ""}), str(encoder.word_fields())

    base = parts(f"open_clip:{one}")
    for fields, words in (
        parts(f"open_clip:{one}#vv"),
        parts(f"open_clip:{one}", precision="bfloat16"),
        parts(f"open_clip:{grey}"),
        parts(f"s2:open_clip:{one}"),
    ):
        assert fields != base[0]
        assert words == base[1]
    for fields, words in (
        parts(f"open_clip:{one}", template="photo"),
        parts(f"open_clip:{quick}"),
        parts(f"open_clip:{other}"),
    ):
        assert fields != base[0]
        assert words != base[1]


@pytest.mark.slow
def test_words_are_embedded_once_for_all_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = TextTower.words
    monkeypatch.setattr(TextTower, "words", lambda self, *given: calls.append(given) or real(self, *given))
    folder, words = planted_clip(tmp_path / "model"), WordList("colours", tuple(COLOURS))
    for spec in ("#final", "#vv-", "#value"):
        word_embeddings(load_encoder(f"open_clip:{folder}{spec}", "cpu"), words)
    assert len(calls) == 1
    word_embeddings(load_encoder(f"open_clip:{folder}", "cpu", EncoderOptions(template="photo")), words)
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "grid", "width", "sign", "size", "mode"),
    [
        ("ViT-L-14-336/openai", (24, 24), 768, -1, 336, "shortest"),
        ("ViT-SO400M-14-SigLIP-384/webli", (27, 27), 1152, 1, 384, "squash"),
        ("ViT-H-14-CLIPA-336/datacomp1b", (24, 24), 1024, -1, 336, "squash"),
        ("EVA02-L-14-336/merged2b_s6b_b61k#final", (24, 24), 768, -1, 336, "shortest"),
    ],
)
def test_the_shape_is_known_without_weights(
    spec: str, grid: tuple[int, int], width: int, sign: int, size: int, mode: str
) -> None:
    encoder = load_encoder(f"open_clip:{spec}", "cpu")
    assert (encoder.grid, encoder.width, encoder.sign) == (grid, width, sign)
    assert (encoder.preprocess.size, encoder.preprocess.mode) == (size, mode)


@pytest.mark.slow
def test_a_tag_decides_quickgelu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """OpenAI's weights under the plain architecture: with QuickGELU, as they were trained."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", CLIP)
    weights = tmp_path / "openai.pt"
    torch.save(random_model(CLIP).state_dict(), weights)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: print("1 %", file=sys.stderr) or str(weights))
    listed = load_encoder("open_clip:ViT-B-32/openai", "cpu")
    assert capsys.readouterr().err == "", "a bar is for those who hear the log"
    quick = changed(CLIP, quick_gelu=True)
    pixels = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    folders = [
        save_model(tmp_path / str(n), random_model(config), config, pixels) for n, config in enumerate([quick, CLIP])
    ]
    same, plain = (load_encoder(f"open_clip:{folder}", "cpu").patches(PIXELS) for folder in folders)
    assert torch.equal(listed.patches(PIXELS), same)
    assert not torch.allclose(same, plain, atol=1e-3)
    assert listed.fields()["quick_gelu"] is True


def test_pixels_of_a_file_are_those_that_all_tags_share(
    listed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"a": {"resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda arch: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda arch, tag: tags.get(tag, {}))
    torch.save({}, tmp_path / "w.pt")
    shared = load_encoder(f"open_clip:tiny/{tmp_path}/w.pt", "cpu")
    assert (shared.preprocess.mode, shared.fields()["preprocess"]["mean"]) == ("squash", [0.5, 0.5, 0.5])
    tags["b"] = {"resize_mode": "longest"}
    mixed = load_encoder(f"open_clip:tiny/{tmp_path}/w.pt", "cpu")
    assert (mixed.preprocess.mode, mixed.fields()["preprocess"]["mean"][0]) == ("shortest", 0.48145466)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ViT-L-14-33/openai", "an architecture of open_clip, a folder or hf-hub:ORG/NAME; found 'ViT-L-14-33'; near"),
        ("ViT-L-14-33/openai", "ViT-L-14-336"),
        ("/nowhere/model", "an architecture of open_clip, a folder or hf-hub:ORG/NAME; found '/nowhere/model'"),
        ("local-dir:/nowhere/model", "a folder or hf-hub:ORG/NAME; found 'local-dir:/nowhere/model'"),
        ("~nobody/model", "an architecture of open_clip, a folder or hf-hub:ORG/NAME; found '~nobody'"),
        ("ViT-L-14-336", "ViT-L-14-336/ and then a tag of open_clip or a file of weights; found nothing; near it: op"),
        ("ViT-L-14/opena", "found opena; near it: openai"),
        ("ViT-B-32/openai#vv2", "expected one of #final, #value, #vv, #pool after the model, then + or the hyphen -"),
        ("ViT-B-32/openai#vv\u2212", "or the hyphen - or neither; found #vv\u2212"),
        ("ViT-B-32/openai#Final+", "or the hyphen - or neither; found #Final+"),
        ("ViT-B-32/openai#pool", "expected one of its paths, final, value, vv; found pool"),
        ("ViT-B-16-SigLIP/webli#vv", "expected one of its paths, pool, final; found vv"),
        ("RN50/openai", "a ViT of open_clip's own, or timm's VisionTransformer or Eva; found ModifiedResNet"),
        ("convnext_base/laion400m_s13b_b51k", "found timm's ConvNeXt"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "found CoCa, whose vectors of patches are its pooler's"),
        ("ViTamin-XL-384/datacomp1b", "expected image_size 384 in its config, which its trunk takes; found 256"),
        ("vit_relpos_medium_patch16_cls_224/none", "expected vit_relpos_medium_patch16_cls_224/ and then a tag"),
    ],
)  # fmt: skip
def test_models_that_cannot_label_are_refused(spec: str, told: str) -> None:
    with refused(told, start=f"--encoder open_clip:{spec}: "):
        load_encoder(f"open_clip:{spec}", "cpu")


@pytest.mark.parametrize(
    ("vision", "told"),
    [
        ({"attentional_pool": True}, "found attentional pooling, as CoCa has it"),
        ({"image_size": [32, 48]}, "expected a model for square images; found image_size [32, 48]"),
        ({"timm_model_name": "vit_relpos_small_patch16_224"}, "found timm's VisionTransformerRelPos"),
        ({"timm_model_name": "no_such_vit"}, "its vision_cfg cannot be built"),
        ({"patches": 3}, "its vision_cfg cannot be built: TypeError"),
    ],
    ids=str,
)
def test_configs_that_cannot_label_are_refused(vision: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", random_model(CLIP), changed(CLIP, vision))
    with refused(told):
        load_encoder(f"open_clip:{folder}", "cpu")


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        ({"mode": "L"}, "preprocess_cfg.mode to be RGB; found 'L'; correct it"),
        ({"resize_mode": "crop"}, "preprocess_cfg.resize_mode to be shortest, longest or squash; found 'crop'"),
        ({"interpolation": "nearest"}, ".interpolation to be bicubic, bilinear or random; found 'nearest'"),
        ({"mean": [0.5, 0.5]}, "preprocess_cfg.mean to be one number or three; found [0.5, 0.5]"),
        ({"mean": "grey"}, "preprocess_cfg.mean to be one number or three; found 'grey'"),
        ({"std": [0.5, 0, 0.5]}, "preprocess_cfg.std to be one number or three, none of them 0; found [0.5, 0, 0.5]"),
        ({"fill_color": [9, 9, 9]}, "preprocess_cfg.fill_color to be a grey level from 0 to 255; found [9, 9, 9]"),
        (["RGB"], "expected settings in preprocess_cfg; found ['RGB']"),
    ],
    ids=str,
)
def test_pixels_that_cannot_be_made_are_refused(pixels: Any, told: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", random_model(CLIP), CLIP, pixels)
    with refused(told, start=f"--encoder open_clip:{folder}: {folder}/open_clip_config.json: expected "):
        load_encoder(f"open_clip:{folder}", "cpu")


@pytest.mark.parametrize("pixels", [{"mean": 0.4, "std": 0.3}, {"mean": 0, "std": []}, {"std": 1, "mean": [0, 0, 0]}])
def test_one_number_or_none_is_what_open_clip_makes_of_it(pixels: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", random_model(CLIP), CLIP, pixels)
    (normalize,) = [
        step
        for step in open_clip.create_model_and_transforms(f"local-dir:{folder}")[2].transforms
        if hasattr(step, "mean")
    ]
    found = load_encoder(f"open_clip:{folder}", "cpu").fields()["preprocess"]
    assert (found["mean"], found["std"]) == (list(normalize.mean), list(normalize.std))


def test_a_tokenizer_that_fails_at_work_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    config = changed(CLIP, text_cfg=CLIP["text_cfg"] | {"tokenizer_kwargs": {"reduction_mask": "syntax"}})
    folder = save_model(tmp_path / "m", random_model(config), config)
    with refused("its tokenizer cannot be used: import of nltk halted", start=f"--encoder open_clip:{folder}: "):
        load_encoder(f"open_clip:{folder}", "cpu").words(["red"], print)


def test_damaged_folders_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_architecture(monkeypatch)
    folder = save_model(tmp_path / "m", random_model(CLIP), CLIP)
    other = tmp_path / "other.pt"
    torch.save(random_model(changed(CLIP, {"layers": 3})).state_dict(), other)
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(Preprocess(3)))
    pixels = torch.zeros(1, 32, 32, 3)
    for file, told in ((other, "cannot be loaded: Error(s) in loading state_dict"), (evil, "cannot be loaded: ")):
        with refused(f"{file} {told}", match=r"^--encoder open_clip:tiny/"):
            load_encoder(f"open_clip:tiny/{file}", "cpu").patches(pixels)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(f"open_clip:{folder}", "cpu").patches(pixels)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected a \.safetensors, \.bin or \.pth file in .*; found none"):
        load_encoder(f"open_clip:{folder}", "cpu")
    for text in ('{"model_cfg": {"embed_dim": 3}}', "[1]", "{", None):
        (folder / "open_clip_config.json").write_text(text) if text else (folder / "open_clip_config.json").unlink()
        with refused(match=r"open_clip_config\.json with model_cfg: embed_dim, vision_cfg and text_cfg"):
            load_encoder(f"open_clip:{folder}", "cpu")
    with pytest.raises(UserError, match=r"open_clip_config\.json of no/such cannot be fetched: Failed to "):
        load_encoder("open_clip:hf-hub:no/such", "cpu")


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("spec", ["open_clip:clip#vv-", "s2@1,2:open_clip:tiny/file.pt#value"])
def test_a_worker_elsewhere_opens_a_relative_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    planted_clip(tmp_path / "clip")
    torch.save(random_model(CLIP).state_dict(), tmp_path / "file.pt")
    monkeypatch.chdir(tmp_path)
    job = label_run.LabelJob(label_run.LabelSettings.of(encoder=spec))
    job.check()
    job.device = "cpu"
    job.open(None)
    sent = pickle.dumps(job)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = pickle.loads(sent)
    there.words = job.words
    there.device = "cpu"
    there.open(None)
    assert there.encoder.fields() == job.encoder.fields()
    assert (there.encoder.spec, there.encoder.sign) == (job.encoder.spec, job.encoder.sign)
