"""Owns numbers that say how good samples are; must not know how they were made."""

from redi.metrics.distribution import Reference, frechet_distance, kernel_distance, kernel_distance_of
from redi.metrics.intervals import Interval, mean_interval, resampled_interval
from redi.metrics.ranks import area_under_roc, rank_correlation

__all__ = [
    "Interval",
    "Reference",
    "area_under_roc",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_of",
    "mean_interval",
    "rank_correlation",
    "resampled_interval",
]
