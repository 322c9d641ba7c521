"""A file that is nearly right, through the upload form of the web page in Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.fix_browser import field, fill
from tests.fix_live import LiveMesh

pytestmark = pytest.mark.slow


@pytest.fixture
def page(open_page: Callable[..., Page], live_mesh: LiveMesh) -> Page:
    """The form, signed in."""
    page = open_page(live_mesh.json("status")["http"] + "/datasets/upload")
    page.locator("#token").fill(live_mesh.rlhf("token").stdout.strip())
    page.locator("main form button[type=submit]").click()
    expect(page.locator("#field-file")).to_be_visible()
    return page


def questions(path: Path) -> Path:
    """100 rows under keys of their own, of which one has no answer."""
    rows = [{"user_question": f"{index}+1?", "gold": str(index + 1)} for index in range(100)]
    del rows[60]["gold"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def send(page: Page) -> None:
    page.get_by_role("button", name="Upload", exact=True).click()


def test_names_of_keys_wrong_rows_and_a_split(page: Page, live_mesh: LiveMesh, tmp_path: Path) -> None:
    page.locator("#field-file").set_input_files(questions(tmp_path / "asked.jsonl"))
    send(page)
    expect(page.get_by_text("100 of 100 rows are wrong.")).to_be_visible()
    # The name is free again: nothing stays of a dataset whose file is not taken.
    assert "asked" not in live_mesh.rlhf("dataset", "list", "-o", "name").stdout.replace("/", " ").split()
    page.get_by_role("button", name="Use these names").click()
    expect(page.locator('[id="field-field_mapping.0.key"]')).to_have_value("user_question")
    expect(page.locator('[id="field-field_mapping.1.name"]')).to_have_value("completion")
    assert page.evaluate("document.querySelector('#field-file').files[0].name") == "asked.jsonl"
    refuse_unreadable(page)
    refuse_unknown_name(page)
    # Now but one row is wrong, and one click leaves it out.
    fill(page, "field_mapping.0.name", "prompt")
    send(page)
    expect(page.get_by_text("1 of 100 rows are wrong.")).to_be_visible()
    page.get_by_role("button", name="Leave them out").click()
    expect(page.locator('[id="field-skip_invalid"]')).to_have_value("1")
    send(page)
    expect(page.get_by_text("1 wrong rows are left out.")).to_be_visible()
    page.get_by_role("link", name="asked-validation:1").click()
    expect(page.locator("article").first).to_contain_text("+1?")
    counts = [live_mesh.json("dataset", "show", name)["rowCount"] for name in ("asked:1", "asked-validation:1")]
    assert sum(map(int, counts)) == 99
    assert int(counts[1]) > 0


def refuse_unreadable(page: Page) -> None:
    """What the page itself sees, each beside its field, and gone once it is changed."""
    wrong = {"skip_invalid": "many", "split.share": "half", "split.seed": "x", "split.name": ""}
    for key, value in {**wrong, "field_mapping.0.name": ""}.items():
        fill(page, key, value)
    send(page)
    expect(page.locator(".error")).to_have_count(5)
    assert "needs both" in field(page, "field_mapping.0")
    assert "a number of rows" in field(page, "skip_invalid")
    assert "such as 0.05" in field(page, "split.share")
    right = {"skip_invalid": "", "split.share": "60%", "split.seed": "3", "split.name": "validation"}
    for key, value in right.items():
        fill(page, key, value)
    expect(page.locator(".error")).to_have_count(1)


def refuse_unknown_name(page: Page) -> None:
    """What the mesh sees, each beside its field."""
    fill(page, "field_mapping.0.name", "nothing")
    send(page)
    expect(page.locator(".error")).to_have_count(1)
    assert "must be above 0 and at most 0.5" in field(page, "split.share")
    fill(page, "split.share", "0.4")
    send(page)
    expect(page.locator(".error")).to_have_count(1)
    assert "'nothing' is no key of format messages" in field(page, "field_mapping.0")
