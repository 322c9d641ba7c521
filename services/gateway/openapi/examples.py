"""One value for each schema that people read first. A test reads every one of them as its message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DATASET = "projects/default/datasets/questions"
_JOB = "projects/default/trainingJobs/first"
_MODEL = "projects/default/models/smollm2-135m"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_TIME = "2026-01-31T10:00:00Z"

_DATASET_INPUT: Mapping[str, Any] = {
    "displayName": "Questions",
    "format": "prompt",
    "labels": {"team": "maths"},
}
_UPLOAD_INPUT: Mapping[str, Any] = {"fileName": "questions.jsonl", "sizeBytes": "1048576", "sha256": _SHA256}
_JOB_INPUT: Mapping[str, Any] = {
    "algorithm": "grpo",
    "baseModel": _MODEL,
    "datasetVersion": f"{_DATASET}/versions/latest",
    "params": {"steps": 100, "reward": {"name": "math"}},
    "placement": {"target": "local"},
    "labels": {"team": "maths"},
}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "DatasetInput": _DATASET_INPUT,
    "DatasetPatch": {"displayName": "Questions with answers"},
    "Dataset": {
        "name": _DATASET,
        **_DATASET_INPUT,
        "latestVersion": f"{_DATASET}/versions/1",
        "createTime": _TIME,
        "updateTime": _TIME,
        "etag": "1",
    },
    "UploadInput": _UPLOAD_INPUT,
    "TrainingJobInput": _JOB_INPUT,
    "TrainingJob": {
        "name": _JOB,
        **_JOB_INPUT,
        "validationDatasetVersion": "",
        "resumeFrom": "",
        "priority": 0,
        "state": "JOB_STATE_RUNNING",
        "attempts": [{"number": 1, "startTime": _TIME, "endReason": "", "resumedFromStep": "0"}],
        "phase": "training",
        "stepCount": "42",
        "totalStepCount": "100",
        "sequence": "2",
        "createTime": _TIME,
        "startTime": _TIME,
        "inputs": {
            "baseManifestSha256": "3b0c3f4e0f1d2a5968778695a4b3c2d1e0f00112233445566778899aabbccdde",
            "datasetSha256": "c1a5298f939e87e8f962a5edfc206918d2b4ef0b6a1c3f5e7d9b0a2c4e6f8091",
            "validationDatasetSha256": "",
            "rewardModels": {},
        },
        "software": {"rlhf-mesh": "0.1.0", "verl": "0.9.1", "torch": "2.13.0"},
        "warnings": [
            {
                "reason": "ROWS_LEFT_OUT",
                "severity": "SEVERITY_WARNING",
                "message": "12 of 512 training rows are longer than 64 tokens and are left out",
                "remedy": "raise max_length",
                "firstStep": "0",
                "lastStep": "0",
                "count": "1",
                "attempt": 1,
                "firstTime": _TIME,
                "lastTime": _TIME,
            }
        ],
    },
    "ImportModelRequest": {
        "model": {"source": {"hub": "hf:HuggingFaceTB/SmolLM2-135M"}},
        "modelId": "smollm2-135m",
    },
    "TestRewardRequest": {
        "rewardId": "numeric",
        "params": {"which": "only"},
        "samples": [{"prompt": [{"role": "user", "content": "6 · 7?"}], "completion": "42", "answer": "42"}],
    },
    "MetricPoint": {
        "metric": "reward/mean",
        "step": "42",
        "value": 0.75,
        "observeTime": _TIME,
        "attempt": 1,
        "ordinal": "840",
    },
}
