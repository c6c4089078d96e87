"""Owns which entries of a full base go: uses are counted, and a rule scores them; must not know retrieval.

NIRVANA's rule (Agarwal et al., NSDI 2024) keeps what has saved most: uses times calls saved. Over months that keeps
what nobody asks for any more, so the rule here halves what was saved with time, and lets a new entry start as if it had
been used once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redi.errors import KnowledgeBaseError, warn
from redi.knowledge_base.durable import JsonLines, writing

Name = tuple[int, int]
"""Unit and slot of an entry."""

FILE_NAME = "uses.jsonl"
_LONG, _LONGEST = 1 << 24, 1 << 27
"""Bytes beyond that one line from which the file is put in one line again, and bytes from which it is in any case:
half of what can be read."""
_BYTES_OF_A_COUNT = 128
"""Bytes that an entry takes in that line, at most."""


@dataclass(frozen=True)
class Use:
    """What an entry was good for.

    Args:
        uses: How often it was used.
        saved: Calls of the network that it saved, in all.
        aged: The same, halved with time as of ``last``, and with what a new entry starts with.
        last: When it was used last, or added; seconds.
    """

    uses: int = 0
    saved: float = 0.0
    aged: float = 0.0
    last: float = -math.inf

    def aged_at(self, when: float, half_life: float) -> float:
        """Return ``aged`` at a later time; what was used in the future, by a clock set back, counts as used now."""
        return self.aged * 0.5 ** (max(0.0, when - self.last) / half_life) if self.aged else 0.0

    def again(self, at: float, uses: int, saved: float, half_life: float) -> Use:
        """Return what it is after more uses; none of them: it was added, and ``saved`` is what it starts with."""
        aged = self.aged_at(at, half_life) + saved
        return Use(self.uses + uses, self.saved + (saved if uses else 0.0), aged, max(at, self.last))


RULES: Mapping[str, Callable[[Use, float, float], float]] = {
    "aged": lambda use, now, half_life: use.aged_at(now, half_life),
    "nirvana": lambda use, now, half_life: use.saved,
    "lru": lambda use, now, half_life: min(use.last, now),
    "fifo": lambda use, now, half_life: 0.0,
}
"""Scores of an entry: (use, now, half-life) -> the lowest go first, among equals the ones added first."""


def least_worth(
    names: Iterable[Name], uses: Mapping[Name, Use], count: int, rule: str, now: float, half_life: float
) -> list[Name]:
    """Return the ``count`` entries to evict, of those given in the order in which they were added."""
    unused, score = Use(), RULES[rule]
    return sorted(names, key=lambda name: score(uses.get(name, unused), now, half_life))[:count]


class UseLog:
    """``uses.jsonl``: a line for every group of uses. What a crash loses of it is a few counts, no entry.

    Args:
        folder: Of the base.
        half_life: Seconds in which what was saved counts half.
    """

    def __init__(self, folder: Path, half_life: float) -> None:
        self._lines, self._half_life = JsonLines(folder / FILE_NAME), half_life

    def add(self, at: float, used: Mapping[Name, tuple[int, float]]) -> None:
        """Count, by entry, uses and calls saved; with no uses, what a new entry starts with.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        if used:
            self._lines.append([{"at": at, "used": [[*name, uses, saved] for name, (uses, saved) in used.items()]}])

    def is_long(self, entries: int) -> bool:
        """Whether :meth:`tidy` is due in a base of so many entries; not again at once, however many they are."""
        longest = min(_LONG + _BYTES_OF_A_COUNT * entries, _LONGEST)
        return self._lines.path.is_file() and self._lines.path.stat().st_size > longest

    def known(self) -> dict[Name, Use]:
        """Return what :meth:`read` does; a file that does not read is set aside with a warning, for counts only say
        which entries go first. Under the builder's lock.

        Raises:
            KnowledgeBaseError: The folder is not writable.
        """
        try:
            return self.read()
        except KnowledgeBaseError as error:
            aside = self._lines.path.with_suffix(".torn")
            with writing(self._lines.path):
                self._lines.path.replace(aside)
            warn(f"{str(error).splitlines()[0]}; it is {aside.name} now, and uses are counted anew")
            return {}

    def read(self) -> dict[Name, Use]:
        """Return what is known of every entry that was used or grown.

        Raises:
            KnowledgeBaseError: A line is damaged.
        """
        found: dict[Name, Use] = {}
        for line in self._lines.read():
            try:
                self._take(found, line)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise KnowledgeBaseError(
                    f"{self._lines.path}: a line that does not read: {error}",
                    expected="what was used",
                    fix="delete the file; counting begins again",
                ) from error
        return found

    def _take(self, found: dict[Name, Use], line: Mapping[str, Any]) -> None:
        for unit, slot, uses, saved, aged, last in line.get("known", ()):
            if not math.isfinite(saved + aged + last):
                raise ValueError("not a finite number")
            found[int(unit), int(slot)] = Use(int(uses), float(saved), float(aged), float(last))
        for unit, slot, uses, saved in line.get("used", ()):
            if not math.isfinite(line["at"] + saved):
                raise ValueError("not a finite number")
            known = found.get((unit, slot), Use())
            found[int(unit), int(slot)] = known.again(float(line["at"]), int(uses), float(saved), self._half_life)

    def tidy(self, kept: Collection[Name]) -> None:
        """Write one line, of the entries that there are.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; the file is as before.
        """
        known = {name: use for name, use in self.known().items() if name in kept}
        rows = [[*name, use.uses, use.saved, use.aged, use.last] for name, use in known.items()]
        self._lines.rewrite([{"known": rows}])
