"""The web page in Chromium, before a whole mesh with its token on and real training on Ray."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.fix_browser import field, fill
from tests.fix_live import LiveMesh, wait_until

pytestmark = pytest.mark.slow

Open = Callable[..., Page]


@pytest.fixture
def address(live_mesh: LiveMesh) -> str:
    return live_mesh.json("status")["http"]


@pytest.fixture
def token(live_mesh: LiveMesh) -> str:
    return live_mesh.rlhf("token").stdout.strip()


@pytest.fixture
def signed_in(open_page: Open, address: str, token: str) -> Open:
    """Opens a path of the page and signs in."""

    def make(path: str = "/jobs", **options: str) -> Page:
        page = open_page(address + path, **options)
        page.locator("#token").fill(token)
        page.locator("main form button[type=submit]").click()
        expect(page.locator("#token")).to_have_count(0)
        return page

    return make


def last_step(page: Page, metric: str) -> int:
    """Of the last point that a chart shows, as it tells it to who cannot see it."""
    label = page.locator(f'[role=img][aria-label^="{metric}."]').get_attribute("aria-label") or ""
    found = re.search(r"\((\d+)\)", label)
    return int(found[1]) if found else -1


def test_only_the_token_opens_it(open_page: Open, address: str, token: str) -> None:
    page = open_page(f"{address}/datasets")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not the token of this mesh.")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="examples", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="examples", exact=True)).to_be_visible()
    assert token not in str(page.evaluate("[Object.values(localStorage), document.cookie]"))
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert token not in str(page.evaluate("Object.values(sessionStorage)"))


def start_job(page: Page) -> None:
    """Through the form: refused with every wrong field named beside it, then mended."""
    page.get_by_role("radio", name="sft").check()
    page.get_by_label("Model", exact=True).select_option(label="tiny (11.42K)")
    page.get_by_label("Dataset", exact=True).select_option(label="examples:1")
    page.get_by_label("Validation dataset").select_option(label="held-out:1")
    page.get_by_text("more parameters").click()
    values = {"batch_size": "500", "max_length": "4096", "learning_rate": "0.01", "steps": "1500"}
    for key, value in values.items():
        fill(page, key, value)
    fill(page, "save_every_steps", "200")
    fill(page, "validation.max_new_tokens", "6")
    fill(page, "validation.rows", "8")
    fill(page, "training_job_id", "Wrong_Name")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("3 fields are wrong")).to_be_visible()
    assert "must be at most the 128 rows" in field(page, "batch_size")
    assert "context of 64" in field(page, "max_length")
    assert "a letter first" in field(page, "training_job_id")
    assert field(page, "learning_rate") == ""
    for key, value in {"batch_size": "16", "max_length": "32", "training_job_id": "from-the-page"}.items():
        fill(page, key, value)
    page.get_by_role("button", name="Check only").click()
    expect(page.get_by_text("Nothing is wrong with it.")).to_be_visible()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/jobs/from-the-page")


def test_settings_of_verl_are_taken_from_a_list_and_reward_models_by_name(signed_in: Open) -> None:
    page = signed_in("/jobs/new")
    page.locator("input[name=algorithm][value=grpo]").check()
    page.get_by_label("Dataset", exact=True).select_option(label="prompts:1")
    page.get_by_text("more parameters").click()
    known = page.locator('[id="field-verl_overrides-known"] option')
    before = known.count()
    memory, loss = "actor_rollout_ref.rollout.gpu_memory_utilization", "actor_rollout_ref.actor.policy_loss.loss_mode"
    fill(page, "verl_overrides", "trainer.nnodes")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_text("There is no such setting")).to_be_visible()
    for name in (memory, loss):
        fill(page, "verl_overrides", name)
        page.locator('[id="field-verl_overrides"]').press("Enter")
    assert known.count() == before - 2
    expect(page.locator(f'[id="field-verl_overrides.{loss}"]')).to_have_value("vanilla")
    fill(page, f"verl_overrides.{memory}", "much")
    page.locator('[id="field-reward.name"]').select_option("model")
    fill(page, "reward.params.model", "projects/default/models/none")
    fill(page, "learning_rate", "2")
    fill(page, "max_response_length", "100")
    fill(page, "placement.resources.gpu_count", "two")
    page.get_by_role("button", name="Check only").click()
    # What cannot be sent and what the mesh says, in one go.
    expect(page.get_by_text("5 fields are wrong")).to_be_visible()
    assert field(page, "placement.resources.gpu_count") == "must be a whole number"
    assert field(page, f"verl_overrides.{memory}") == "must be a number"
    assert "there is no projects/default/models/none" in field(page, "reward.params.model")
    assert "less than or equal to 1" in field(page, "learning_rate")
    assert "context of 64" in field(page, "max_response_length")
    page.get_by_role("button", name=f"Leave {memory} out").click()
    expect(page.locator(f'[id="field-verl_overrides.{memory}"]')).to_have_count(0)
    assert known.count() == before - 1


def kill_gateway_meanwhile(page: Page, mesh: LiveMesh) -> None:
    """In the middle of the stream; the page must have said so and be live again."""
    page.evaluate(
        """() => {
          window.said = new Set();
          const listen = () => document.querySelectorAll('.stream-note').forEach((e) => said.add(e.innerText.trim()));
          new MutationObserver(listen).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    before = last_step(page, "train/loss")
    mesh.kill("gateway")
    wait_until(lambda: last_step(page, "train/loss") > before, "the curve to grow again", 60)
    expect(page.locator(".stream-note.live").first).to_be_visible()
    assert "reconnecting …" in page.evaluate("[...said]")


def test_a_job_from_form_to_end(signed_in: Open, live_mesh: LiveMesh, tmp_path: Path) -> None:
    page = signed_in("/jobs/new")
    start_job(page)
    page.locator('[role=img][aria-label^="train/loss."]').wait_for(timeout=120_000)
    first = last_step(page, "train/loss")
    wait_until(lambda: last_step(page, "train/loss") > first, "the curve to grow", 60)
    page.reload()
    wait_until(lambda: last_step(page, "train/loss") > first, "the curve after a reload", 60)
    kill_gateway_meanwhile(page, live_mesh)
    page.goto(f"{page.url}/logs")
    expect(page.locator(".line").first).to_be_visible()
    page.get_by_role("link", name="Checkpoints").click()
    download_checkpoint(page, tmp_path)
    page.get_by_role("link", name="Metrics").click()
    cancel(page)
    export = exported(page, tmp_path)
    stored = live_mesh.rlhf("job", "metrics", "from-the-page", "--metric", "train/loss", "-o", "csv").stdout
    steps = [int(row["step"]) for row in export if row["metric"] == "train/loss"]
    assert steps == [int(row["step"]) for row in csv.DictReader(stored.splitlines())] == list(range(1, len(steps) + 1))
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_text("Cancelled", exact=True).click()
    expect(page.get_by_role("row", name=re.compile("from-the-page"))).to_contain_text("cancelled")


def download_checkpoint(page: Page, folder: Path) -> None:
    """One file, by a ticket, and it is what its hash says."""
    row = page.locator("tbody").filter(has_text="ready").last
    row.get_by_role("button", name="Files").click(timeout=120_000)
    file = row.locator("li").filter(has_text="config.json").first
    with page.expect_download() as started:
        file.get_by_role("button", name="Download config.json").click()
    started.value.save_as(folder / "config.json")
    content = (folder / "config.json").read_bytes()
    assert json.loads(content)["model_type"] == "llama"
    assert hashlib.sha256(content).hexdigest() == file.locator(".hash").inner_text()


def cancel(page: Page) -> None:
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Back").click()
    expect(page.locator(".badge").first).to_have_text("running")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".badge").first).to_have_text("cancelled", timeout=90_000)
    expect(page.locator(".stream-note.ended").last).to_be_visible()


def exported(page: Page, folder: Path) -> list[dict[str, str]]:
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV").click()
    started.value.save_as(folder / "metrics.csv")
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def rows_file(path: Path, wrong: bool) -> Path:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4 — <b>four</b>"}]
    rows = [{"messages": turns} for _ in range(50)]
    if wrong:
        rows[7] = {"messages": [{"role": "nobody", "content": "?"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_upload_with_findings_then_broken_off_then_whole(signed_in: Open, tmp_path: Path) -> None:
    page = signed_in("/datasets/upload")
    page.locator("#field-file").set_input_files(rows_file(tmp_path / "sums.jsonl", wrong=True))
    expect(page.locator("#field-dataset_id")).to_have_value("sums")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("1 of 50 rows are wrong.")).to_be_visible()
    expect(page.locator(".findings tbody tr").first).to_contain_text("8")
    page.get_by_role("button", name="Another file").click()
    # The connection breaks while the file is sent; the page sends it again by itself.
    broken: list[str] = []
    page.route("**/*:write?*", lambda route: (broken.append(route.request.url), route.abort())[1], times=1)
    page.locator("#field-file").set_input_files(rows_file(tmp_path / "sums.jsonl", wrong=False))
    page.locator("#field-dataset_id").fill("sums")
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("link", name="sums:1").click()
    assert len(broken) == 1
    expect(page.locator("article").first).to_contain_text("4 — <b>four</b>")
    expect(page.get_by_text("0 – 19 of 50")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("20 – 39 of 50")).to_be_visible()


def test_dark_light_and_chinese(signed_in: Open) -> None:
    page = signed_in("/jobs", scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_label("Theme").select_option("light")
    light = page.evaluate(background)
    assert dark != light
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_role("heading", name="任务")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="任务")).to_be_visible()
    assert (page.evaluate("document.documentElement.lang"), page.evaluate(background)) == ("zh-CN", light)
    page.get_by_label("外观").select_option("auto")
    assert page.evaluate(background) == dark


def test_a_visitor_whose_browser_speaks_chinese_is_met_so(open_page: Open, address: str) -> None:
    expect(open_page(address, locale="zh-CN").get_by_role("heading", name="登录")).to_be_visible()


def test_the_api_page_works_from_its_own_server(open_page: Open, address: str) -> None:
    page = open_page(f"{address}/docs")
    page.locator("#operations-TrainerService-ListAlgorithms").wait_for()
    hosts = page.evaluate("performance.getEntriesByType('resource').map((e) => new URL(e.name).origin)")
    assert set(hosts) == {address}
