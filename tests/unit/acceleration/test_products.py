"""The library that multiplies: by the processor, the dtype and the size, and as the user has set it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from glora.acceleration import products as fast_product
from glora.acceleration.products import onednn_is_faster, product, scaled_product

D = 32


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(fast_product, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(fast_product, "MIN_MULTIPLICATIONS", D**3)


class Seen(TorchDispatchMode):
    """Return whether oneDNN's operation was called."""

    onednn = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.onednn |= "mkldnn" in str(func)
        return func(*args, **(kwargs or {}))


def matrices(rows: int = D, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*s, generator=generator).to(dtype) for s in ((rows, D), (D, D), (D,)))


@pytest.mark.parametrize(
    ("found", "faster"),
    [
        ({"avx512_f": True, "cpu_name": "AMD EPYC 9654 96-Core Processor"}, True),
        ({"avx512_f": False, "cpu_name": "AMD EPYC 7763 64-Core Processor"}, False),
        ({"avx512_f": True, "cpu_name": "Intel Xeon Platinum 8481C"}, False),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_the_processor_decides(found: dict[str, Any], faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn_is_faster() == (faster and torch.backends.mkldnn.is_available())


def test_without_mkl_or_a_way_to_tell_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not onednn_is_faster()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "cpu_name": "AMD"}, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not onednn_is_faster()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_onednns_product(transposed: bool, bias: bool, on_amd: None) -> None:
    x, W, b = matrices(2 * D)
    W, b = (W.t() if transposed else W), (b if bias else None)
    with Seen() as seen:
        y, scaled = product(x, W, b), scaled_product(x, W, 0.7)
    assert seen.onednn
    torch.testing.assert_close(y, F.linear(x, W, b))
    torch.testing.assert_close(scaled, 0.7 * F.linear(x, W))


CASES = {
    "small": lambda x, W, b: (x[: D - 1], W, b),
    "one row": lambda x, W, b: (x[0].repeat(1), W.repeat(2 * D, 1), None),
    "bfloat16": lambda x, W, b: (x.bfloat16(), W.bfloat16(), b.bfloat16()),
    "float64": lambda x, W, b: (x.double(), W.double(), b.double()),
    "oneDNN switched off": lambda x, W, b: (x, W, b),
    "a weight with gaps": lambda x, W, b: (x, torch.cat([W, W], dim=1)[:, ::2], b),
}


@pytest.mark.parametrize("case", CASES)
def test_others_are_left_as_they_are(case: str, on_amd: None) -> None:
    x, W, b = CASES[case](*matrices())
    with torch.backends.mkldnn.flags(enabled=case != "oneDNN switched off"), Seen() as seen:
        y = product(x, W, b)
    assert not seen.onednn
    assert torch.equal(y, F.linear(x, W, b))
