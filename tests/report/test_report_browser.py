"""The report as a person uses it: in a headless Chromium, by mouse, by keys alone, on a phone."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sea_pipeline.core.progress import SILENT
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings
from sea_pipeline.labels.store import open_labels
from sea_pipeline.report.run import ReportSettings, find_inputs, write_report
from sea_pipeline.report.runs import kept_views
from tests.support.paths import ROOT
from tests.support.report_world import opened_runs, planted_views, run_folder
from tests.support.world import COLOURS, ColourEncoder, draw

EVIL = "<script>document.title='hacked'</script>"
QUOTED = """</script>"'&amp;\U0001f600"""
_PATIENCE = 60_000
"""Milliseconds for what a page does next, many times what it takes."""
expect.set_options(timeout=_PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "the report is tested in Chromium; install the system's package chromium"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos, one of them gone, a word and a file name that are scripts; two runs."""
    root: Path = tmp_path_factory.mktemp("report")
    photos = root / "photos"
    grey = [["grey"] * 4] * 3
    draw(photos / "some.png", [["red", *["grey"] * 3], *grey[1:]], size=(48, 48))
    draw(photos / "most.png", [["red"] * 4, ["red"] * 4, *grey[2:]], size=(48, 48))
    draw(photos / "none.png", grey, size=(48, 48))
    draw(photos / "gone.png", grey, size=(48, 48))
    draw(photos / f"{EVIL.replace('/', '|')}{'x' * 150}.png", grey, size=(48, 48))
    words = root / "words.txt"
    words.write_text("\n".join([*COLOURS, EVIL, QUOTED]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        patch.setattr(label_run, "load_encoder", lambda spec, device, options=None: ColourEncoder())
        given = {"images": str(photos), "wordlist": str(words), "top_n": 10, "device": "cpu", "max_bad": 1}
        label_run.label_images(LabelSettings.of(**given, out=root / "labels"))
    (photos / "gone.png").unlink()
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(root / "one.png")
    for name, word in (("baseline", EVIL), ("sea", "cat")):
        run_folder(root / name, views={"key": name})
        views = kept_views(root / name)
        assert views is not None
        views["texts"][0] = word
        views["images"][0]["generated"]["visual"] = f"{word} on a mat"
        views["images"][0]["answer"] = EVIL
        if name == "baseline":
            views["held_out"] = False
            views["images"][0]["after"]["nearest"] = [1, 0, 0, 0, 0, 0]
            views["images"][0]["labels"][0] = [0]
        (root / name / "views.json").write_text(json.dumps(views))
    runs = opened_runs([root / "baseline", root / "sea"])
    settings = ReportSettings(out=root / "report.html")
    write_report(open_labels(root / "labels"), runs, settings, reporter=SILENT)
    return root / "report.html"


@contextmanager
def shown(browser: Browser, file: Path, **given: Any) -> Iterator[Page]:
    """A report in a page that has nothing to complain of and asks nothing of anybody."""
    options: dict[str, Any] = {"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce"}
    context = browser.new_context(**(options | given))
    page = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url) if not sent.url.startswith("data:") else None)
    page.set_default_timeout(_PATIENCE)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page
    assert page.title() != "hacked"
    assert problems == []
    assert asked == [file.as_uri()]
    context.close()


@pytest.fixture
def opened(browser: Browser, file: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    with shown(browser, file, **getattr(request, "param", {})) as page:
        yield page


def tiles(page: Page) -> list[str]:
    return page.locator("#gallery .tile").evaluate_all("tiles => tiles.map((tile) => tile.ariaLabel)")  # type: ignore[no-any-return]


def search(page: Page, word: str) -> None:
    page.get_by_role("combobox").fill(word)
    page.keyboard.press("Enter")


def test_a_hovered_cell_tells_its_words(opened: Page) -> None:
    opened.get_by_role("button", name="most.png").click()
    opened.locator("dialog .cell").nth(1).hover()
    side = opened.locator("dialog .inspector")
    expect(side).to_contain_text("row 1, column 2")
    expect(side.locator("li").first).to_have_text("red1.00")
    opened.locator("dialog .cell").nth(11).hover()
    expect(side).to_contain_text("row 3, column 4")
    expect(side.locator("li").first).to_have_text("grey1.00")


def test_a_word_finds_its_photos_the_strongest_first(opened: Page) -> None:
    search(opened, "red")
    assert tiles(opened)[:2] == ["most.png", "some.png"]
    expect(opened.locator("#found")).to_contain_text("red lands on")
    canvas = opened.locator("#gallery canvas").first
    pixels = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, 4, 3).data].filter((_, i) => i % 4 === 3)")
    assert all(pixels[:8])
    for text, said in (("no such word", "."), ("rown", "; the box lists words that contain it.")):
        search(opened, text)
        assert tiles(opened) == []
        expect(opened.locator("#found")).to_have_text(f"{text} is not among the words of any patch here{said}")
        assert opened.get_by_role("listbox").is_visible() == (len(said) > 1)
    search(opened, "RED")
    assert tiles(opened)[:2] == ["most.png", "some.png"]
    opened.get_by_role("combobox").press("Escape")
    assert len(tiles(opened)) == 5
    opened.get_by_label("Photo id contains").fill("OS")
    assert tiles(opened) == ["most.png"]


def test_the_box_offers_words_that_occur(opened: Page) -> None:
    opened.keyboard.press("/")
    opened.keyboard.type("re")
    options = opened.get_by_role("option")
    expect(options.locator("span").first).to_have_text("red")
    assert all("re" in word for word in options.locator("span").all_text_contents())
    opened.keyboard.press("ArrowDown")
    expect(options.first).to_have_attribute("aria-selected", "true")
    opened.keyboard.press("Enter")
    assert tiles(opened)[0] == "most.png"


def test_keys_alone_reach_everything(opened: Page) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.get_by_role("link", name="Words").click()
    opened.locator(".skip").focus()
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"
    expect(opened.get_by_role("heading", level=1)).to_have_text("What the words are like")
    opened.get_by_role("link", name="Photos").click()
    opened.get_by_role("button", name="some.png").focus()
    opened.keyboard.press("Enter")
    expect(opened.locator("dialog")).to_be_visible()
    side = opened.locator("dialog .inspector")
    expect(side).to_contain_text("row 1, column 1")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("End")
    expect(side).to_contain_text("row 2, column 4")
    expect(opened.locator("dialog .cell:focus")).to_have_attribute("aria-label", "row 2, column 4: grey 1.00")
    outline = opened.locator("dialog .cell:focus").evaluate("cell => getComputedStyle(cell).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    expect(opened.locator("dialog .chips [aria-pressed=true]")).to_have_count(1)
    opened.keyboard.press("Escape")
    expect(opened.locator("dialog")).not_to_be_visible()
    assert opened.evaluate("document.activeElement.ariaLabel") == "some.png"


def test_a_gone_photo_is_a_tile_with_its_id(opened: Page) -> None:
    expect(opened.locator("#gallery .gone")).to_have_text("gone.png: the photo is gone")
    opened.get_by_role("button", name="gone.png").click()
    opened.locator("dialog .cell").first.hover()
    expect(opened.locator("dialog .inspector li").first).to_contain_text("grey")


def test_what_comes_from_data_is_text(opened: Page) -> None:
    assert any(EVIL.replace("/", "|") in name for name in tiles(opened))
    search(opened, QUOTED)
    expect(opened.locator("#found b")).to_have_text(QUOTED)
    search(opened, EVIL)
    expect(opened.locator("#found b")).to_have_text(EVIL)
    opened.get_by_role("link", name="Texts").click()
    expect(opened.locator("#stories")).to_contain_text(f"{EVIL} on a mat")
    expect(opened.locator("#stories")).to_contain_text(f"The data says: {EVIL}")
    opened.get_by_role("link", name="Tokens").click()
    expect(opened.locator("#panels .cell").nth(1)).to_have_text(EVIL)
    for link in ("Words", "Settings", "Metrics", "Recipes"):
        opened.get_by_role("link", name=link).click()
        expect(opened.get_by_role("heading", level=1)).to_be_visible()


def test_hits_and_misses_before_and_after(opened: Page) -> None:
    opened.get_by_role("link", name="Tokens").click()
    sea = opened.locator("#panels .panel").nth(1)
    expect(sea.locator("header span")).to_have_text("1 of 5 hit (20 %)")
    classes = sea.locator(".cell").evaluate_all("cells => cells.map((cell) => cell.className)")
    assert classes == ["cell hit", *["cell miss"] * 3, "cell none", "cell miss"]
    assert sea.locator(".cell.hit").evaluate("cell => getComputedStyle(cell).fontWeight") == "700"
    expect(opened.locator("#page-tokens > .notice")).to_have_text(
        "Photos that were trained on, as the recipe holds none out: baseline."
    )
    opened.get_by_role("radio", name="Before training").click()
    expect(sea.locator("p")).to_contain_text("It began with start")
    expect(sea.locator("header span")).to_have_text("1 of 5 hit (20 %)")
    expect(sea.locator(".cell").first).to_have_text("dog")
    sea.locator(".cell").first.hover()
    expect(opened.locator("#patch")).to_contain_text("after" + "cat (0.75, hit ✓)")


def test_the_slider_goes_through_the_layers(opened: Page) -> None:
    opened.get_by_role("link", name="Tokens").click()
    opened.get_by_role("radio", name="After training").focus()
    opened.keyboard.press("ArrowRight")
    slider = opened.get_by_role("slider")
    cells = opened.locator("#panels .panel").nth(1).locator(".cell")
    assert cells.all_text_contents() == [f"t0{patch}" for patch in range(6)]
    slider.focus()
    opened.keyboard.press("ArrowRight")
    assert cells.all_text_contents() == [f"t1{patch}" for patch in range(6)]
    expect(slider).to_have_attribute("aria-valuetext", "layer 1 of 2")
    expect(opened.locator("#panels .panel").nth(1).locator("header span")).to_have_text("layer 1: 33 % meaningful")
    lenses = opened.locator("#depth figure", has_text="of a word of the photo's captions")
    expect(lenses).to_have_count(1)
    expect(opened.locator("#depth figure", has_text="Nearest word in context by layer")).to_have_count(1)
    expect(opened.locator("#depth figure", has_text="over another photo's captions")).to_have_count(2)
    opened.get_by_role("radio", name="Attention").click()
    shares = cells.evaluate_all("cells => cells.map((cell) => cell.ariaLabel)")
    assert shares[4:] == ["row 2, column 2: 0.00 times its share", "row 2, column 3: 6.00 times its share"]
    colours = cells.evaluate_all("cells => cells.map((cell) => getComputedStyle(cell).backgroundColor)")
    assert colours[4:] == ["rgba(59, 15, 112, 0)", "rgba(252, 253, 191, 0.85)"]


def test_runs_are_switched_and_one_alone_shows_before_and_after(opened: Page) -> None:
    opened.get_by_role("link", name="Tokens").click()  # the page is shown a moment later
    panels = opened.locator("#panels .panel h2")
    expect(panels).to_have_text(["baseline", "sea"])
    opened.get_by_role("button", name="baseline").click()
    expect(panels).to_have_text(["sea, before", "sea, after"])
    opened.get_by_role("button", name="sea").click()  # the last one stays
    expect(panels).to_have_text(["sea, before", "sea, after"])
    opened.get_by_role("button", name="baseline").click()
    expect(panels).to_have_text(["baseline", "sea"])


@pytest.mark.parametrize("opened", [{"viewport": {"width": 360, "height": 740}, "has_touch": True}], indirect=True)
def test_a_phone_needs_no_sideways_scrolling(opened: Page) -> None:
    wide = "document.documentElement.scrollWidth > window.innerWidth"
    for link in opened.locator("#pages a").all():
        link.click()
        assert not opened.evaluate(wide), link.text_content()
    opened.get_by_role("link", name="Photos").click()
    opened.get_by_role("button", name="most.png").tap()
    opened.locator("dialog .cell").first.tap()
    expect(opened.locator("dialog .inspector")).to_contain_text("red")
    dialog = "document.querySelector('dialog')"
    assert not opened.evaluate(f"{dialog}.scrollWidth > {dialog}.clientWidth")
    opened.keyboard.press("Escape")
    opened.get_by_role("button", name="xxx").tap()
    title = opened.locator("#viewer-title")
    assert "xxx" in str(title.get_attribute("title"))
    assert title.evaluate("title => title.offsetHeight") < 70, "two lines"
    assert not opened.evaluate(f"{dialog}.scrollWidth > {dialog}.clientWidth")


@pytest.mark.parametrize("opened", [{"viewport": {"width": 200, "height": 100}}], indirect=True)
def test_what_was_not_scrolled_to_is_printed_too(opened: Page) -> None:
    pictures = opened.locator("#gallery .frame > *")
    assert pictures.count() < 5
    opened.pdf()
    expect(pictures).to_have_count(5)


def test_regions_have_names_of_their_own_and_headings_skip_no_level(opened: Page) -> None:
    for link in opened.locator("#pages a").all():  # a page is drawn when it is shown first
        link.click()
        expect(link).to_have_attribute("aria-current", "page")
    names = opened.locator("[role=region]").evaluate_all("regions => regions.map((region) => region.ariaLabel)")
    assert len(names) == len(set(names)) > 3
    for page in opened.locator("main > section").all():
        levels = page.locator("h1, h2, h3").evaluate_all("found => found.map((heading) => +heading.tagName[1])")
        assert all(after <= before + 1 for before, after in pairwise(levels)), levels


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_dark_and_light(opened: Page) -> None:
    def paper() -> int:
        colour: str = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(colour.split("(")[1].split(",")[0])

    assert paper() < 60
    opened.get_by_role("button", name="Light or dark").click()
    assert paper() > 200
    opened.emulate_media(color_scheme="light")
    opened.get_by_role("button", name="Light or dark").click()
    assert paper() < 60


def test_a_run_without_views_says_why_and_shows_its_curves(browser: Browser, tmp_path: Path) -> None:
    _, runs = find_inputs([run_folder(tmp_path / "run")])
    runs[0].note = "the model is gone"
    write_report(None, runs, ReportSettings(out=tmp_path / "report.html"), reporter=SILENT)
    with shown(browser, tmp_path / "report.html") as page:
        expect(page.locator("#page-tokens .notice")).to_have_text("No views of these runs: run: the model is gone")
        page.get_by_role("link", name="Metrics").click()
        expect(page.locator("#curves figure")).to_contain_text("loss")
        expect(page.get_by_role("img")).to_have_attribute("aria-label", "loss: run from 3 to 1")


def test_a_report_of_the_best_words_alone_says_so(browser: Browser, file: Path) -> None:
    settings = ReportSettings(out=file.parent / "best.html", words=1)
    write_report(open_labels(file.parent / "labels"), [], settings, reporter=SILENT)
    with shown(browser, settings.out) as page:
        search(page, "black")
        expect(page.locator("#found")).to_have_text("black is not among the 1 best word of any patch here.")
        search(page, "red")
        expect(page.locator("#found")).to_contain_text("photos, among their 1 best word, the strongest first")


def test_each_panel_is_on_its_runs_own_picture(browser: Browser, tmp_path: Path) -> None:
    """One photo through two processors is one entry of the strip, and another photo of its name is a second entry."""
    for folder, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (60, 40), colour).save(tmp_path / folder / "one.png")
    boxes = {"square": ("a", [0.2, 0, 0.8, 1]), "pad": ("a", [0, -0.25, 1, 1.25]), "other": ("b", [0, 0, 1, 1])}
    for name, (folder, box) in boxes.items():
        views = planted_views(tmp_path / folder)
        views["images"][0] |= {"box": box, "grid": [1, 6] if name == "pad" else [2, 3]}
        run_folder(tmp_path / name, views=views)
    runs = opened_runs([tmp_path / name for name in ("square", "pad", "other")])
    write_report(None, runs, ReportSettings(out=tmp_path / "report.html"), reporter=SILENT)
    with shown(browser, tmp_path / "report.html") as page:
        panels = page.locator("#panels .panel")
        expect(panels.locator("img")).to_have_count(2)
        first, second = panels.locator("img").evaluate_all("images => images.map((image) => image.src)")
        assert first != second
        expect(panels.nth(2).locator(".notice")).to_have_text("This run did not look at this photo.")
        marked = "panels => panels.map((panel) => [...panel.querySelectorAll('.cell')].map((cell) => cell.className))"
        for patch, other in ((0, None), (1, 3), (2, 4), (5, None)):  # of the padded grid, and of the square one
            panels.nth(1).locator(".cell").nth(patch).hover()
            cells = page.locator("#panels .panel").evaluate_all(marked)
            chosen = [[place for place, name in enumerate(grid) if "chosen" in name] for grid in cells[:2]]
            assert chosen == [[] if other is None else [other], [patch]]
            said = "It does not see this place." if other is None else f"square: row 2, column {other - 2}"
            expect(page.locator("#patch")).to_contain_text(said)
        page.get_by_title("one.png (2)").click()
        expect(page.locator("#patch h3")).to_have_text("Point at a patch")
        expect(page.locator(".cell.chosen")).to_have_count(0)
        expect(panels.locator("img")).to_have_count(1)
        assert panels.locator("img").get_attribute("src") not in (first, second)
        page.get_by_role("link", name="Texts").click()
        expect(page.locator("#stories h2")).to_contain_text(["How often", "one.png", "one.png (2)"])


def test_zero_is_a_tick_of_an_axis_across_it(opened: Page) -> None:
    charts = (ROOT / "sea_pipeline" / "report" / "assets" / "charts.js").read_text()
    lacking = opened.evaluate(f"""() => {{
        {charts}
        const sizes = Array.from({{length: 60}}, (_, place) => (1 + place) / 100);
        const spans = sizes.flatMap((low) => sizes.map((high) => [-low, high]));
        return spans.filter(([low, high]) => [4, 6].some((wanted) => !ticks(low, high, wanted).includes(0)));
    }}""")
    assert lacking == []
