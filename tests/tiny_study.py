"""Owns the study that tests of experiments run: a tiny one, of real runs."""

from __future__ import annotations

from redi.experiments.sampling import Recording, Scale, Solver, plain, redi
from redi.experiments.studies import Claim, Study

TINY = Scale("tiny", prompts=4, entries=12, noises=2, replicates=2, reference=40)
RECORDING = Recording(Solver("dpm", 6), (1, 2), (3, 4))
FULL, SHORT, JUMP = plain("dpm", 6), plain("dpm", 3), redi(RECORDING, 2, 4, neighbors=2)
STUDY = Study(
    "tiny",
    "A tiny study",
    (FULL, SHORT, plain("dpm", 4), JUMP),
    FULL,
    (Claim(JUMP.label, SHORT.label, "frechet"), Claim(JUMP.label, JUMP.label, "at_value")),
    plot=True,
    at_value=True,
)
