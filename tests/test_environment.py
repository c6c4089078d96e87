"""What the environment must and must not hold."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec


def test_torchvision_is_absent() -> None:
    assert find_spec("torchvision") is None


def test_torch_is_the_pinned_version() -> None:
    assert version("torch").split("+")[0] == "2.13.0"
