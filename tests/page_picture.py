"""`python -m tests.page_picture RUN [FILE]`: a picture of the first screen of a run's page, for docs/report.png."""

from __future__ import annotations

import sys
from pathlib import Path

from data.run import RUNS
from tests.pipeline.test_page_browser import CHROMIUM

SIZE = {"width": 1120, "height": 1330}


def take(run: str, path: Path) -> None:
    """Take a picture of an existing page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]}, color_scheme="light")
        page.goto((RUNS / run / "report.html").resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        page.screenshot(path=str(path))
        browser.close()
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    take(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "docs/report.png"))
