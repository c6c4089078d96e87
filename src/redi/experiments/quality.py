"""Owns how a sampling's figures are computed, with intervals over prompts; must not know how samples are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redi.errors import InputError
from redi.experiments.sample_files import Samples
from redi.metrics import (
    Interval,
    Reference,
    frechet_distance,
    kernel_distance_of,
    mean_interval,
    resampled_interval,
)
from redi.metrics.perceptual import Perceptual

Places = NDArray[np.intp]
Row = Mapping[str, Any]
MEASURES = ("frechet", "kernel", "faithfulness", "closeness", "pixels")
MORE_IS_BETTER = {"faithfulness"}
COMPARED_CALLS = (*range(3, 11), 15, 25)
"""Numbers of calls at which the best jump is compared with the best solver alone."""
_OF_A_DISTRIBUTION = ("frechet", "kernel")
_ATTRIBUTES = {"faithfulness": "all", "objects": "objects"}


def figures(
    samples: Sequence[Samples],
    full: Sequence[Samples],
    reference: Reference,
    *,
    resamples: int = 400,
    lpips: Perceptual | None = None,
) -> dict[str, Any]:
    """Return a sampling's figures, over the replicates together.

    Args:
        samples: One per replicate.
        full: The run in full from the same noises, for closeness.
        reference: Features of real pictures.
        resamples: Of the bootstrap of distances between distributions.
        lpips: Tells how far apart two pictures look.

    Returns:
        ``frechet`` and ``kernel`` (to the reference), ``faithfulness`` (share of prompts with everything right, or
        mean score), ``objects``, ``closeness`` (mean distance of features to the run in full) and ``pixels`` (mean
        root mean square of pixel differences, 0 to 1), each with its interval; ``calls``, ``jumped`` and ``seconds``
        per picture.
        Without a judge who tells right from wrong, ``objects`` is not among them; with LPIPS its mean to the run in
        full is, ``lpips``, of pictures of at most 64 pixels a side.
    """
    count, intervals = _count(samples), {}
    for name in (*MEASURES, "objects"):
        if name in _OF_A_DISTRIBUTION:
            found = resampled_interval(_distance(name, samples, reference), count, resamples=resamples)
        elif name != "objects" or _judged(samples):
            found = mean_interval(of_each(name, samples, full))
        else:
            continue
        intervals[name] = _told(found)
    if lpips is not None:
        pairs = [lpips.distances(one.pictures, other.pictures) for one, other in zip(samples, full, strict=True)]
        intervals["lpips"] = _told(mean_interval(np.concatenate(pairs)))
    return intervals | {
        "calls": float(np.concatenate([each.calls for each in samples]).mean()),
        "jumped": float(np.concatenate([each.jumped for each in samples]).mean()),
        "seconds": sum(each.seconds for each in samples) / count,
        "n": count,
    }


def loss(row: Row, name: str) -> float:
    """Return a row's value of a measure so that less is better."""
    value = float(row[name]["value"])
    return -value if name in MORE_IS_BETTER else value


def best(rows: Sequence[Row], name: str, calls: int, *, jumps: bool) -> Row | None:
    """Return the row of that many calls with the best value of a measure, of those that jump or of those that don't."""
    of_calls = [row for row in rows if round(row["calls"]) == calls and (row["sampling"]["jump"] is not None) == jumps]
    return min(of_calls, key=lambda row: loss(row, name), default=None)


def difference(
    name: str,
    samples: Sequence[Samples],
    rival: Sequence[Samples],
    full: Sequence[Samples],
    reference: Reference,
    *,
    resamples: int = 400,
) -> Interval:
    """Return by how much a measure of ``samples`` is above the rival's, on the same resampled prompts.

    Raises:
        InputError: They are not of the same prompts.
    """
    if [len(each) for each in samples] != [len(each) for each in rival]:
        raise InputError("samples of different prompts", expected="the same prompts from the same noises")
    if name in _OF_A_DISTRIBUTION:
        ours, theirs = _distance(name, samples, reference), _distance(name, rival, reference)
        return resampled_interval(lambda places: ours(places) - theirs(places), _count(samples), resamples=resamples)
    return mean_interval(of_each(name, samples, full) - of_each(name, rival, full))


def _distance(name: str, samples: Sequence[Samples], reference: Reference) -> Callable[[Places], float]:
    """Return what computes a distance to the reference from the prompts at some places."""
    features = np.concatenate([each.features for each in samples])
    if name == "kernel":
        return kernel_distance_of(features, reference)
    return lambda places: frechet_distance(features[places], reference)


def of_each(name: str, samples: Sequence[Samples], full: Sequence[Samples]) -> NDArray[np.float64]:
    """Return a measure of each prompt's picture (n), whose mean is told."""
    if name == "closeness":
        found = [
            np.linalg.norm(one.features - other.features, axis=1) for one, other in zip(samples, full, strict=True)
        ]
    elif name == "pixels":
        pairs = zip(samples, full, strict=True)
        found = [
            np.sqrt(((one.pictures / 255.0 - other.pictures / 255.0) ** 2).mean((1, 2, 3))) for one, other in pairs
        ]
    elif name in _ATTRIBUTES:
        found = [each.faithful[_ATTRIBUTES[name]] for each in samples]
    else:
        raise InputError(f"measure {name!r}", expected=f"one of {', '.join((*MEASURES, 'objects'))}")
    return np.concatenate(found).astype(np.float64)


def _judged(samples: Sequence[Samples]) -> bool:
    return not any(np.isnan(each.faithful["objects"]).any() for each in samples)


def _count(samples: Sequence[Samples]) -> int:
    return sum(len(each) for each in samples)


def _told(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
