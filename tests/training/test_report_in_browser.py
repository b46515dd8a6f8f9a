"""The report in headless Chromium: it renders, and the console stays empty."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from diptych.runs.run import Run

# Debian calls it chromium, Ubuntu chromium-browser; Google's own build serves as well.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)


def open_in_browser(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's elements as the browser built them, and what it wrote to the console."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")
    command = [browser, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_the_report_renders_without_a_word_on_the_console(tiny_run: Run, tmp_path: Path) -> None:
    elements, console = open_in_browser(tiny_run.directory / "report.html", tmp_path / "profile")
    assert console == []
    assert "</footer>" in elements
    assert elements.count("<svg") == 4
    assert re.search(r'data-metric="both.accuracy">0\.\d{3}|data-metric="both.accuracy">1\.000', elements)


def test_the_page_forbids_the_browser_to_fetch_anything(tiny_run: Run, tmp_path: Path) -> None:
    """Shows that the test above would see it: a picture from elsewhere is refused, and said so."""
    page = tmp_path / "tampered.html"
    text = (tiny_run.directory / "report.html").read_text("utf-8")
    page.write_text(text.replace("</header>", '<img src="http://127.0.0.1:9/picture.png"></header>'), "utf-8")
    _, console = open_in_browser(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
