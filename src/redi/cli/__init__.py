"""Owns the command line: one small module per command; must not know how anything is computed."""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name, and end the process with its exit code.

    0: done; 1: a :class:`~redi.errors.RediError`, told on standard error; 2: wrong usage; 130: interrupted.
    """
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes on absent libraries are no news to a user
    from redi.cli.app import app

    app()
