"""Other packages and files called `trainer`: in the working folder, on the path, in place of ours."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sea_pipeline.execution.worker import StagePlugin
from tests.support.entries import MODULE, SCRIPT
from tests.support.paths import ROOT
from tests.support.worker_world import planted_ledger
from trainer.teacher.run import TeachJob, TeachSettings

pytestmark = pytest.mark.slow

LAUNCHER = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--no-python"]
TORCHRUN = [*LAUNCHER, *MODULE]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages, in which ours lie; to be read alone."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    for name in ("sea_pipeline", "trainer"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("jobs", "wordlists"):
        (folder / "sea_pipeline" / "data").mkdir(exist_ok=True)
        shutil.copytree(ROOT / name, folder / "sea_pipeline" / "data" / name)
    return folder


def plant(folder: Path, kind: str) -> None:
    """A trainer of somebody else's: it fails where it is imported."""
    folder.mkdir(exist_ok=True)
    code = "raise SystemExit('another trainer')\n"
    if kind == "file":
        (folder / "trainer.py").write_text(code)
    else:
        (folder / "trainer").mkdir()
        (folder / "trainer" / ("__init__.py" if kind == "package" else "model.py")).write_text(code)


def run(command: list[str], folder: Path, *path: Path | str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "case", ["file script", "file module .", "package script .", "package module", "folder script", "folder module ."]
)
def test_one_in_the_working_folder_is_passed_over(installed: Path, tmp_path: Path, case: str) -> None:
    """Each pair of what it is, how the program is started, and whether the folder is on the path, too."""
    kind, start, *path = case.split()
    plant(tmp_path / "work", kind)
    done = run([*(SCRIPT if start == "script" else MODULE), "recipes", "demo"], tmp_path / "work", *path, installed)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(installed) in done.stdout


def test_torchrun_passes_it_over(installed: Path, tmp_path: Path) -> None:
    plant(tmp_path / "work", "file")
    done = run([*TORCHRUN, "recipes", "demo"], tmp_path / "work", installed)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout


def test_other_files_of_the_working_folder_are_no_modules(installed: Path, tmp_path: Path) -> None:
    """`python -m` would have them stand for libraries; the command `sea-pipeline` does not."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("typer", "rich", "yaml", "datasets"):
        (work / f"{name}.py").write_text("raise SystemExit('no library')\n")
    assert run([*MODULE, "recipes", "demo"], work, installed).returncode == 0


SPAWNED = """
import multiprocessing, sys
from sea_pipeline.core.own_trainer import take_own_trainer
if __name__ == "__main__":
    take_own_trainer()
    from trainer.recipes.recipe import Recipe
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(repr, (Recipe(seed=5),))[-200:])
"""


def test_processes_that_are_spawned_take_ours_too(installed: Path, tmp_path: Path) -> None:
    plant(tmp_path / "work", "file")
    (tmp_path / "spawned.py").write_text(SPAWNED)
    done = run([sys.executable, "-P", str(tmp_path / "spawned.py")], tmp_path / "work", "", installed)
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed=5" in done.stdout


def test_one_elsewhere_on_the_path_is_named_in_a_line(installed: Path, tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "package")
    other = tmp_path / "elsewhere" / "trainer"
    done = run([*SCRIPT, "train"], tmp_path, tmp_path / "elsewhere", installed)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(
        f"error: {other}: hides sea-pipeline's package `trainer`, in {installed}; rename it, "
    )
    done = run([*MODULE, "status", "x"], tmp_path, tmp_path / "elsewhere", installed)
    assert "expected a folder that sea-pipeline wrote" in done.stderr


def test_a_working_folder_that_is_gone_is_named(installed: Path, tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "file")
    (tmp_path / "work").mkdir()
    program = "import os; os.rmdir(os.getcwd()); from sea_pipeline.core.own_trainer import take_own_trainer as take"
    done = run([sys.executable, "-c", f"{program}; take()"], tmp_path / "work", tmp_path / "elsewhere", installed)
    assert done.stderr.endswith("UserError: the working folder no longer exists; change into one that does\n")


def coqui(site: Path) -> None:
    """Another project that is installed into our folder, as pip does it: over files of the same name."""
    (site / "trainer" / "__init__.py").write_text("from trainer.model import TrainerModel\n")
    (site / "trainer" / "model.py").write_text("TrainerModel = 1\n")
    info = site / "coqui_tts_trainer-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: coqui-tts-trainer\nVersion: 0.3\n")
    (info / "RECORD").write_text("trainer/__init__.py,,\ntrainer/model.py,,\n")
    (info / "top_level.txt").write_text("trainer\n")


def test_one_that_has_overwritten_ours_is_named_in_a_line(installed: Path, tmp_path: Path) -> None:
    installed = shutil.copytree(installed, tmp_path / "site")
    coqui(installed)
    done = run([*MODULE, "train"], tmp_path, installed)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr == (
        f"error: {installed / 'trainer'}: is not as sea-pipeline installed it, but overwritten or removed by "
        "coqui-tts-trainer; install sea-pipeline in an environment of its own\n"
    )
    (installed / "trainer" / "__init__.py").unlink()  # pip uninstall coqui-tts-trainer
    done = run([*MODULE, "recipes"], tmp_path, installed)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "overwritten or removed" in done.stderr


def test_one_that_is_loaded_already_is_named(installed: Path, tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "file")
    (tmp_path / "elsewhere" / "trainer.py").write_text("")
    program = "import trainer, sys; sys.argv = ['x', 'train']\nfrom sea_pipeline.cli import main; main()"
    done = run([sys.executable, "-P", "-c", program], tmp_path, tmp_path / "elsewhere", installed)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path / 'elsewhere' / 'trainer.py'}: was loaded in place of" in done.stderr


def test_a_library_user_keeps_his_own(installed: Path, tmp_path: Path) -> None:
    """Who imports `sea_pipeline` for `open_labels` may have a trainer.py."""
    (tmp_path / "trainer.py").write_text("mine = 1\n")
    program = "from sea_pipeline import open_labels; import trainer; print(trainer.mine)"
    assert run([sys.executable, "-c", program], tmp_path, installed).stdout == "1\n"


WORKER = """
import pickle, sys
plugin = pickle.load(open(sys.argv[1], "rb"))
try:
    plugin._load()
except Exception as problem:
    print(type(problem).__name__, problem)
"""


def test_a_worker_takes_ours_for_targets(tmp_path: Path) -> None:
    """Where Slurm and others start workers by `python -m`, in the folder that the job was sent from."""
    plant(tmp_path / "work", "file")
    settings = TeachSettings(model=tmp_path / "nowhere", data="samples")
    plugin = StagePlugin(TeachJob(settings), planted_ledger(tmp_path / "out"), None, "teach-1")
    (tmp_path / "plugin").write_bytes(pickle.dumps(plugin))
    done = run([sys.executable, "-c", WORKER, str(tmp_path / "plugin")], tmp_path / "work", ROOT)
    assert done.stdout.startswith(f"UserError {tmp_path / 'nowhere'}: "), done.stderr
