"""Models and datasets by command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from rlhf.dataset.v1 import dataset_pb2

from tests.integration.cli.fake_mesh import FakeMesh
from tests.integration.cli.fake_trainer import WEIGHTS

DIGITS = "projects/default/datasets/digits"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """3 MB of rows: three chunks and a bit."""
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "[b]y[/b]"}]
    file.write_text("".join(json.dumps({"messages": turns, "metadata": {"n": n}}) + "\n" for n in range(1000)))
    return file


@pytest.fixture
def content(rows: Path) -> bytes:
    return rows.read_bytes()


async def test_an_upload_makes_the_dataset_and_its_versions(fake_mesh: FakeMesh, rows: Path, content: bytes) -> None:
    upload = ("dataset", "upload", str(rows), "--name", "digits", "--format", "messages", "--label", "split=train")
    first = await fake_mesh.rlhf(*upload)
    assert [line.split() for line in first.out.splitlines()] == [
        ["version", "digits:1"],
        ["taken", "1,000", "rows", "(1,000", "openai)"],
    ]
    assert dict(fake_mesh.datasets.datasets[DIGITS].labels) == {"split": "train"}
    assert bytes(fake_mesh.datasets.content[f"{DIGITS}/uploads/u1"]) == content
    second = await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "-o", "json")
    assert second.json["datasetVersion"] == f"{DIGITS}/versions/2"


async def test_an_upload_goes_on_where_the_connection_broke(fake_mesh: FakeMesh, rows: Path) -> None:
    fake_mesh.datasets.break_after_bytes = 2 * 1024 * 1024
    done = await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "--format", "messages")
    assert fake_mesh.datasets.writes == [0, 2 * 1024 * 1024]
    assert done.err.count("connection is lost") == 1


async def test_an_upload_of_another_run_is_gone_on_with(fake_mesh: FakeMesh, rows: Path, content: bytes) -> None:
    fake_mesh.datasets.datasets[DIGITS] = dataset_pb2.Dataset(name=DIGITS, format="messages")
    name = f"{DIGITS}/uploads/u0"
    begun = dataset_pb2.Upload(name=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    begun.state, begun.received_bytes = dataset_pb2.Upload.STATE_RECEIVING, 1000
    fake_mesh.datasets.uploads[name] = begun
    fake_mesh.datasets.content[name] = bytearray(content[:1000])
    done = await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits")
    assert fake_mesh.datasets.writes == [1000]
    assert "going on at byte 1,000" in done.err
    assert fake_mesh.datasets.rows[f"{DIGITS}/versions/1"] == content


async def test_wrong_rows_are_listed_by_line_field_and_reason(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"messages": []}\n[1]\n{"messges": []}\n')
    done = await fake_mesh.rlhf("dataset", "upload", str(file), "--name", "bad", "--format", "messages", check=1)
    assert "bad.jsonl was not taken: 2 rows are wrong" in done.err
    lines = [line.split()[:4] for line in done.out.splitlines()]
    assert lines == [
        ["LINE", "ROW", "FIELD", "REASON"],
        ["2", "2", "(row)", "NOT_AN_OBJECT"],
        ["3", "3", "messages", "MISSING"],
    ]
    # Two of three are wrong: the file is another than was meant.
    assert "--skip-invalid" not in done.err


async def test_where_few_rows_are_wrong_the_flag_that_takes_the_others_is_named(
    fake_mesh: FakeMesh, tmp_path: Path
) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"messages": []}\n[1]\n{"messages": []}\n')
    done = await fake_mesh.rlhf("dataset", "upload", str(file), "--name", "m", "--format", "messages", check=1)
    assert "`--skip-invalid 1` takes the other 2 rows" in done.err


async def test_a_dataset_made_for_a_file_that_fails_is_taken_back(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    """Its name is free for another format; one that was there before stays."""
    file = tmp_path / "bad.jsonl"
    file.write_text("[1]\n")
    upload = ("dataset", "upload", str(file), "--name", "bad", "--format", "messages")
    done = await fake_mesh.rlhf(*upload, check=1)
    assert "--map 'question=prompt,my gold=completion'" in done.err
    assert fake_mesh.datasets.datasets == {}
    assert "--map refused" in (await fake_mesh.rlhf(*upload, "--map", "refused=prompt", check=2)).err
    assert fake_mesh.datasets.datasets == {}
    name = "projects/default/datasets/bad"
    fake_mesh.datasets.datasets[name] = dataset_pb2.Dataset(
        name=name, format="messages", latest_version=f"{name}/versions/1"
    )
    await fake_mesh.rlhf(*upload, check=1)
    assert list(fake_mesh.datasets.datasets) == [name]


async def test_what_became_of_the_rows_is_said(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"messages": []}\n[1]\n{"messages": [1]}\n')
    flags = ("--skip-invalid", "1", "--split", "validation=25%", "--map", "a=prompt", "--map", "b=completion,c=system")
    done = await fake_mesh.rlhf("dataset", "upload", str(file), "--name", "m", "--format", "messages", *flags)
    upload = fake_mesh.datasets.uploads["projects/default/datasets/m/uploads/u1"]
    assert dict(upload.field_mapping) == {"a": "prompt", "b": "completion", "c": "system"}
    assert (upload.split.name, upload.split.share) == ("validation", 0.25)
    assert [" ".join(line.split()) for line in done.out.splitlines()] == [
        "version m:1",
        "taken 1 rows (3 openai)",
        "held out 1 rows: m-validation:1",
        "left out 1 rows: 1 NOT_AN_OBJECT; see `rlhf dataset skipped m`",
        "duplicates 3 rows are equal to an earlier one",
        "kept as metadata 5 messages[].id, 2 source: not trained on",
    ]
    shown = (await fake_mesh.rlhf("dataset", "skipped", "m")).out.splitlines()
    assert [line.split() for line in shown][1] == ["2", "2", "(row)", "a", "row", "must", "be", "an", "object", "[1]"]
    [line] = (await fake_mesh.rlhf("dataset", "skipped", "m", "-o", "json")).out.splitlines()
    assert (json.loads(line)["content"], json.loads(line)["line"]) == ("[1]", "2")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--skip-invalid", "many", "--split", "x", "--map", "a"), ("--skip-invalid", "--split", "--map")),
        (("--skip-invalid", "100%"), ("--skip-invalid",)),
        (("--skip-invalid", "0"), ("--skip-invalid",)),
        (("--map", "a=b,a=c"), ("--map",)),
        (("--split-seed", "3"), ("--split-seed",)),
        (("--split", "a=0.1", "--split", "b=0.1"), ("--split is given 2 times",)),
        (("--name", "other"), ("--name is given 2 times",)),
    ],
)
async def test_wrong_options_of_an_upload(
    fake_mesh: FakeMesh, rows: Path, flags: tuple[str, ...], names: tuple[str, ...]
) -> None:
    done = await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "m", "--format", "messages", *flags, check=2)
    assert all(name in done.err for name in names), done.err
    assert fake_mesh.datasets.datasets == {}


async def test_a_new_dataset_wants_a_format_and_an_old_one_keeps_its_own(fake_mesh: FakeMesh, rows: Path) -> None:
    done = await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", check=2)
    assert "one of messages, prompt" in done.err
    await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "--format", "messages")
    done = await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "--format", "prompt", check=2)
    assert "'messages'" in done.err


async def test_what_is_no_file_is_refused_before_anything_is_made(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for file in ("empty.jsonl", "absent.jsonl", "."):
        await fake_mesh.rlhf("dataset", "upload", str(tmp_path / file), "--name", "d", "--format", "prompt", check=2)
    assert fake_mesh.datasets.datasets == {}


async def test_rows_are_shown_and_given_as_they_are(fake_mesh: FakeMesh, rows: Path, content: bytes) -> None:
    await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "--format", "messages")
    shown = await fake_mesh.rlhf("dataset", "rows", "digits", "--limit", "2", "--from", "5")
    assert "assistant: [b]y[/b]" in shown.out
    assert 'metadata: {"n": 5}' in shown.out
    lines = (await fake_mesh.rlhf("dataset", "rows", "digits:1", "--limit", "2", "-o", "json")).out.splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in content.splitlines()[:2]]


async def test_a_version_is_downloaded_whole_and_once(
    fake_mesh: FakeMesh, rows: Path, content: bytes, tmp_path: Path
) -> None:
    await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "--format", "messages")
    fake_mesh.datasets.break_downloads = 2
    target = tmp_path / "out" / "got.jsonl"
    await fake_mesh.rlhf("dataset", "download", "digits", "--to", str(target))
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]
    assert "--force" in (await fake_mesh.rlhf("dataset", "download", "digits", "--to", str(target), check=5)).err
    await fake_mesh.rlhf("dataset", "download", "digits", "--to", str(target), "--force")
    await fake_mesh.rlhf("dataset", "download", "digits", "--to", str(tmp_path), check=2)


async def test_a_list_turns_its_pages_and_stops_at_the_limit(fake_mesh: FakeMesh) -> None:
    names = [f"projects/default/datasets/d{number}" for number in range(5)]
    fake_mesh.datasets.datasets = {name: dataset_pb2.Dataset(name=name, format="prompt") for name in names}
    assert (await fake_mesh.rlhf("dataset", "list", "-o", "name")).out.split() == names
    assert (await fake_mesh.rlhf("dataset", "list", "-o", "name", "--limit", "3")).out.split() == names[:3]


async def test_a_dataset_is_shown_and_deleted(fake_mesh: FakeMesh, rows: Path) -> None:
    await fake_mesh.rlhf("dataset", "upload", str(rows), "--name", "digits", "--format", "messages")
    assert "digits:1" in (await fake_mesh.rlhf("dataset", "show", "digits")).out
    assert (await fake_mesh.rlhf("dataset", "show", "digits:1", "-o", "json")).json["rowCount"] == "1000"
    await fake_mesh.rlhf("dataset", "delete", "digits", check=2)  # nobody there to say yes
    await fake_mesh.rlhf("dataset", "delete", "digits", "--yes")
    assert fake_mesh.datasets.datasets == {}


async def test_a_model_from_scratch(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama", "hidden_size": 128}')
    scratch = ("--init", str(config), "--characters", "0123", "--seed", "7")
    done = await fake_mesh.rlhf("model", "import", "tiny", *scratch)
    assert ["weights", "642,048"] in [line.split() for line in done.out.splitlines()]
    source = fake_mesh.trainer.models["projects/default/models/tiny"].source
    assert dict(source.init.config.items()) == {"model_type": "llama", "hidden_size": 128}
    assert (source.init.characters.alphabet, source.init.seed) == ("0123", 7)
    assert "already" in (await fake_mesh.rlhf("model", "import", "tiny", *scratch, check=5)).err
    await fake_mesh.rlhf("model", "import", "copy", "--init", str(config), "--tokenizer", "tiny")
    copied = fake_mesh.trainer.models["projects/default/models/copy"].source.init
    assert copied.tokenizer_model == "projects/default/models/tiny"
    assert "--yes" in (await fake_mesh.rlhf("model", "delete", "tiny", check=2)).err
    await fake_mesh.rlhf("model", "delete", "tiny", "--yes")
    assert list(fake_mesh.trainer.models) == ["projects/default/models/copy"]


async def test_a_model_from_a_hub_or_a_folder(fake_mesh: FakeMesh) -> None:
    await fake_mesh.rlhf("model", "import", "a", "--source", "hf:org/name@main", "--no-wait")
    await fake_mesh.rlhf("model", "import", "b", "--source", "/srv/models/b")
    sources = [model.source for model in fake_mesh.trainer.models.values()]
    assert (sources[0].hub, sources[1].path) == ("hf:org/name@main", "/srv/models/b")
    assert fake_mesh.trainer.models["projects/default/models/a"].state == 1  # not waited for


async def test_a_model_is_downloaded_verified_and_resumed(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    await fake_mesh.rlhf("model", "import", "b", "--source", "/srv/models/b")
    fake_mesh.trainer.break_streams = 2
    folder = tmp_path / "model"
    done = await fake_mesh.rlhf("model", "download", "b", "--to", str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WEIGHTS
    assert any(offset > 0 for offset in fake_mesh.trainer.download_offsets)
    assert "AutoModelForCausalLM.from_pretrained" in done.err
    (folder / "config.json").write_text("mine")
    assert "--force" in (await fake_mesh.rlhf("model", "download", "b", "--to", str(folder), check=5)).err
    await fake_mesh.rlhf("model", "download", "b", "--to", str(folder), "--force")
    assert (folder / "config.json").read_bytes() == WEIGHTS["config.json"]
    fake_mesh.trainer.corrupt_downloads = True
    assert "SHA-256" in (await fake_mesh.rlhf("model", "download", "b", "--to", str(tmp_path / "2"), check=1)).err
    await fake_mesh.rlhf("model", "download", "absent", "--to", str(folder), check=4)


async def test_an_import_that_fails_says_why_and_exits_with_1(fake_mesh: FakeMesh) -> None:
    fake_mesh.trainer.import_error = "the folder has no safetensors"
    done = await fake_mesh.rlhf("model", "import", "b", "--source", "/srv/models/b", check=1)
    assert "the folder has no safetensors" in done.out


async def test_contradicting_options_are_all_told(fake_mesh: FakeMesh, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{}")
    done = await fake_mesh.rlhf("model", "import", "m", "--source", "x", "--init", str(tmp_path / "c.json"), check=2)
    assert "2 things to change" in done.err
    done = await fake_mesh.rlhf("model", "import", "m", "--source", "x", "--checkpoint", "run", check=2)
    assert "one of --source, --init and --checkpoint" in done.err
    assert fake_mesh.trainer.models == {}
