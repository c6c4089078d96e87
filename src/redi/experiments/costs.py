"""Owns what experiments cost in words: ``docs/experiments.md``, which it writes as a program, and what the paper's
scale takes; must not know how they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from redi.experiments.bills import DIVERSE_CALLS, MINIATURE_SPEED, SD15_SPEED
from redi.experiments.runner import EXPERIMENTS, OF_THE_MINIATURE
from redi.experiments.sampling import PAPER, SMALL, TOY, Scale
from redi.experiments.works import WORKS, total

_SD15_LATENT, _MINIATURE_LATENT = 4 * 64 * 64, 4 * 16 * 16


class _Statistics(NamedTuple):
    """CPU seconds of one distance of all pictures, measured on one core: of n x d features."""

    frechet: float
    kernel: float


_STATISTICS = {SMALL: _Statistics(0.003, 0.006), PAPER: _Statistics(5.2, 3.3)}
"""At small 600 x 128; at paper 12,000 x 2,048 (FID's Inception)."""


def page() -> str:
    """Return ``docs/experiments.md``: how to run the studies, and what each costs when nothing is there yet."""
    small, of_paper = list(EXPERIMENTS), [name for name in EXPERIMENTS if name not in OF_THE_MINIATURE]
    return _PAGE.format(
        diverse=DIVERSE_CALLS,
        prompts=PAPER.prompts,
        entries=PAPER.entries,
        replicates=PAPER.replicates,
        reference=PAPER.reference,
        paper=SD15_SPEED,
        small=MINIATURE_SPEED,
        all_small=total([WORKS[name](SMALL) for name in small], SMALL).hours(MINIATURE_SPEED),
        frechet=_STATISTICS[PAPER].frechet,
        kernel=_STATISTICS[PAPER].kernel,
        resamples=PAPER.resamples,
        toy_prompts=TOY.prompts,
        rows="\n".join(_row(f"`{name}`", [name], [name] if name in of_paper else []) for name in EXPERIMENTS),
        total=_row("all together", small, of_paper),
        miniature=" and ".join(f"`{name}`" for name in OF_THE_MINIATURE),
    )


def at_paper(names: Sequence[str]) -> str:
    """Return in words what some experiments take together at the paper's scale."""
    names = [name for name in names if name not in OF_THE_MINIATURE]
    found = total([WORKS[name](PAPER) for name in names], PAPER)
    return (
        f"{found.calls:,} network calls of one picture ({found.hours(SD15_SPEED):.0f} hours at {SD15_SPEED.calls:.0f} "
        f"a second, {SD15_SPEED.told}), {_statistics(names, PAPER):.0f} hours of one CPU core for intervals, and "
        f"{found.gigabytes(_SD15_LATENT):.0f} GB"
    )


def _statistics(names: Sequence[str], scale: Scale) -> float:
    """Return the hours of one core that resampled distances take."""
    works, seconds = [WORKS[name](scale) for name in names], _STATISTICS[scale]
    return sum(work.frechets * seconds.frechet + work.kernels * seconds.kernel for work in works) / 3600


def _row(title: str, of_small: Sequence[str], of_paper: Sequence[str]) -> str:
    cells = [title]
    for names, scale, numbers, speed in (
        (of_small, SMALL, _MINIATURE_LATENT, MINIATURE_SPEED),
        (of_paper, PAPER, _SD15_LATENT, SD15_SPEED),
    ):
        found = total([WORKS[name](scale) for name in names], scale)
        hours = (found.hours(speed), _statistics(names, scale))
        some = (f"{found.calls:,}", _short(found.gigabytes(numbers)), *map(_short, hours))
        cells += some if names else ["—"] * len(some)
    return f"| {' | '.join(cells)} |"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or number == 0 else f"{number:.2g}"


_PAGE = """# Running the experiments

Written by `make docs`; every number here is computed from the studies' own definitions.

`redi experiments run <name>` makes the bases and pictures of a study that are not there yet, keeps each under its
configuration in `runs/experiments`, and writes figures to `results/<scale>/<name>.json`; `redi experiments report`
writes [the page of results](results.md) from them. Interrupt a run at any time: the same command goes on.

- `--scale toy` takes minutes for each study on the bundled model: {toy_prompts} prompts, fewer for studies of many
  rows, and as many as the gate's halves, the bank's rule and the groups of breaks need.
- `--scale small` is the full study on the bundled model; its results are in this repository. Nothing is downloaded.
- `--scale paper` is the paper's setting: Stable Diffusion 1.5 on COCO 2014, {entries:,} entries, {prompts:,} held-out
  captions, {reference:,} real pictures, here with {replicates} banks instead of one. It takes a GPU and four things
  that redi does not bring:

| what | where from | option |
| --- | --- | --- |
| the model, as a folder or hub id | Stable Diffusion 1.5 in Diffusers' layout | `--model ./stable-diffusion-v1-5` |
| captions and pictures | cocodataset.org: `annotations_trainval2014.zip`, `val2014.zip`, unpacked | `--coco ./coco` |
| features of distances | FID's Inception as TorchScript, or a folder of CLIP or DINOv2 | `--features ./inception.pt` |
| CLIP scores | a folder of CLIP as Transformers saves it | `--features ./clip-vit-large-patch14` |
| LPIPS, if you like | VGG16 with its weights as TorchScript, as StyleGAN uses it | `--features ./vgg16.pt` |

```console
redi experiments run table2 --scale paper --model ./stable-diffusion-v1-5 --coco ./coco \\
  --features ./inception.pt --features ./clip-vit-large-patch14
redi experiments report --scale paper --out paper-results.md
```

The first `--features` gives the distances; the first of them that is CLIP gives the scores. With `--features` alone
the bundled model is measured in those features too. The model runs in float16 on a GPU, without its safety checker,
whose black pictures would be measured like others. `--scale small` with `--model` and `--coco` is a trial of
days instead of weeks. What asks the bundled evaluator for right and wrong ({miniature}) needs the
bundled model; the gate's study then tells the loss only.

## What it costs

Network calls are of one picture, with nothing there yet, as they are counted (PNDM and Heun take more than their
steps) and at most (as if every gate abstained); gigabytes are those of the bases. Studies share bases and samples: the
last row takes each once. A run prints what is left of its own before it starts, a base that is half built with its
rest; where it says "at most", its own pictures are counted though they may be there (of `bank` and `breaks` also the
bases that no other study has).

Hours are computed, not measured: at `small` from {small.calls:.0f} calls a second, {small.told} (the
kept results ran on one core, or beside other work, and took longer), so that all of `small` takes {all_small:.0f} hours
on two cores; at `paper` from {paper.calls:.0f} calls a second, {paper.told} with guidance in
float16. A derivative of `bound` is counted as two calls.

CPU hours come on top, of one core: a table's distances between distributions are resampled {resamples} times for each
row, and for both sides of each claim. At the paper's scale one Frechet distance of all pictures takes {frechet} seconds
in Inception's 2,048 features and one kernel distance {kernel} seconds (both measured); features of fewer numbers take
less. Decoding and reading pictures is not counted.

Diversity is not measured at the paper's scale: its banks have one noise, and it is of one prompt's pictures from
several; nor is it of runs of more than {diverse} calls. {miniature} are of the bundled model only.

| study | small: calls | GB | hours | CPU hours | paper: calls | GB | hours | CPU hours |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}
{total}
"""


if __name__ == "__main__":
    print(page(), end="")
