"""Owns the exception tree of redi and its warning; knows nothing else.

RediError
├── PlanError            steps that do not fit each other
├── UnsupportedError     a sampler, pipeline or feature that redi has not been tested with
├── IncompatibleError    a knowledge base and a pipeline (or call) that differ
├── NoiseError           an initial latent that is not in the noise bank
├── KnowledgeBaseError   a knowledge base that is missing, damaged, locked or of an unknown version
├── RetrievalError       neighbours or weights that cannot be computed
└── InputError           prompts, files or options that cannot be used
"""

from __future__ import annotations

import sys
import warnings


class RediError(Exception):
    """Base class of every error that redi raises on purpose.

    A message has three parts: what was got, what was expected, and what to do.
    """

    def __init__(self, got: str, *, expected: str = "", fix: str = "") -> None:
        self.got, self.expected, self.fix = got, expected, fix
        parts = [got]
        if expected:
            parts.append(f"Expected: {expected}")
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__("\n  ".join(parts))


class PlanError(RediError, ValueError):
    """Steps that do not fit each other, or a step that a knowledge base does not hold."""


class UnsupportedError(RediError, NotImplementedError):
    """A sampler, pipeline or feature that redi has not been tested with."""


class IncompatibleError(RediError, ValueError):
    """A knowledge base and a pipeline (or one call of it) that differ."""


class NoiseError(RediError, ValueError):
    """An initial latent that is not in the knowledge base's noise bank."""


class KnowledgeBaseError(RediError):
    """A knowledge base that is missing, damaged, locked, or of an unknown version."""


class RetrievalError(RediError):
    """Neighbours or weights that cannot be computed."""


class InputError(RediError, ValueError):
    """Prompts, files or options that cannot be used."""


class RediWarning(UserWarning):
    """Something that redi did not do as asked, and went on without: an image that ran in full, a prompt cut off."""


def warn(message: str) -> None:
    """Warn with a :class:`RediWarning` at the line outside of redi that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "redi":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RediWarning, stacklevel=level)
