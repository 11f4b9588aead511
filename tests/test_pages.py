"""What README and pages promise: commands that parse, Python that runs, files that are there, explained terms."""

import ast
import html
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

from hatch_build import on_the_index
from sea_pipeline import open_labels
from sea_pipeline.cli import app
from tests.support import prose
from tests.support.paths import ROOT
from tests.support.tiny_tokenizers import llama_like
from tests.support.world import draw_folder
from trainer.recipes.paper_rows import named_recipes

COMMANDS: dict[str, Any] = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
TEXTS = {prose.name(page): page.read_text("utf-8") for page in prose.PAGES}
LINES = sorted({(page, line) for page, text in TEXTS.items() for line in prose.commands(text)})
PYTHON = [
    pytest.param(block.text, id=f"{page}-{number}")
    for page, text in TEXTS.items()
    for number, block in enumerate(each for each in prose.blocks(text) if each.language == "python")
]
README = TEXTS["README.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"]
READ = list(TEXTS)
"""Pages whose sentences are short; the other one lists what changed."""
TRAINING_WORDS = (
    "tower", "projector", "L_lm", "`tacs`", "`gap`", "`label_hit@1`", "`meaningful`", "crops", "windows", "lift",
    "recipe", "`preset`", "micro-batch", "held out", "V̂", "`match_norm`", "`keep_features`", "`outliers`",
    "stage 1", "2of12",
)  # fmt: skip


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 170
    assert [line for line in lines if len(line) > 100] == []


def test_every_task_of_the_readme_has_its_commands() -> None:
    tasks = {"label", "probe", "init", "train", "export", "report"}
    assert {line.split()[0] for line in prose.commands(README)} >= tasks
    assert "trainer.attach(" in README


def test_pictures_are_small() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert [Path(picture).name for picture in pictures] == ["tokens-dark.webp", "tokens-light.webp"]
    assert len(re.findall(r'<img [^>]*alt="[^"]{20,}"', README)) == 1
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 300_000
        with Image.open(ROOT / picture) as image:
            assert image.width > 800


def test_the_package_index_gets_absolute_links() -> None:
    text = on_the_index(README, REPOSITORY)
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', text)
    assert len(links) > 20
    assert all("://" in (link or picture) for link, picture in links)
    assert f"({REPOSITORY}/blob/main/docs/label.md)" in text
    assert f'src="{REPOSITORY}/raw/main/docs/pictures/tokens-light.webp"' in text
    assert f"({REPOSITORY}/blob/main/docs/install.md#licences)" in text


def test_the_address_is_held_in_one_place() -> None:
    host = REPOSITORY.split("/")[2]
    files = [path for path in ROOT.glob("*.*") if path.is_file() and host in path.read_text("utf-8", "ignore")]
    assert files == [ROOT / "pyproject.toml"]


def test_the_source_distribution_has_what_tests_read() -> None:
    texts = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    read = {*re.findall(r'ROOT / "([\w.-]+)"', texts), "Makefile", ".ci", ".pre-commit-config.yaml"}  # and developers
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert read - {*included, "pyproject.toml"} == set()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), LINES)
def test_commands_parse(page: str, line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    context = COMMANDS[name].make_context(name, arguments)
    recipe = context.params.get("recipe") if name == "train" else None
    if recipe and not recipe.endswith("x.yaml"):
        assert named_recipes(recipe, context.params["overrides"] or ())


def test_commands_are_found() -> None:
    assert {line.split()[0] for _, line in LINES} >= COMMANDS.keys() - {"demo"}
    assert len({page for page, _ in LINES}) > 10


@pytest.mark.parametrize("code", PYTHON)
def test_python_compiles_and_imports_what_is_there(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert importlib.util.find_spec(module)
            if module.partition(".")[0] in {"sea_pipeline", "trainer"}:
                assert all(_has(module, alias.name) for alias in node.names)


LISTED = {name for names in re.findall(r" members: \[(.*)\]", TEXTS["docs/reference.md"]) for name in names.split(", ")}
"""What the API reference shows."""


def test_what_examples_import_is_in_the_reference() -> None:
    notebook = json.loads((ROOT / "docs" / "notebooks" / "attach.ipynb").read_text("utf-8"))
    codes = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    codes += [file.read_text("utf-8") for file in (ROOT / "examples").glob("*.py")]
    used = set()
    for code in [*codes, *(str(block.values[0]) for block in PYTHON)]:
        nodes = list(ast.walk(ast.parse(code)))
        froms = [
            (one.module or "", alias.name) for one in nodes if isinstance(one, ast.ImportFrom) for alias in one.names
        ]
        ours = {
            (ROOT / module.replace(".", "/") / name)
            for module, name in froms
            if re.match(r"(sea_pipe|trainer)", module)
        }
        modules = {one.name for one in ours if one.is_dir() or one.with_suffix(".py").is_file()}
        used |= {one.name for one in ours} - modules
        used |= {one.attr for one in nodes if isinstance(one, ast.Attribute) and ast.unparse(one.value) in modules}
    assert len(used) > 15
    assert used - LISTED == set()


def _has(module: str, name: str) -> bool:
    return hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("page", ["README.md", "docs/label-format.md"])
def test_labels_are_read_as_the_page_says(
    page: str, label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw_folder(tmp_path / "photos", 3)
    next(photos.glob("*.png")).rename(photos / "cat.jpg")
    folder = "labels" if page == "README.md" else "runs/labels/mine"
    label(images=str(photos), out=tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    codes = [block.text for block in prose.blocks(TEXTS[page]) if "store = open_labels" in block.text]
    codes += [block.text for block in prose.blocks(TEXTS[page]) if "duckdb.sql" in block.text]
    given: dict[str, Any] = {}
    for code in codes:
        exec(code.replace("(-1, 10)", "(-1, 3)"), given)
    labels = given["found" if page == "README.md" else "labels"]
    assert labels.word_ids.shape == labels.scores.shape
    assert ("numpy" in given) == (page != "README.md")
    if "numpy" in given:
        assert np.array_equal(given["scores"], given["store"][given["store"].ids[0]].scores)


def test_the_training_loop_of_ones_own(label: Any, tmp_path: Path) -> None:
    """The snippet runs; its loss reaches the drawn patches alone, each with a word of its own."""
    label(images=str(draw_folder(tmp_path / "photos", 6)))
    store = open_labels(tmp_path / "labels")
    (block,) = [block.text for block in prose.blocks(TEXTS["docs/train.md"]) if "losses.sea" in block.text]
    embed = torch.nn.Embedding(600, 16)
    given = {
        "store": store, "ids": store.ids[:4], "numbers": [9, 4, 7, 0],
        "visual": torch.randn(4, 12, 16, requires_grad=True),
        "llm": SimpleNamespace(get_input_embeddings=lambda: embed), "tokenizer": llama_like(),
        "seed": 0, "epoch": 0, "step": 3, "log_scale": torch.zeros(()),
    }  # fmt: skip
    exec(textwrap.dedent(block), given)
    given["loss"].backward()
    kept, rows, named = given["kept"], given["rows"], given["named"]
    assert len(kept) == len(set(named.tolist())) > 3
    assert (given["visual"].grad.flatten(0, 1).norm(dim=-1) > 0).nonzero()[:, 0].tolist() == sorted(rows[kept].tolist())
    for row, word in zip(rows[kept], named[kept], strict=True):
        assert word in store[store.ids[row // 12]].word_ids[row % 12]
    assert isinstance(named, np.ndarray)


@pytest.mark.parametrize("page", prose.PAGES, ids=prose.name)
def test_a_page_names_files_that_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|^\[\w+\]: (\S+)$|(?:src|srcset)=\"([^\"]+)\"", text, re.MULTILINE)
    paths = [link for found in links for link in found if link and "://" not in link and "mailto:" not in link]
    assert [path for path in paths if not (page.parent / path).exists()] == []
    named = re.findall(
        r"(?<![\w/.])((?:sea_pipeline|trainer|tests|jobs|docs|examples)/[\w/.-]+\.(?:py|yaml|sh|md|j2|jinja))", text
    )
    assert [name for name in named if "FILE" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", READ)
def test_sentences_are_short(page: str) -> None:
    lengths = sorted(prose.lengths(TEXTS[page]))
    assert lengths[len(lengths) // 2] < 18
    assert [sentence for sentence in prose.sentences(TEXTS[page]) if len(sentence.split()) > 45] == []
    assert lengths[-1] <= 40


def test_sentences_are_found() -> None:
    text = (
        "# Head\n\nOne two. Three\nfour (see [five](x.md)).\n\n| a | b |\n\n- Six seven.\n- $x$ is eight.\n\n    code\n"
    )
    assert prose.sentences(text) == ["One two.", "Three four (see five).", "Six seven.", "$x$ is eight."]


def test_training_words_are_in_the_glossary() -> None:
    cells = re.findall(r'^\| <a id="[^"]+"></a>([^|]+) \|', TEXTS["docs/glossary.md"], re.MULTILINE)
    terms = {term for cell in cells for term in cell.split(", ")}
    assert set(TRAINING_WORDS) <= terms


def test_terms_are_linked_once_and_where_they_are_prose() -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    anchors = hooks.terms('| <a id="gap"></a>`gap` | x |\n| <a id="v"></a>V | x |\n| <a id="held"></a>held out | x |\n')
    assert anchors == {"`gap`": "gap", "V": "v", "held out": "held"}
    text = "<h2>V</h2><p>A gap, <code>gap</code>, <code>gap</code>; held-out V, V, VI.</p><pre><code>gap</code></pre>"
    linked = hooks.link_terms(text, anchors)
    assert linked.count("<a ") == 3
    assert '<p>A gap, <a class="term" href="glossary.html#gap"><code>gap</code></a>, <code>gap</code>' in linked
    assert (
        '<a class="term" href="glossary.html#held">held-out</a> <a class="term" href="glossary.html#v">V</a>, V, VI'
        in linked
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does, but with a network that is not there."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    out: Path = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_site_is_whole(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|source|iframe)[^>]* (?:src|srcset)="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|icon|preconnect|preload)"[^>]* href="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* href="([^"]+)"[^>]* rel="(?:stylesheet|icon|preconnect|preload)"', text)
        assert [path for path in loaded if "://" in path or path.startswith("//")] == [], page.name
    text = (site / "train.html").read_text("utf-8")
    assert text.count("<math ") >= 6
    assert "arithmatex" not in text
    assert 'class="term" href="glossary.html#projector"' in text
    reference = (site / "reference.html").read_text("utf-8")
    names = ["LabelStore.ids", "LabelStore.__getitem__", "LabelSettings.of", "LabelSettings.top_n", "Loss.sea", *LISTED]
    assert [name for name in names if f'.{name}"' not in reference] == []


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    texts = {page: page.read_text("utf-8") for page in site.glob("*.html")}
    anchors = {page: set(re.findall(r' (?:id|name)="?([^"\s>]+)', text)) for page, text in texts.items()}
    dead = []
    for page, text in texts.items():
        for link in re.findall(r'<a [^>]*href="?([^"\s>]+)', text):
            path, _, anchor = html.unescape(link).partition("#")
            if "://" in path or path.startswith("mailto:"):
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (anchor and target in anchors and anchor not in anchors[target]):
                dead.append(f"{page.name}: {link}")
    assert [link for link in dead if not link.startswith("404.html")] == []


@pytest.mark.slow
def test_the_site_shows_in_a_browser(site: Path) -> None:
    """No page asks a network for anything, says anything on the console, or is wider than a phone; search finds."""
    playwright = pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("no chromium here")
    said: list[str] = []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        for file in sorted(set(site.glob("*.html")) - {site / "404.html"}):  # 404 is for a server
            page.goto(file.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{file.name}: {wide}"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto((site / "label.html").as_uri())
        page.locator("input.md-search__input").click()
        page.keyboard.type("quarantine")
        page.locator(".md-search-result__item").first.wait_for(state="attached", timeout=60_000)
        browser.close()
    assert said == []
