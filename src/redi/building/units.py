"""Owns dividing a build into units of work, each one durable commit; must not know pipelines or knowledge bases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from redi.errors import InputError


@dataclass(frozen=True)
class Unit:
    """Consecutive entries that are recorded and committed together: n prompts, noise ids (-1: own noise), seeds."""

    number: int
    prompts: tuple[str, ...]
    noise_ids: tuple[int, ...]
    seeds: tuple[int, ...]

    def batches(self, batch_size: int) -> Iterator[slice]:
        """Yield the places of consecutive batches; a batch never holds entries of two units."""
        for start in range(0, len(self.prompts), batch_size):
            yield slice(start, min(start + batch_size, len(self.prompts)))


@dataclass(frozen=True)
class Work:
    """All entries of a build, in order: one for each prompt.

    Args:
        prompts: The prompts.
        seeds: Seeds of the noise bank (M): prompt i starts from noise i mod M. Empty: every entry has its own noise,
            of seed i.
        unit_size: Entries in a unit; the last one may have fewer.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    unit_size: int

    def __len__(self) -> int:
        """Return the number of units."""
        return -(-len(self.prompts) // self.unit_size)

    def __iter__(self) -> Iterator[Unit]:
        return map(self.unit, range(len(self)))

    def unit(self, number: int) -> Unit:
        """Return one unit; the same number always means the same entries."""
        start = number * self.unit_size
        places = range(start, min(start + self.unit_size, len(self.prompts)))
        prompts = self.prompts[places.start : places.stop]
        if not self.seeds:
            return Unit(number, prompts, (-1,) * len(places), tuple(places))
        noise_ids = tuple(place % len(self.seeds) for place in places)
        return Unit(number, prompts, noise_ids, tuple(self.seeds[each] for each in noise_ids))


def default_unit_size(prompts: int, batch_size: int) -> int:
    """Return the entries in a unit of a build: whole batches, as few as hold a 64th of the prompts, 64 to 256 of them.

    A kill costs up to a unit, and every unit costs a commit: a small build is cut fine, a large one is not cut into
    thousands of commits.
    """
    least = min(max(prompts // 64, 64), 256)
    return batch_size * -(-least // batch_size)


def digest_of(prompts: Sequence[str]) -> str:
    """Return the SHA-256 of prompts in their order.

    Raises:
        InputError: A prompt cannot be written as UTF-8.
    """
    digest = sha256()
    for number, prompt in enumerate(prompts):
        try:
            data = prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"prompt {number}, {prompt!r}: {error}", expected="text that UTF-8 can hold") from error
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
