"""Tests of adapters start from the same random numbers, whatever ran before."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed what adapters draw their weights from."""
    torch.manual_seed(0)
