"""The web page as a running gateway serves it: to whom, with which headers, and what stands in for a missing one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.http import static_files

WITHOUT_TOKEN = {"authorization": ""}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page as Vite would make it; to be asked for before `http`."""
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>index</title>")
    (folder / "docs.html").write_text("<!doctype html><title>docs</title>")
    (folder / "assets" / "index-AbCd_-12.js").write_text("export const a = 1;\n" * 200)
    (folder / "assets" / "mark.svg").write_text("<svg/>")
    (folder / ".sources").write_text("no page")
    monkeypatch.setattr(static_files, "FOLDER", folder)
    return folder


@pytest.mark.parametrize("path", ["/", "/jobs", "/jobs/new", "/jobs/a/logs", "/datasets/d/versions/1", "/models"])
async def test_its_own_paths_are_the_page_without_a_token(built: Path, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path, headers=WITHOUT_TOKEN)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "index" in answer.text
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    again = await http.get(path, headers={**WITHOUT_TOKEN, "if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_docs_are_a_page_of_their_own(built: Path, http: httpx.AsyncClient) -> None:
    assert "docs" in (await http.get("/docs", headers=WITHOUT_TOKEN)).text


async def test_files_with_a_hash_in_their_name_are_kept_for_ever(built: Path, http: httpx.AsyncClient) -> None:
    script = await http.get("/assets/index-AbCd_-12.js", headers=WITHOUT_TOKEN)
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert script.headers["content-encoding"] in ("gzip", "zstd")
    picture = await http.get("/assets/mark.svg", headers=WITHOUT_TOKEN)
    assert (picture.headers["content-type"], picture.headers["cache-control"]) == ("image/svg+xml", "no-cache")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Findex.html", "..%2F.sources", "%2Fetc%2Fpasswd", "%00", "a%2Fb"])
async def test_nothing_but_its_files_is_served(built: Path, http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/assets/{name}", headers=WITHOUT_TOKEN)).status_code == 404


@pytest.mark.parametrize("path", ["/v1/algorithms", "/nowhere", "/jobsx", "/v1%2F..%2Fjobs", "//v1/algorithms"])
async def test_no_other_path_is_open(built: Path, http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path, headers=WITHOUT_TOKEN)).status_code == 401


async def test_a_page_under_a_foreign_name_is_refused(built: Path, http: httpx.AsyncClient) -> None:
    """A name rebound to this address would else run the page in another site's origin."""
    answer = await http.get("/", headers={**WITHOUT_TOKEN, "host": "attacker.example"})
    assert (answer.status_code, answer.json()["reason"]) == (403, "HOST_NOT_ALLOWED")


async def test_a_page_that_was_not_built_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_gateway: Callable[..., Any]
) -> None:
    monkeypatch.setattr(static_files, "FOLDER", tmp_path / "nothing")
    gateway = await start_gateway()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http_port}", trust_env=False) as client:
        answer = await client.get("/")
        assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain")
        assert "pip install -e ." in answer.text
        assert (await client.get("/assets/a.js")).status_code == 404
