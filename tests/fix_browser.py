"""Fixtures: Chromium or Chrome of this machine, without a window, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# What a gateway that is killed, and an answer that is an error, leave in the console.
_EXPECTED = ("Failed to load resource", "net::ERR_")
PATIENCE_MS = 30_000.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Set where a missing browser is an error, as in CI.
_REQUIRED = "RLHF_TESTS_NEED_BROWSER"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None:
        message = f"none of {', '.join(_NAMES)} is installed; on Debian: apt-get install chromium"
        if os.environ.get(_REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a window of its own at an address. An error of a script, or a breach of the policy, fails the test."""
    said: list[str] = []
    contexts = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(_EXPECTED):
            said.append(message.text)

    def make(address: str, scheme: str = "light", locale: str = "en-US") -> Page:
        context = browser.new_context(
            viewport={"width": 1280, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            locale=locale,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", note)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not said


def field(page: Page, key: str) -> str:
    """The text of the errors beside a field of the form."""
    return page.locator(f'[id="field-{key}-error"]').inner_text()


def fill(page: Page, key: str, value: str) -> None:
    page.locator(f'[id="field-{key}"]').fill(value)
