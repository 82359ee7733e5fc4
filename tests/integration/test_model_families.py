"""The same walk through an adapter's life for every family of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.adapter_life import Setup, live_through
from integration.support_cases import MODELS, Works


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.thing)
def test_model_family(case: Works, tmp_path: Path) -> None:
    assert isinstance(case.shown_by, Setup)
    live_through(case.shown_by, tmp_path)
