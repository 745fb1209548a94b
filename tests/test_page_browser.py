# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The page in headless Chromium with the analytic segmenter (`make test-page`; else skipped).

Needs requirements-page.txt, playwright's Python package and a chromium on the path.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from test_inferer import inferer
from test_page import write_pair
from toy import DiscSegmenter

pytest.importorskip("gradio", reason="gradio is not installed (requirements-page.txt)")
from scripts.page_layout import build  # needs gradio

CHROMIUM = shutil.which("chromium") or ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def page_url(files: dict[str, Any]) -> Iterator[str]:
    page = build(inferer(), DiscSegmenter(), files)
    page.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, max_file_size="1mb", server_port=None)
    yield page.local_url
    page.close()


def test_the_page_is_served(page_url: str) -> None:
    with urlopen(page_url, timeout=30) as answer:
        content = answer.read().decode()
    assert "PromptReg" in content and page_url.startswith("http://127.0.0.1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no chromium on the path")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """A person at the page."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_context(viewport={"width": 1280, "height": 1400}).new_page()
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2].split(":")[0]))
        self.page.goto(url)
        self.page.wait_for_selector("#load")

    def until(self, text: str, element: str = "#status") -> None:
        found = "([e, t]) => document.querySelector(e)?.innerText.includes(t)"
        try:
            self.page.wait_for_function(found, arg=[element, text], timeout=30_000)
        except Exception as error:
            shown = self.page.inner_text(element)
            raise AssertionError(f"{element} does not say '{text}' but '{shown}'") from error

    def click(self, side: str, row: float, column: float) -> None:
        shown = self.page.locator(f"#{side} img")
        shown.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        box = shown.bounding_box()
        x, y = box["x"] + (column + 0.5) / 64 * box["width"], box["y"] + (row + 0.5) / 64 * box["height"]
        self.page.mouse.click(x, y)

    def load(self) -> None:
        self.page.click("#load")
        self.until("Ready")


def test_a_visit(browser: Any, page_url: str, tmp_path: Path) -> None:
    one = Visitor(browser, page_url)
    one.page.click("#register")
    one.until("Load a pair of images first")
    one.load()
    one.click("moving", 30, 34)
    one.until("Prompt 1: found on the fixed image")
    one.click("fixed", 38, 28)
    one.until("Prompt 2: found on the moving image")
    one.page.click("#ask input[value=box]")
    one.click("moving", 17, 21)
    one.until("opposite corner")
    one.click("moving", 43, 47)
    one.until("Prompt 3")

    two = Visitor(browser, page_url)  # sees nothing of the first
    two.load()
    two.until("No prompts yet", "#table")
    two.click("moving", 30, 34)
    two.until("Prompt 1")

    one.page.click("#chosen input")
    one.page.click("#chosen [role=option] >> nth=0")
    one.page.keyboard.press("Escape")
    one.page.click("#remove")
    one.until("Removed")
    assert "1" not in [row.split()[1] for row in one.page.inner_text("#table").splitlines()[1:]]
    one.page.click("#register")
    one.until("Registered")
    one.until("ddf", "#files")
    assert one.page.locator("#overlay img").count() == 1
    one.page.screenshot(path=tmp_path / "page.png", full_page=True)
    with one.page.expect_download() as download:
        one.page.click("#files a >> nth=0")
    assert Path(download.value.path()).stat().st_size > 0
    one.page.click("#clear")
    one.until("No prompts yet", "#table")
    assert "1" in two.page.inner_text("#table")
    assert one.hosts | two.hosts == {"127.0.0.1"}, "nothing leaves the machine"


def test_uploads_and_errors(browser: Any, page_url: str, files: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    one = Visitor(browser, page_url)
    one.page.click("#choice input")
    one.page.click("[role=option] >> text=my own files")
    one.page.click("#load")
    one.until("none given")
    for path in (tmp_path / "broken.png", files["fixed"]):  # what has a file is no longer an input
        one.page.locator("input[type=file]").first.set_input_files(str(path))
        one.page.wait_for_selector(f"text={path.stem}")
    one.page.click("#load")
    one.until("cannot be read")
    assert "Traceback" not in one.page.inner_text("body")
