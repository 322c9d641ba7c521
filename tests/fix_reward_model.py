"""A reward model made from scratch: a sequence classifier beside the tokenizer of a tiny language model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_runner import ENVIRONMENT
from tests.fix_runner import tiny_model as tiny_model

# The weight of one digit's embedding is large, so that answers differ in their scores.
PROGRAM = """
import sys, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
source, target = sys.argv[1:]
torch.manual_seed(0)
config = AutoConfig.from_pretrained(source)
config.num_labels = 1
tokenizer = AutoTokenizer.from_pretrained(source)
config.pad_token_id = tokenizer.pad_token_id
model = AutoModelForSequenceClassification.from_config(config)
model.save_pretrained(target)
tokenizer.save_pretrained(target)
"""


@pytest.fixture(scope="session")
def tiny_reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-reward")
    command = [sys.executable, "-c", PROGRAM, str(tiny_model), str(folder)]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return folder
