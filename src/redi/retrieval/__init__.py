"""Owns the way from neighbours to a value: weights, gate and the report per image; must not know files or pipelines."""

from redi.retrieval.gate import Gate
from redi.retrieval.report import Neighbor, Report, format_reports
from redi.retrieval.weights import (
    COMBINERS,
    Affine,
    Combination,
    Combiner,
    Kriging,
    LeastSquares,
    Nearest,
    combiner,
)

__all__ = [
    "COMBINERS",
    "Affine",
    "Combination",
    "Combiner",
    "Gate",
    "Kriging",
    "LeastSquares",
    "Nearest",
    "Neighbor",
    "Report",
    "combiner",
    "format_reports",
]
