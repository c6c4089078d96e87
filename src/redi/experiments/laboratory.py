"""Owns running samplings on the bundled model, each once (kept on disk by its configuration); must not know tables."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import redi
from redi.attachment import quiet
from redi.errors import InputError
from redi.experiments.divergence import Divergence, measure
from redi.experiments.other_keys import distance_at_value, estimates, run_to
from redi.experiments.other_values import reuse_pictures
from redi.experiments.paths import latents_after
from redi.experiments.sampling import Recording, Sampling, Scale, Solver, fingerprint
from redi.generating import Generation, generate
from redi.knowledge_base import NoiseBank
from redi.metrics import Reference
from redi.miniature.drawing import draw
from redi.miniature.evaluation import bundled_evaluator
from redi.miniature.quality import Faithfulness, faithful
from redi.miniature.scenes import Description, captioned_scenes, captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline, miniature_folder
from redi.plan import Plan
from redi.results import write_file, write_json
from redi.retrieval.weights import LeastSquares, combiner

_BASE_SEED, _PROMPT_SEED, _REFERENCE_SEED = 3000, 4000, 5000
_SPARE = 32
_DIVERSE = 8
_ATTRIBUTES = ("objects", "background", "style", "all")


@dataclass(frozen=True, eq=False)
class Samples:
    """What one sampling made of one replicate's prompts.

    Attributes:
        features: (n, 128) of the evaluator.
        faithful: For each attribute (n): 1 right, 0 wrong, nan where the prompt does not say.
        pictures: (n, 64, 64, 3), 0 to 255.
        calls: (n) network calls of each picture.
        jumped: (n) whether it jumped.
        seconds: Of all pictures, everything but loading included.
    """

    features: NDArray[np.float64]
    faithful: dict[str, NDArray[np.float64]]
    pictures: NDArray[np.uint8]
    calls: NDArray[np.float64]
    jumped: NDArray[np.bool_]
    seconds: float

    def __len__(self) -> int:
        return len(self.calls)

    def first(self, count: int) -> Samples:
        """Return those of the first prompts; the seconds stay those of all."""
        faithful = {name: told[:count] for name, told in self.faithful.items()}
        return Samples(
            self.features[:count],
            faithful,
            self.pictures[:count],
            self.calls[:count],
            self.jumped[:count],
            self.seconds,
        )


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures (n, 64, 64, 3), 0 to 255, and the network calls (n) of each."""

    pictures: NDArray[np.uint8]
    calls: NDArray[np.float64]


@dataclass(frozen=True)
class Laboratory:
    """The bundled model, its prompts and what was run on it so far.

    Args:
        folder: Where bases and samples are kept; a run that is there is not run again.
        scale: How large the study is.
        device: As torch names it; by default the first that is there.
        batch_size: Pictures per pipeline call.
    """

    folder: Path
    scale: Scale
    device: str | None = None
    batch_size: int = 32

    def sample(self, sampling: Sampling, replicate: int) -> Samples:
        """Return the samples of one replicate, running them first if they are not there.

        Prompt i starts from noise i mod M of the replicate's bank, whatever the sampling: samplings are paired.
        """
        path = self._folder("samples", sampling, replicate) / "samples.npz"
        if not path.exists():
            prompts = list(self.prompts(replicate))
            pictures, calls, jumped, seconds = self._run(sampling, replicate, prompts, self.noise_ids(len(prompts)))
            self._keep(path, sampling, replicate, pictures, calls, jumped, seconds)
        return _samples(path)

    def going_on(self, sampling: Sampling, replicate: int, values: Tensor) -> Samples:
        """Return the samples of a replicate's first prompts (n) that go on from x_v (n, ...), which somebody estimated.

        What comes after a jump does not depend on how the run came to the key step, so only one step is run before it;
        the calls are those of the whole way. The seconds are not.

        Raises:
            InputError: The sampling does not jump.
        """
        if sampling.jump is None:
            raise InputError(f"{sampling.label} does not jump", expected="a sampling with a jump")
        jump, count = sampling.jump, len(values)
        told = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]
        path = self._folder("going-on", sampling, replicate) / f"{count}-{told}" / "samples.npz"
        if not path.exists():
            base = self.base(replace(jump.recording, share=1.0), replicate)
            prompts, pipe = list(self.prompts(replicate))[:count], self._pipeline(sampling.solver)
            soon = replace(jump, key_step=1)
            pictures, calls, jumped, seconds = run_to(values, pipe, base, prompts, self.noise_ids(count), soon)
            calls = [each + jump.key_step - 1 for each in calls]
            self._keep(path, sampling, replicate, pictures, calls, jumped, seconds)
        return _samples(path)

    def pictures(
        self,
        recording: Recording,
        replicate: int,
        name: str,
        make: Callable[[Any, redi.KnowledgeBase], list[Generation]],
    ) -> Pictures:
        """Return what ``make`` makes with a recording's pipeline and base, once by its name."""
        path = self._folder("pictures", recording, replicate) / f"{fingerprint(name)}.npz"
        if not path.exists():
            found = make(self._pipeline(recording.solver), self.base(recording, replicate))
            shown = np.stack([np.asarray(each.image.convert("RGB")) for each in found])
            _write_array(path, pictures=shown, calls=np.asarray([each.report.calls for each in found], np.float64))
        with np.load(path) as kept:
            return Pictures(kept["pictures"], kept["calls"])

    def at_value(self, sampling: Sampling, replicate: int) -> NDArray[np.float64]:
        """Return each prompt's distance (n) between the x_v that a jump goes to and that of its run in full."""
        path = self._folder("samples", sampling, replicate) / "at_value.npy"
        if sampling.jump is None:
            raise InputError(f"{sampling.label} does not jump", expected="a sampling with a jump")
        if not path.exists():
            jump, prompts = sampling.jump, list(self.prompts(replicate))
            base = self.base(jump.recording, replicate)
            pipe = self._pipeline(sampling.solver)
            found = distance_at_value(pipe, base, prompts, self.noise_ids(len(prompts)), jump)
            _write_array(path, np.asarray(found))
        return np.asarray(np.load(path), np.float64)

    def diversity(self, sampling: Sampling, replicate: int) -> NDArray[np.float64]:
        """Return how far apart the pictures of one prompt from all noises are, for every eighth prompt: the mean
        distance (n) of their features, of all pairs."""
        path = self._folder("samples", sampling, replicate) / "diversity.npy"
        if not path.exists():
            count = self.scale.noises
            prompts = [prompt for prompt in list(self.prompts(replicate))[::_DIVERSE] for _ in range(count)]
            pictures, *_ = self._run(sampling, replicate, prompts, list(range(count)) * (len(prompts) // count))
            features = bundled_evaluator().features(pictures).reshape(-1, count, 1, 128)
            apart = np.linalg.norm(features - features.transpose(0, 2, 1, 3), axis=3)
            _write_array(path, apart.sum((1, 2)) / (count * (count - 1)))
        return np.asarray(np.load(path), np.float64)

    def divergence(self, recording: Recording, replicate: int, queries: int) -> Divergence:
        """Return how the replicate's first queries and their nearest entries drift apart, measuring it first."""
        path = self._folder("divergences", recording, replicate) / f"{queries}.npz"
        if not path.exists():
            prompts = list(self.prompts(replicate))[:queries]
            base = self.base(recording, replicate)
            found = measure(self._pipeline(recording.solver), base, prompts, self.noise_ids(queries))
            _write_array(path, **asdict(found))
        with np.load(path) as kept:
            return Divergence(**kept)

    def latents(self, recording: Recording, replicate: int, steps: tuple[int, ...]) -> list[Tensor]:
        """Return the latents (n, 4, 16, 16) of the replicate's prompts after each of the steps, run from its noises."""
        path = self._folder("paths", recording.solver, replicate) / f"{'-'.join(map(str, steps))}.npz"
        if not path.exists():
            prompts, base = list(self.prompts(replicate)), self.base(recording, replicate)
            pipe = self._pipeline(recording.solver)
            found = latents_after(pipe, base, prompts, self.noise_ids(len(prompts)), steps, batch_size=self.batch_size)
            _write_array(path, latents=torch.stack(found).cpu().numpy())
        with np.load(path) as kept:
            return list(torch.from_numpy(kept["latents"]))

    def prompts(self, replicate: int) -> dict[str, Description]:
        """Return a replicate's held-out prompts and what they ask for."""
        return captions(self.scale.prompts, seed=_PROMPT_SEED + replicate, held_out=True)

    def twins(self, replicate: int) -> int:
        """Return how many held-out prompts the base holds word for word."""
        return len(self.prompts(replicate).keys() & set(self._base_prompts(replicate, self.scale.entries)))

    @cached_property
    def reference(self) -> Reference:
        """Features of held-out drawings."""
        path = self.folder / "reference" / f"{self.scale.reference}-{self._weights}.npy"
        if not path.exists():
            scenes = captioned_scenes(_REFERENCE_SEED, held_out=True)
            drawn = [draw(scene) for (_, scene), _ in zip(scenes, range(self.scale.reference), strict=False)]
            _write_array(path, bundled_evaluator().features(drawn))
        return Reference(np.load(path))

    def cost(self, samplings: list[Sampling]) -> int:
        """Return the network calls (of one picture each) that are still to be made for the samplings."""
        calls, bases = 0, set()
        for sampling in samplings:
            for replicate in range(self.scale.replicates):
                if (self._folder("samples", sampling, replicate) / "samples.npz").exists():
                    continue
                jump = sampling.jump
                steps = sampling.solver.steps - (jump.value_step - jump.key_step if jump else 0)
                calls += steps * self.scale.prompts
                recorded = jump and replace(jump.recording, values="float16")
                if recorded and not (self._folder("bases", recorded, replicate) / "manifest.json").exists():
                    bases.add((recorded, replicate))
        return calls + sum(
            round(recording.share * self.scale.entries) * max(recording.value_steps) for recording, _ in bases
        )

    def _run(
        self, sampling: Sampling, replicate: int, prompts: list[str], noise_ids: list[int]
    ) -> tuple[list[Image.Image], list[int], list[bool], float]:
        pipe = self._pipeline(sampling.solver)
        if sampling.jump is not None:
            jump = sampling.jump
            base = self.base(jump.recording, replicate)
            if jump.value == "picture":
                return reuse_pictures(pipe, base, prompts, noise_ids, jump)
            if jump.key != "trajectory":
                return run_to(estimates(pipe, base, prompts, noise_ids, jump), pipe, base, prompts, noise_ids, jump)
            started = time.perf_counter()
            made = generate(
                pipe,
                base,
                prompts,
                noise_ids=noise_ids,
                batch_size=self.batch_size,
                key_step=jump.key_step,
                value_step=jump.value_step,
                neighbors=jump.neighbors,
                weights=jump.weights,
                max_distance=float("inf") if jump.quantile is None else None,
                quantile=jump.quantile,
            )
            seconds = time.perf_counter() - started
            reports = [each.report for each in made]
            return [m.image for m in made], [r.calls for r in reports], [r.jumped for r in reports], seconds

        noises = NoiseBank.draw(self._noise_seeds(replicate), (4, 16, 16)).latents
        pictures: list[Image.Image] = []
        calls: list[int] = []
        counted = 0

        def count(*_: Any) -> None:
            nonlocal counted
            counted += 1

        hook = pipe.unet.register_forward_pre_hook(count)
        started = time.perf_counter()
        with quiet(pipe), torch.inference_mode():
            for start in tqdm(range(0, len(prompts), self.batch_size), desc=sampling.label, unit="batch"):
                batch = slice(start, start + self.batch_size)
                counted = 0
                pictures += pipe(
                    prompts[batch],
                    num_inference_steps=sampling.solver.steps,
                    guidance_scale=default_guidance(MINIATURE),
                    latents=noises[noise_ids[batch]].to(pipe.device),
                ).images
                calls += [counted] * len(prompts[batch])
        hook.remove()
        return pictures, calls, [False] * len(prompts), time.perf_counter() - started

    def _keep(
        self,
        path: Path,
        sampling: Sampling,
        replicate: int,
        pictures: list[Image.Image],
        calls: list[int],
        jumped: list[bool],
        seconds: float,
    ) -> None:
        evaluator = bundled_evaluator()
        asked = list(self.prompts(replicate).values())[: len(pictures)]
        found = [faithful(one, seen) for one, seen in zip(asked, evaluator.read(pictures), strict=True)]
        arrays = {
            "features": evaluator.features(pictures),
            "pictures": np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]),
            "calls": np.asarray(calls, np.float64),
            "jumped": np.asarray(jumped),
            "seconds": np.asarray(seconds),
            **{f"faithful_{name}": _shares(found, name) for name in _ATTRIBUTES},
        }
        write_json(path.parent / "sampling.json", {"label": sampling.label, "replicate": replicate, **asdict(sampling)})
        _write_array(path, **arrays)

    def base(self, recording: Recording, replicate: int) -> redi.KnowledgeBase:
        """Return a replicate's base of the recording, building it first, or its rest."""
        if recording.values != "float16":
            folder = self._folder("bases", recording, replicate)
            if not (folder / "manifest.json").exists():
                self.base(replace(recording, values="float16"), replicate).save_pretrained(
                    folder, values=recording.values
                )
            return redi.KnowledgeBase.open(folder)
        *more, last = recording.key_steps
        return redi.build(
            self._pipeline(recording.solver),
            self._base_prompts(replicate, round(recording.share * self.scale.entries), recording.styles),
            self._folder("bases", recording, replicate),
            plan=Plan(recording.solver.steps, last, recording.value_steps, tuple(more)),
            noises=self._noise_seeds(replicate),
            batch_size=self.batch_size,
            guidance_scale=default_guidance(MINIATURE),
            model_id=MINIATURE,
        )

    def _pipeline(self, solver: Solver) -> Any:
        pipe = load_pipeline(MINIATURE, scheduler=solver.name, device=self.device)
        if solver.settings:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **dict(solver.settings))
        return pipe

    def noise_ids(self, count: int) -> list[int]:
        return [place % self.scale.noises for place in range(count)]

    def _noise_seeds(self, replicate: int) -> list[int]:
        return [replicate * self.scale.noises + place for place in range(self.scale.noises)]

    def _base_prompts(self, replicate: int, count: int, styles: bool = True) -> list[str]:
        if styles:
            return list(captions(count, seed=_BASE_SEED + replicate, held_out=False))
        found = captions(2 * count + _SPARE, seed=_BASE_SEED + replicate, held_out=False)  # one in three has a style
        return [text for text, asked in found.items() if asked.style is None][:count]

    def _folder(self, kind: str, what: Sampling | Recording | Solver, replicate: int) -> Path:
        scale = (self.scale.prompts, self.scale.entries, self.scale.noises)
        rule = combiner(what.jump.weights) if isinstance(what, Sampling) and what.jump else LeastSquares()
        # A rule's constants are not in what a sampling says; other constants are another run.
        more = () if rule == LeastSquares() else (repr(rule),)
        return self.folder / kind / fingerprint(what, replicate, scale, self._weights, *more)

    @cached_property
    def _weights(self) -> str:
        """A short hash of the bundled model, so that samples of other weights are never taken for these."""
        digest = hashlib.sha256()
        for path in sorted(miniature_folder().rglob("*.safetensors")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]


def _samples(path: Path) -> Samples:
    with np.load(path) as kept:
        return Samples(
            kept["features"],
            {name: kept[f"faithful_{name}"] for name in _ATTRIBUTES},
            kept["pictures"],
            kept["calls"],
            kept["jumped"],
            float(kept["seconds"]),
        )


def _shares(found: list[Faithfulness], name: str) -> NDArray[np.float64]:
    return np.asarray([np.nan if (said := getattr(one, name)) is None else float(said) for one in found])


def _write_array(path: Path, array: NDArray[Any] | None = None, **arrays: NDArray[Any]) -> None:
    """Write an array, or several by name, whole or not at all."""
    from io import BytesIO

    buffer = BytesIO()
    if array is not None:
        np.save(buffer, array)
    else:
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue())
