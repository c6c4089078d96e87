"""Owns what samplings cost before they are run: network calls, and latents that are kept; must not know how they run.

As a program it writes ``docs/experiments.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from redi.experiments.sampling import PAPER, SMALL, Recording, Sampling, Scale
from redi.experiments.studies import STUDIES, Study

There = Callable[[str, Sampling | Recording, int], bool]

_SD15_LATENT, _MINIATURE_LATENT = 4 * 64 * 64, 4 * 16 * 16
_BYTES = 2
_SD15_SPEED = 20.0
"""Network calls of one 512x512 picture in a second, with guidance, in float16: assumed, as of one A100."""


@dataclass(frozen=True)
class Cost:
    """What a run still takes.

    Attributes:
        calls: Network calls of one picture.
        latents: Keys and values that bases will keep.
    """

    calls: int
    latents: int

    def gigabytes(self, numbers: int) -> float:
        """Return the gigabytes of the bases, of so many numbers a latent, in float16."""
        return self.latents * numbers * _BYTES / 1e9


def cost(
    samplings: Sequence[Sampling],
    scale: Scale,
    *,
    diversity: bool = False,
    there: There = lambda kind, what, replicate: False,
) -> Cost:
    """Return what the samplings and the bases that they need take at a scale.

    Args:
        samplings: Each is run once for every replicate, however often it is named.
        scale: How large the study is.
        diversity: Whether that is measured too.
        there: Whether a replicate's "samples" or "diversity" of a sampling, or "bases" of a recording, are there.
    """
    calls, bases = 0, set()
    for sampling in dict.fromkeys(samplings):
        for replicate in range(scale.replicates):
            jump = sampling.jump
            pictures = scale.prompts * (not there("samples", sampling, replicate))
            pictures += scale.spread * (diversity and not there("diversity", sampling, replicate))
            if not pictures:
                continue
            calls += pictures * (sampling.solver.steps - (jump.value_step - jump.key_step if jump else 0))
            recorded = jump and replace(jump.recording, values="float16")
            if recorded and not there("bases", recorded, replicate):
                bases.add((recorded, replicate))
    latents = 0
    for recording, _ in bases:
        entries = round(recording.share * scale.entries)
        calls += entries * max(recording.value_steps)
        latents += entries * (len(recording.key_steps) + len(recording.value_steps))
    return Cost(calls, latents)


def page() -> str:
    """Return ``docs/experiments.md``: how to run the studies, and what each costs when nothing is there yet."""
    return _PAGE.format(
        prompts=PAPER.prompts,
        entries=PAPER.entries,
        replicates=PAPER.replicates,
        reference=PAPER.reference,
        speed=_SD15_SPEED,
        rows="\n".join(_row(study) for study in STUDIES.values()),
    )


def _row(study: Study) -> str:
    small, paper = (cost([study.full, *study.samplings], scale, diversity=True) for scale in (SMALL, PAPER))
    cells = (
        f"`{study.name}`",
        f"{small.calls:,}",
        f"{small.gigabytes(_MINIATURE_LATENT):.2g}",
        f"{paper.calls:,}",
        f"{paper.gigabytes(_SD15_LATENT):.0f}",
        f"{paper.calls / _SD15_SPEED / 3600:.0f}",
    )
    return f"| {' | '.join(cells)} |"


_PAGE = """# Running the experiments

Written by `make docs`; every number here is computed from the studies' own definitions.

`redi experiments run <name>` makes the bases and pictures of a study that are not there yet, keeps each under its
configuration in `runs/experiments`, and writes figures to `results/<scale>/<name>.json`; `redi experiments report`
writes [the page of results](results.md) from them. Interrupt a run at any time: the same command goes on.

- `--scale toy` takes minutes on the bundled model and is what the tests run.
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
whose black pictures would be measured like others. `--scale small` with `--model` and `--coco` is a trial of a day
instead of weeks. What asks the bundled evaluator for right and wrong (`styles`) needs the bundled model; the gate's
study then tells the loss only.

## What it costs

Network calls are of one picture, with nothing there yet; studies share bases and samples, so together they cost
less. Gigabytes are those of the bases. Hours are computed, not measured: {speed:.0f} calls a second, as of one A100 at
512x512 with guidance in float16. A run prints what is left of it before it starts.

| study | small: calls | GB | paper: calls | GB | hours |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}
"""


if __name__ == "__main__":
    print(page(), end="")
