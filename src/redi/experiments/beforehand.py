"""Owns what is asked before the first run of an experiment, so that hours of runs are not in vain; must not know
results."""

from __future__ import annotations

from pathlib import Path

from redi.experiments.laboratory import Laboratory
from redi.results import check_folder

_WITHOUT_PICTURES = ("styles", "bound", "gate", "breaks")
"""Experiments that compare with no real pictures."""


def check(name: str, laboratory: Laboratory, results: Path) -> None:
    """Refuse an experiment that would fail after its first runs.

    Args:
        name: Of the experiment.
        laboratory: It would run in.
        results: Folder of the results.

    Raises:
        InputError: A folder cannot be written, or there are too few prompts, entries or real pictures.
    """
    check_folder(results / laboratory.scale.name)
    check_folder(laboratory.folder)
    subject, scale = laboratory.subject, laboratory.scale
    subject.base_prompts(0, scale.entries, True)  # as many in every replicate
    subject.prompts(0, scale.prompts)
    if name not in _WITHOUT_PICTURES:
        next(iter(subject.reference(scale.reference)))
