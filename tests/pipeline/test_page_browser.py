"""The page in Chromium: nothing on the console, nothing fetched, drawn in every scheme and width, and accessible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluate.page.write import write_page
from tests.conftest import run_module
from tests.page_runs import Shape, write_run

pytestmark = pytest.mark.slow
CHROMIUM = Path("/usr/bin/chromium")
SHAPES = {
    "whole": Shape(samples=2, gate=True, refused=True),
    "plain": Shape(rounds=1, benchmarks=("a",)),
    "no gold": Shape(gold=False),
    "no benchmarks": Shape(benchmarks=(), gold=False),
    "round 0": Shape(rounds=0),
    "control": Shape(alone=True, benchmarks=("a",)),
    "fell": Shape(better=-0.2, items=40),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="EXTRA=browser installs playwright")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no {CHROMIUM}")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


class Shown:
    """A page that is open, and what went wrong in it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.trouble: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.route("**/*", self._route)
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("html[data-drawn]", timeout=60_000)

    def _route(self, route: Any) -> None:
        if route.request.url.startswith("file:") and route.request.is_navigation_request():
            route.continue_()
        else:
            self.trouble.append(f"fetched {route.request.url[:100]}")
            route.abort()

    def close(self) -> None:
        """With nothing gone wrong."""
        self.context.close()
        assert self.trouble == []


def faults(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]


def open_all(page: Any) -> None:
    """What is behind clicks."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_function("![...document.querySelectorAll('.vega')].some((each) => !each.firstChild)")


def test_the_page_is_drawn_without_errors_or_requests(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("r", SHAPES["plain"])
    shown = Shown(browser, write_page("r"), viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = shown.page
    assert page.locator(".vega svg").count() > 8
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    ink = "getComputedStyle(document.querySelector('.vega svg text')).fill"
    before = page.evaluate(ink)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ink) != before, "plots follow the scheme"
    page.emulate_media(media="print")
    assert page.evaluate(ink) == before, "paper is white"
    page.emulate_media(media="screen")
    open_all(page)
    assert faults(page) == []
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than a phone"
    shown.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_run_is_drawn_in_every_colour_scheme(
    browser: Any, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("r", SHAPES[shape])
    path = write_page("r")
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
            shown = Shown(browser, path, **options)
            assert shown.page.evaluate("document.documentElement.scrollWidth") == width
            open_all(shown.page)
            assert faults(shown.page) == []
            picture = shown.page.screenshot(path=f"{scheme}-{width}.png", full_page=True)
            assert len(picture) > 20_000
            shown.close()
    shown = Shown(browser, path, viewport={"width": 1280, "height": 800}, color_scheme="dark")
    assert len(shown.page.pdf(format="A4")) > 20_000
    assert shown.page.evaluate("[...document.querySelectorAll('.plot details')].every((each) => !each.open)")
    shown.close()


@pytest.mark.usefixtures("browser")
def test_the_documents_picture_can_be_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("r", Shape(rounds=1, benchmarks=("a",)))
    write_page("r")
    run_module("tests.page_picture", "r", "picture.png", cwd=tmp_path, check=True)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
