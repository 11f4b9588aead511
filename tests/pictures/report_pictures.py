"""Pictures of the demo's report, in light and dark: a photo's words, and what both models make of it."""

import io
import shutil
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

PHOTO = "chelsea.png"
_SCALE = 1.5
"""Pixels of a picture for one of the page."""
_GAP = 24
"""Pixels between panels."""
_PAPERS: dict[Literal["light", "dark"], str] = {"light": "#fbfaf7", "dark": "#14171a"}
"""The report's own backgrounds."""


def draw(report: Path, folder: Path) -> list[Path]:
    """Writes `labels-*.webp`, a photo's words, and `tokens-*.webp`, what both of the demo's models make of it.

    Args:
        report: of the demo.
        folder: where they go.
    """
    files = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for scheme, paper in _PAPERS.items():
            page = browser.new_page(
                viewport={"width": 1100, "height": 900}, device_scale_factor=_SCALE, color_scheme=scheme
            )
            page.goto(report.resolve().as_uri())
            for name, picture in {"labels": _labels(page), "tokens": _beside(_tokens(page), paper)}.items():
                files.append(folder / f"{name}-{scheme}.webp")
                picture.save(files[-1], quality=80, method=6)
        browser.close()
    return files


def _labels(page: Page) -> Image.Image:
    page.get_by_role("button", name=PHOTO).click()
    page.get_by_role("button", name="Words in the patches").click()
    page.locator("dialog .cell").nth(60).hover()
    shot = _shot(page.locator("dialog"))
    page.keyboard.press("Escape")
    return shot


def _tokens(page: Page) -> list[Image.Image]:
    """The photo before training, after it without SEA, after it with SEA; a run alone shows before and after."""
    page.get_by_role("link", name="Tokens").click()
    page.get_by_role("radio", name=PHOTO).click()
    panels = page.locator("#panels .panel")
    page.get_by_role("button", name="with SEA", exact=True).click()
    shots = [_panel(panels.nth(0)), _panel(panels.nth(1))]
    page.get_by_role("button", name="with SEA", exact=True).click()
    page.get_by_role("button", name="without SEA", exact=True).click()
    return [*shots, _panel(panels.nth(1))]


def _shot(part: Locator) -> Image.Image:
    return Image.open(io.BytesIO(part.screenshot())).convert("RGB")


def _panel(panel: Locator) -> Image.Image:
    """Its heading and its grid, without the notes below."""
    whole, grid = panel.bounding_box(), panel.locator(".grid").bounding_box()
    assert whole is not None
    assert grid is not None
    shot = _shot(panel)
    return shot.crop((0, 0, shot.width, round((grid["y"] + grid["height"] - whole["y"]) * _SCALE)))


def _beside(pictures: list[Image.Image], paper: str) -> Image.Image:
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) + 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures) + 2 * _GAP), paper)
    left = _GAP
    for picture in pictures:
        whole.paste(picture, (left, _GAP))
        left += picture.width + _GAP
    return whole
