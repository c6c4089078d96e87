"""Every claim about every pipeline, with tiny instances of the real classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers

from pipeline_claims import CLAIMS, PIPELINES, Matrix
from pipeline_table import markdown
from redi.errors import RediWarning

DOCUMENT = Path(__file__).parents[1] / "docs" / "pipelines.md"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RediWarning)
        for library in (of_diffusers, of_transformers):
            library.disable_progress_bar()
        yield
        for library in (of_diffusers, of_transformers):
            library.enable_progress_bar()


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_claim_holds_for_a_pipeline(matrix: Matrix, pipeline: str, claim: str) -> None:
    assert matrix.outcome(pipeline, claim)


def test_the_document_says_what_the_claims_find(matrix: Matrix) -> None:
    assert DOCUMENT.read_text() == markdown(matrix), "make docs"
