"""Log-probabilities of tokens in chunks: the same numbers and gradients as torch's own, and in place in verl."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("shape", [(7, 11), (2, 5, 11), (1, 3), (0, 4)])
@pytest.mark.parametrize("chunk", [1, 30, 1 << 26])
def test_as_torch_has_them(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], chunk: int) -> None:
    import torch

    from services.trainer.losses import token_logprobs as ours

    monkeypatch.setattr(ours, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    logits = (20 * torch.randn(shape)).requires_grad_()
    labels = torch.randint(shape[-1], shape[:-1])
    weights = torch.randn(shape[:-1])
    expected = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    [gradient] = torch.autograd.grad((expected * weights).sum(), logits)
    found = ours.token_logprobs(logits, labels)
    [found_gradient] = torch.autograd.grad((found * weights).sum(), logits)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-5, rtol=1e-5)


def test_of_bf16_logits_the_sum_is_taken_in_fp32() -> None:
    import torch

    from services.trainer.losses.token_logprobs import token_logprobs

    torch.manual_seed(0)
    logits = torch.randn(64, 50_000).bfloat16()
    labels = torch.randint(50_000, (64,))
    exact = logits.double().log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    torch.testing.assert_close(token_logprobs(logits, labels).double(), exact, atol=1e-4, rtol=1e-5)


def test_verl_takes_ours() -> None:
    """In a process of its own: the hook changes the module for good."""
    code = (
        "import os; os.environ |= dict(VERL_PLATFORM='cpu')\n"
        "os.environ |= dict(VERL_USE_EXTERNAL_MODULES='services.trainer.verl.patches.plugin')\n"
        "import torch\n"
        "from verl.utils import torch_functional\n"
        "from services.trainer.losses import token_logprobs\n"
        "assert torch_functional.logprobs_from_logits_v2 is token_logprobs.token_logprobs\n"
        "found = torch_functional.logprobs_from_logits(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))\n"
        "assert torch.allclose(found, torch.tensor(4.0).log().neg().expand(3)), found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
