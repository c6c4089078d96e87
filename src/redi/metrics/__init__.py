"""Owns numbers that say how good samples are; must not know how they were made."""

from redi.metrics.distribution import Reference, frechet_distance, kernel_distance, kernel_distance_of
from redi.metrics.intervals import Interval, mean_interval, resampled_interval

__all__ = [
    "Interval",
    "Reference",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_of",
    "mean_interval",
    "resampled_interval",
]
