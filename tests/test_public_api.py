"""Claims about what `import redi` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import redi


def test_the_public_face_is_sorted_and_every_name_resolves() -> None:
    assert redi.__all__ == sorted(redi.__all__)
    assert {name for name in redi.__all__ if getattr(redi, name) is None} == set()
    assert set(redi.__all__) <= set(dir(redi))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'enabel'"):
        redi.enabel  # noqa: B018


def test_importing_redi_imports_nothing_heavy() -> None:
    heavy = "torch diffusers transformers lance pyarrow numpy PIL matplotlib"
    code = f"import redi, sys; redi.Plan, redi.__version__; print(*set('{heavy}'.split()) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
