"""Which files of a folder make a run or a model of parts another one."""

from pathlib import Path

import pytest

from sea_pipeline.storage.hashing import file_sha256
from trainer.model.digests import begun_folder, processing_digests, start_folder
from trainer.recipes.recipe import Recipe

WRITTEN_BY_INIT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")
OTHERS = (
    "preprocessor_config.json", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip


def test_a_folder_of_init_keeps_its_identity(tmp_path: Path) -> None:
    for name in (*WRITTEN_BY_INIT, "config.json", "generation_config.json", "alignment.json", "README.md"):
        (tmp_path / name).write_text(name)
    assert processing_digests(tmp_path) == {name: file_sha256(tmp_path / name) for name in WRITTEN_BY_INIT}


def start(parts: dict[str, str]) -> Path:
    return start_folder(Recipe.model_validate({"model": {"projector": "mlp2x_gelu", **parts}}))


def test_a_folder_called_packaged_is_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = [start({"vision": spec}) for spec in ("packaged", "s2:packaged@224")]
    for name in ("packaged", "packaged@224"):
        Path(name).mkdir()
    assert [start({"vision": spec}) for spec in ("packaged", "s2:packaged@224")] == before


def test_a_run_of_an_earlier_version_finds_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the folder behind `s2:` was no part of the name."""
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({"model": {"projector": "mlp2x_gelu", "vision": "s2:clip"}})
    earlier = start_folder(recipe)
    Path("clip").mkdir()
    assert begun_folder(recipe) == start_folder(recipe) != earlier
    earlier.mkdir(parents=True)
    assert begun_folder(recipe) == earlier


@pytest.mark.parametrize(("part", "spec"), [("llm", ""), ("vision", ""), ("vision", "s2:"), ("vision", "s2@1,2:")])
@pytest.mark.parametrize("name", [*WRITTEN_BY_INIT, *OTHERS])
def test_every_file_that_decides_tokens_or_pixels_counts(name: str, part: str, spec: str, tmp_path: Path) -> None:
    def state(content: str | None) -> tuple[dict[str, str], Path]:
        if content is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        return processing_digests(tmp_path), start({part: spec + str(tmp_path)})

    (tmp_path / "config.json").write_text("{}")
    states = [state(None), state("one"), state("another")]

    for one in range(2):
        assert len({str(each[one]) for each in states}) == 3
