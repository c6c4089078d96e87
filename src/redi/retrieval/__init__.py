"""Owns the way from neighbours to a value: weights, gate and the report per image; must not know files or pipelines."""

from redi.retrieval.gate import SCORES, Gate, Limit, choose_step, gates_by_step
from redi.retrieval.report import Neighbor, Report, format_reports
from redi.retrieval.weights import (
    COMBINERS,
    DEFAULT_WEIGHTS,
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
    "DEFAULT_WEIGHTS",
    "SCORES",
    "Affine",
    "Combination",
    "Combiner",
    "Gate",
    "Kriging",
    "LeastSquares",
    "Limit",
    "Nearest",
    "Neighbor",
    "Report",
    "choose_step",
    "combiner",
    "format_reports",
    "gates_by_step",
]
