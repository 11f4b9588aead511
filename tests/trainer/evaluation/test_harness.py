"""What the harnesses found as the papers' table: planted numbers in the right cells, and what is said of the others."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness_files import lm_file, lmms_file
from tests.support.refused import ran, refused, refuses
from trainer.evaluation.harness_results import ResultTable, collect, collect_curves
from trainer.evaluation.harness_tasks import Suite

FOUND = {
    "vqav2_val": {"exact_match": 0.7881},
    "textvqa_val_ocr": {"exact_match": 0.5794},
    "gqa": {"exact_match": 0.6204},
    "scienceqa_img": {"exact_match": 0.6937},
    "mmbench_en_dev": {"gpt_eval_score": 66.8},
    "mmbench_cn_dev": {"gpt_eval_score": 58.3},
    "pope": {"pope_accuracy": 0.91, "pope_precision": 0.92, "pope_recall": 0.93, "pope_f1_score": 0.8712},
    "vizwiz_vqa_val": {"exact_match": 0.5},
    "mmvet_llava": {"gpt_eval_score": 31.4},
}
"""In the harness's units; no two alike."""
SEA = [78.81, 57.94, 62.04, 69.37, 66.8, 87.12, 50.0, 31.4, 47.0]
"""The same in the papers' percent, in the order of SEA's columns, with MMLU."""
BASIC = [78.81, 62.04, 69.37, 57.94, 66.8, 58.3, 31.4, 50.0]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    lmms_file(tmp_path / "results", FOUND)
    lm_file(tmp_path / "results", 0.47)
    submissions = tmp_path / "results" / "submissions"
    submissions.mkdir()
    (submissions / "mmbench_en_dev_results.json").write_text('{"overall_acc": 0.1}')
    return tmp_path / "results"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[str, list[float | None]]]]:
    """Label and numbers of the papers' rows, by suite; the results do not matter."""
    path = lmms_file(tmp_path_factory.mktemp("one"), {"gqa": {"exact_match": 0.5}})
    suites: tuple[Suite, ...] = ("sea", "basic")
    return {
        suite: {name: (label, list(scores.values())) for name, (label, scores) in collect(suite, path).papers.items()}
        for suite in suites
    }


def test_every_number_is_in_its_cell(results: Path) -> None:
    sea, basic = collect("sea", results), collect("basic", results)
    assert list(sea.columns) == ["VQAv2", "TextVQA", "GQA", "SQA-I", "MMB", "POPE", "VizWiz", "MM-Vet", "MMLU"]
    assert list(basic.columns) == ["VQAv2", "GQA", "SQA-I", "TextVQA", "MMB", "MMB-CN", "MM-Vet", "VizWiz"]
    assert list(sea.ours.values()) == pytest.approx(SEA)
    assert list(basic.ours.values()) == pytest.approx(BASIC)
    assert (sea.baseline, sea.difference) == (None, None)
    assert sea.notes == [f"{results}: no column of this suite is for mmbench_cn_dev"]
    assert basic.notes == [f"{results}: no column of this suite is for mmlu, mmlu_other, mmlu_stem, pope"]


def test_the_papers_rows(papers: Any) -> None:
    """Read off the papers by hand; of a figure's row only one cell is filled."""
    sea, basic = papers["sea"], papers["basic"]
    assert sea["sea-table2-sea"] == (
        "SEA-LLaVA CLIP-L Vicuna-7B", [79.1, 58.9, 63.2, 69.4, 66.8, 87.6, 48.8, 31.9, None],
    )  # fmt: skip
    assert basic["basic-table1-7b"][1] == [79.2, 63.5, 70.6, 58.0, 68.8, 62.1, 33.8, 52.5]
    assert sea["sea-figure3-sea"][1] == [None] * 8 + [46.4]
    assert len(sea) == 5 + 14 + 3 + 2
    assert len(basic) == 4 + 4 + 10 + 5


@pytest.mark.parametrize(
    ("suite", "ours", "theirs", "stated"),
    [
        ("basic", "basic-table1-7b", "basic-table1-7b-llava", [0.7, 1.5, 3.8, -0.2, 4.5, 3.8, 2.7, 2.5]),
        ("basic", "basic-table1-13b", "basic-table1-13b-llava", [0.6, 1.3, 1.5, -0.3, 1.9, 1.3, 1.1, 2.2]),
        ("sea", "sea-table3-tower", "sea-table3-llava", [1.5, 0.8, 1.4, -0.9, -0.1, 4.6]),
        ("sea", "sea-table3-tower-sea", "sea-table3-tower", [0.2, 0.4, 0.2, 2.5, 1.9, 1.3]),
    ],
)
def test_the_papers_own_differences(papers: Any, suite: str, ours: str, theirs: str, stated: list[float]) -> None:
    """Both papers print some differences beside their numbers."""
    pairs = zip(papers[suite][ours][1], papers[suite][theirs][1], strict=True)
    assert [mine - its for mine, its in pairs if mine is not None] == pytest.approx(stated)


def test_the_newest_of_several_runs_counts(results: Path) -> None:
    lmms_file(results, {"gqa": {"exact_match": 0.3}}, day=20261120)
    assert collect("sea", results).ours["GQA"] == pytest.approx(62.04)
    lmms_file(results, {"gqa": {"exact_match": 0.9}}, day=20261122)
    assert collect("sea", results).ours["GQA"] == pytest.approx(90)


def test_parts_of_a_benchmark_are_pointed_out(tmp_path: Path) -> None:
    path = lmms_file(tmp_path, {"gqa": {"exact_match": 0.5}}, samples=(12578, 8))
    group = lm_file(tmp_path, 0.5, subtasks={"mmlu_stem": (100, 100), "mmlu_other": (200, 8)})
    assert collect("sea", tmp_path).notes == [
        f"{path}: gqa saw 8 of 12,578 samples; not to be compared",
        f"{group}: mmlu saw 108 of 300 samples; not to be compared",
    ]


@pytest.mark.parametrize("value", ["N/A", None, float("nan"), True])
def test_a_cell_stays_empty_where_there_is_no_number(value: Any, tmp_path: Path) -> None:
    path = lmms_file(tmp_path, {"gqa": {"exact_match": value}, "pope": {"pope_accuracy": 0.9}})
    found = collect("sea", tmp_path)
    assert set(found.ours.values()) == {None}
    missing = {"gqa": "exact_match", "pope": "pope_f1_score"}
    assert found.notes == [f"{path}: {task} has no number for {metric}" for task, metric in missing.items()]


def test_a_metric_under_two_filters_is_no_number(tmp_path: Path) -> None:
    path = lm_file(tmp_path, 0.5)
    content = json.loads(path.read_text())
    content["results"]["mmlu"]["acc,strict"] = 0.4
    path.write_text(json.dumps(content))
    assert collect("sea", path).ours["MMLU"] is None
    del content["results"]["mmlu"]["acc,none"]
    path.write_text(json.dumps(content))
    assert collect("sea", path).ours["MMLU"] == pytest.approx(40)


def test_a_group_within_itself(tmp_path: Path) -> None:
    path = lm_file(tmp_path, 0.5, subtasks={"mmlu": (10, 10), "mmlu_stem": (10, 5)})
    assert collect("sea", path).notes == [f"{path}: mmlu saw 15 of 20 samples; not to be compared"]


def test_results_of_what_had_the_models_name_before_are_pointed_out(tmp_path: Path) -> None:
    model = tmp_path / "x"
    model.mkdir()
    (model / "config.json").write_text("{}")
    path = lmms_file(tmp_path / "results", {"gqa": {"exact_match": 0.5}}, model=str(model))
    assert collect("sea", tmp_path / "results").notes == []
    time = (model / "config.json").stat().st_mtime
    os.utime(path, (time - 60, time - 60))
    (note,) = collect("sea", path).notes
    assert note.startswith(f"{path}: gqa was measured before {model} was written")
    lmms_file(tmp_path / "results", {"gqa": {"exact_match": 0.4}}, model=str(model), day=20261122)  # its command, again
    assert (found := collect("sea", tmp_path / "results")).notes == []
    assert found.ours["GQA"] == pytest.approx(40)


def curves(root: Path) -> Path:
    """MMLU along two rows of Figure 3, with the LLMs between, and one run of nobody's."""
    for run, scores in {
        "sea-figure3-sea": {0: 0.471, 520: 0.468, 5196: 0.464},
        "sea-figure3-no-pretraining": {0: 0.471, 520: 0.41, 5196: 0.389},
        "mine": {520: 0.3},
    }.items():
        for step, score in scores.items():
            lm_file(root / run / f"step-{step}", score, model=f"{run}/step-{step}-llm")
            (root / run / f"step-{step}-llm").mkdir()
            (root / run / f"step-{step}-llm" / "config.json").write_text("{}")
    return root


def test_a_curve_of_every_run(command: Any, tmp_path: Path) -> None:
    root = curves(tmp_path / "results")
    stdout = ran(command, "eval-commands", "--collect", root)
    lines = [" ".join(line.split()) for line in stdout.splitlines() if line.split()]
    assert lines == [
        "MMLU",
        "step sea-figure3-no-pretraining sea-figure3-sea mine",
        "0 47.1 47.1",
        "520 41.0 46.8 30.0",
        "5,196 38.9 46.4",
        "paper, end 38.9 46.4",
    ]
    found = json.loads(command("eval-commands", "--collect", root, "--json")[1])
    curve = {"0": 47.1, "520": 41.0, "5196": 38.9}
    assert found["curves"]["MMLU"]["sea-figure3-no-pretraining"] == pytest.approx(curve)
    assert found["papers"] == {"sea-figure3-no-pretraining": {"MMLU": 38.9}, "sea-figure3-sea": {"MMLU": 46.4}}
    alone = collect_curves("sea", root / "mine")
    assert alone is not None
    assert alone.curves == {"MMLU": {"mine": {520: pytest.approx(30.0)}}}
    assert collect_curves("sea", root / "mine" / "step-520") is None, "of one step there is no curve"
    assert collect("sea", root / "mine" / "step-520").ours["MMLU"] == pytest.approx(30.0)
    refuses(command, "--baseline: is for one model", "eval-commands", "--collect", root, "--baseline", root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"results": {"gqa"', "expected the results of lmms-eval or lm-eval; Invalid JSON: EOF"),
        ('{"results": [1, 2]}', "expected the results of lmms-eval or lm-eval; results: Input should be a"),
        (None, "expected results of one model; found gqa of exports/x, exports/y; name the folder of one"),
    ],
    ids=["cut short", "something else", "two models"],
)
def test_what_is_refused_in_one_line(content: str | None, said: str, results: Path) -> None:
    if content is None:
        lmms_file(results, {"gqa": {"exact_match": 0.5}}, model="exports/y", day=20261122)
    else:
        (results / "results_of_mine.json").write_text(content)
    with refused(said, str(results)):
        collect("sea", results)


def test_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "20261121_042647_samples_gqa.jsonl").write_text("{}")
    with refused("found none; run what sea-pipeline eval-commands prints"):
        collect("sea", tmp_path)
    with refused("there is no such folder or file"):
        collect("sea", tmp_path / "nowhere")


def test_the_table_as_printed(command: Any, results: Path, tmp_path: Path) -> None:
    baseline = lmms_file(tmp_path / "b", {"gqa": {"exact_match": 0.61}}, model="llava")
    stdout = ran(command, "eval-commands", "--suite", "sea", "--collect", results, "--baseline", baseline)
    rows = {line.split()[0]: line.split() for line in stdout.splitlines() if line.split()}
    assert rows["VQAv2"] == ["VQAv2", "TextVQA", "GQA", "SQA-I", "MMB", "POPE", "VizWiz", "MM-Vet", "MMLU"]
    assert rows["ours"][1:] == ["78.8", "57.9", "62.0", "69.4", "66.8", "87.1", "50.0", "31.4", "47.0"]
    assert rows["baseline"][1:] == ["61.0"]
    assert rows["difference"][1:] == ["+1.0"]
    assert rows["sea-table2-sea"][-8:] == ["79.1", "58.9", "63.2", "69.4", "66.8", "87.6", "48.8", "31.9"]
    assert "no column of this suite is for mmbench_cn_dev" in stdout


def test_the_table_as_json_with_a_baseline(command: Any, results: Path, tmp_path: Path) -> None:
    theirs = {"gqa": {"exact_match": 0.61}, "mmbench_cn_dev": {"gpt_eval_score": 60.0}}
    given = ["--collect", results, "--baseline", lmms_file(tmp_path / "b", theirs, model="llava")]
    found = json.loads(ran(command, "eval-commands", "--suite", "basic", *given, "--json"))
    assert set(found) == {"suite", *ResultTable._fields}
    assert list(found["ours"].values()) == pytest.approx(BASIC)
    assert filled(found["baseline"]) == pytest.approx({"GQA": 61, "MMB-CN": 60})
    assert filled(found["difference"]) == pytest.approx({"GQA": 1.04, "MMB-CN": -1.7})
    assert found["papers"]["basic-table1-7b"]["scores"]["MMB-CN"] == 62.1


def filled(cells: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in cells.items() if value is not None}
