"""Who may import whom, and what the lean parts must not bring along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"errors", "json_array", "record_values", "image_bytes", "magics"},
    {
        "storage",
        "optional",
        "own_trainer",
        "progress",
        "ahead",
        "in_order",
        "crops",
        "pixels",
        "devices",
        "llava_json",
        "memory",
        "settings",
        "captions",
        "lift",
    },
    {"records", "mine", "samples", "codecs", "row_groups", "clusters", "worker_pool", "candidates"},
    {"plan", "quarantine", "folder", "run_files", "wordlists", "sources", "dask_clusters", "int8_table"},
    {"ledger", "int8_candidates"},
    {"tally", "verify"},
    {"shards", "run", "mend", "rows", "fastest_candidates", "half_candidates"},
    {"begin", "store", "search", "encoders", "teacher", "workers", "pace", "label_rows"},
    {"analysis", "label", "label_cache", "probe", "driver", "join"},
    {"stage_run"},
    {"figures", "console", "label_run"},
    {"console_training", "console_contextual", "console_probe", "probe_run", "report", "forecast", "console_forecast"}
    | {"hub"},
    {"cli"},
]
"""Top-level modules of sea_pipeline from the ground up; a module imports only from floors below its own."""

TRAINER_FLOORS = [
    {
        "losses",
        "sampling",
        "sampler",
        "metrics",
        "templates",
        "geometry",
        "sharding",
        "log",
        "recipe",
        "lens",
        "plain_text",
        "recipe_names",
        "tap",
        "weights",
        "hub",
        "borders",
        "schedule",
    },
    {"towers", "chat_template", "encode", "words", "sea", "supervision", "config_check"}
    | {"recipe_problems", "run_record", "lora", "legacy", "arguments", "balance", "checkpoints"}
    | {"aspect_ratio", "bad_rows", "row_cache"},
    {"folder_check", "basic", "conversations", "recipe_file", "suites", "resume", "reader"}
    | {"sentence_piece", "pretrained", "lmms_eval"},
    {"model", "paper_rows", "tokenizer", "pretrained_tokenizer", "piece_model", "kept", "text_lens"},
    {"parts", "data", "harness", "premise"},
    {"controls"},
    {"init", "features", "norm", "evaluate", "loop", "row_tokens", "answers"},
    {"load", "layers", "replace"},
    {"run_rows", "questions", "llm_probe", "contextual"},
    {"sources", "contextual_shares", "evaluation_figures", "save", "model_card", "export_files"},
    {"build", "teach"},
    {"run_fields"},
    {"run_begin"},
    {"train", "evaluate_run", "teach_run", "run_model"},
    {"stages", "views", "export"},
]
"""The same for trainer."""


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", sorted((ROOT / "sea_pipeline").rglob("*.py")), ids=lambda path: path.name)
def test_imports_go_one_way(path: Path) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    here = room(path)
    if here.startswith("__"):
        return
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "trainer" or here in ("cli", "console_training"), f"{path} imports the trainer"
        if parts[0] == "sea_pipeline" and len(parts) > 1 and parts[1] in floor and parts[1] != here:
            type_only = (here, parts[1]) in (("console", "label_run"), ("console_forecast", "forecast"))
            assert floor[parts[1]] < floor[here] or type_only, f"{here} imports {parts[1]}, which is not below it"


@pytest.mark.parametrize("path", sorted((ROOT / "trainer").glob("*.py")), ids=lambda path: path.name)
def test_imports_of_the_trainer_go_one_way(path: Path) -> None:
    floor = {name: number for number, names in enumerate(TRAINER_FLOORS) for name in names}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "trainer" and len(parts) > 1 and parts[1] in floor:
            assert floor[parts[1]] < floor[room(path)], f"{room(path)} imports {parts[1]}, which is not below it"


@pytest.mark.parametrize(("package", "floors"), [("sea_pipeline", FLOORS), ("trainer", TRAINER_FLOORS)])
def test_every_room_has_a_floor(package: str, floors: list[set[str]]) -> None:
    rooms = {room(path) for path in (ROOT / package).rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set().union(*floors)


@pytest.mark.parametrize("module", ["__init__", "analysis", "figures", "console", "run", "report"])
def test_reading_labels_needs_no_torch(module: str) -> None:
    program = f"import sys, sea_pipeline.{module}; print({{'torch', 'faiss', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_files_and_functions_stay_short() -> None:
    for path in [*(ROOT / "sea_pipeline").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.body[0].lineno < 45, f"{path}: {node.name}"
