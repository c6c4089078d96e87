"""Owns running samplings on a subject, each once (kept on disk by its configuration); must not know tables."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from redi.experiments.bills import (
    MINIATURE_SPEED,
    SD15_SPEED,
    Cost,
    Drift,
    Route,
    What,
    Work,
    calls_of,
    cost,
    ends_of,
)
from redi.experiments.chains import finished, run_chain
from redi.experiments.divergence import ITERATIONS, Divergence, measure
from redi.experiments.opened import Opened
from redi.experiments.other_keys import distance_at_value, embedded, estimates, run_by_similarity, run_to
from redi.experiments.other_values import reuse_pictures
from redi.experiments.paths import latents_after, starts
from redi.experiments.sample_files import (
    SHOWN,
    Pictures,
    Samples,
    as_array,
    joined,
    read_array,
    read_pictures,
    read_samples,
    reading,
    thumbnails,
    write_array,
)
from redi.experiments.sampling import CHAINED, Recording, Sampling, Scale, Solver, fingerprint
from redi.experiments.subjects import Miniature, Subject
from redi.experiments.wider_estimators import BANDWIDTHS
from redi.generating import Generation, generate
from redi.knowledge_base import NoiseBank
from redi.metrics import Reference
from redi.pipelines import MINIATURE
from redi.plan import Plan
from redi.results import write_json
from redi.retrieval.weights import JITTER, Kriging, LeastSquares, combiner

_KEPT = {"samples": "samples.npz", "diversity": "diversity.npy", "at_value": "at_value.npy"}
"""The file of a sampling that is there when it is whole."""
_PART, _PART_CALLS = 512, 30_000
"""Prompts that are run between two files, and calls, if one batch takes no more: what an interruption costs at most."""


@dataclass(frozen=True)
class Laboratory:
    """A model, its prompts and what was run on it so far.

    Args:
        folder: Where bases and samples are kept; a run that is there is not run again.
        scale: How large the study is.
        device: As torch names it; by default the first that is there.
        batch_size: Pictures per pipeline call.
        subject: The model, its prompts and their judge.
    """

    folder: Path
    scale: Scale
    device: str | None = None
    batch_size: int = 32
    subject: Subject = field(default_factory=Miniature)

    def sample(self, sampling: Sampling, replicate: int) -> Samples:
        """Return the samples of one replicate, running them first if they are not there.

        Prompt i starts from noise i mod M of the replicate's bank, whatever the sampling: samplings are paired.
        """
        path = self._file("samples", sampling, replicate)
        if not path.exists():
            asked = self.prompts(replicate)
            noise_ids, made = self.noise_ids(len(asked)), []
            batches = max(1, min(_PART, _PART_CALLS // calls_of(sampling)) // self.batch_size)
            for start in range(0, len(asked), batches * self.batch_size):
                part = slice(start, start + batches * self.batch_size)
                some = dict(list(asked.items())[part])
                of_part = path.with_name(f"part-{start}-{len(some)}.npz")
                if not of_part.exists():
                    run = self._run(sampling, replicate, list(some), noise_ids[part], noise_ids[:start])
                    self._looked_at(some, *run).write(of_part)
                made.append(read_samples(of_part))
            self._keep(path, sampling, replicate, joined(made))
        return read_samples(path)

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
            asked, pipe = dict(list(self.prompts(replicate).items())[:count]), self._pipeline(sampling.solver)
            soon = replace(jump, key_step=1)
            pictures, calls, jumped, seconds = run_to(values, pipe, base, list(asked), self.noise_ids(count), soon)
            calls = [each + jump.key_step - 1 for each in calls]
            self._keep(path, sampling, replicate, self._looked_at(asked, pictures, calls, jumped, seconds))
        return read_samples(path)

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
            shown = as_array([each.image for each in found])
            write_array(path, pictures=shown, calls=np.asarray([each.report.calls for each in found], np.float64))
        return read_pictures(path)

    def has(self, sampling: Sampling) -> bool:
        """Tell whether the first replicate's samples are there."""
        return self._file("samples", sampling, 0).exists()

    def at_value(self, sampling: Sampling, replicate: int) -> NDArray[np.float64]:
        """Return each prompt's distance (n) between the x_v that a jump goes to and that of its run in full."""
        path = self._file("at_value", sampling, replicate)
        if sampling.jump is None:
            raise InputError(f"{sampling.label} does not jump", expected="a sampling with a jump")
        if not path.exists():
            jump, prompts = sampling.jump, list(self.prompts(replicate))
            base = self.base(jump.recording, replicate)
            pipe = self._pipeline(sampling.solver)
            found = distance_at_value(pipe, base, prompts, self.noise_ids(len(prompts)), jump)
            write_array(path, np.asarray(found))
        return read_array(path)

    def diversity(self, sampling: Sampling, replicate: int) -> NDArray[np.float64]:
        """Return how far apart the pictures of one prompt from all noises are, for some prompts: the mean distance (n)
        of their features, of all pairs."""
        path = self._file("diversity", sampling, replicate)
        if not path.exists():
            places, asked = list(self.scale.diverse), list(self.prompts(replicate))
            own = self.sample(sampling, replicate).features[places]
            others = [(place, noise) for place in places for noise in self.scale.other_noises(place)]
            prompts, noise_ids = [asked[place] for place, _ in others], [noise for _, noise in others]
            pictures, *_ = self._run(sampling, replicate, prompts, noise_ids)
            rest = self.subject.features(pictures).reshape(len(places), -1, own.shape[1])
            features = np.concatenate([own[:, None], rest], 1)
            apart = np.linalg.norm(features[:, :, None] - features[:, None], axis=3)
            count = self.scale.noises
            write_array(path, apart.sum((1, 2)) / (count * (count - 1)))
        return read_array(path)

    def divergence(self, recording: Recording, replicate: int, queries: int) -> Divergence:
        """Return how the replicate's first queries and their nearest entries drift apart, measuring it first."""
        path = self._drift(recording, replicate, queries)
        if not path.exists():
            prompts = list(self.prompts(replicate))[:queries]
            base = self.base(recording, replicate)
            found = measure(self._pipeline(recording.solver), base, prompts, self.noise_ids(queries))
            write_array(path, **asdict(found))
        with reading(path) as kept:
            return Divergence(**kept)

    def _drift(self, recording: Recording, replicate: int, queries: int) -> Path:
        return self._folder("divergences", recording, replicate) / f"{queries}-{ITERATIONS}.npz"

    def latents(self, recording: Recording, replicate: int, steps: tuple[int, ...]) -> list[Tensor]:
        """Return the latents (n, ...) of the replicate's prompts after each of the steps, run from its noises."""
        path = self._route(Route(recording.solver, steps), replicate)
        if not path.exists():
            prompts, base = list(self.prompts(replicate)), self.base(recording, replicate)
            pipe = self._pipeline(recording.solver)
            found = latents_after(pipe, base, prompts, self.noise_ids(len(prompts)), steps, batch_size=self.batch_size)
            write_array(path, latents=torch.stack(found).cpu().numpy())
        with reading(path) as kept:
            return list(torch.from_numpy(kept["latents"]))

    def _route(self, route: Route, replicate: int) -> Path:
        return self._folder("paths", route.solver, replicate) / f"{'-'.join(map(str, route.steps))}.npz"

    def _finished(self, recording: Recording, replicate: int) -> Tensor:
        """Return the latents (n, ...) in which the runs of the entries that chains look at end."""
        path = self._ends(recording, replicate)
        if not path.exists():
            found = finished(self._pipeline(recording.solver), self.base(recording, replicate))
            write_array(path, latents=found.half().numpy())
        with reading(path) as kept:
            return torch.from_numpy(kept["latents"])

    def _ends(self, recording: Recording, replicate: int) -> Path:
        return self._folder("ends", recording, replicate) / f"{CHAINED}.npz"

    def prompts(self, replicate: int) -> Mapping[str, Any]:
        """Return a replicate's held-out prompts and what they ask for."""
        return self.subject.prompts(replicate, self.scale.prompts)

    def twins(self, replicate: int) -> int:
        """Return how many held-out prompts the base holds word for word."""
        return len(self.prompts(replicate).keys() & set(self.subject.base_prompts(replicate, self.scale.entries, True)))

    @cached_property
    def _opened(self) -> Opened:
        return Opened(self.subject, self.device)

    @cached_property
    def reference(self) -> Reference:
        """Features of real pictures."""
        name = "-".join(filter(None, (str(self.scale.reference), self.subject.weights, self.subject.eyes)))
        path = self.folder / "reference" / f"{name}.npy"
        if not path.exists():
            found, some = [], self.subject.reference(self.scale.reference)
            while part := list(itertools.islice(some, _PART)):
                found.append(self.subject.features(part))
            write_array(path, np.concatenate(found))
        return Reference(read_array(path))

    def cost(self, work: Work) -> Cost:
        """Return what is still to be run of some work; of a half-built base, its rest."""
        return cost(work, self.scale, there=self._there)

    def _there(self, kind: str, what: What, replicate: int) -> int:
        """Return how much of it there is, as :func:`redi.experiments.bills.cost` asks."""
        if isinstance(what, Sampling):
            whole = self.scale.spread if kind == "diversity" else self.scale.prompts
            return whole if self._file(kind, what, replicate).exists() else 0
        if isinstance(what, Route):
            return self.scale.prompts if self._route(what, replicate).exists() else 0
        if isinstance(what, Drift):
            return what.calls if self._drift(what.recording, replicate, what.queries).exists() else 0
        if kind == "ends":
            return ends_of(what, self.scale) if self._ends(what, replicate).exists() else 0
        folder = self._folder("bases", what, replicate)
        return len(redi.KnowledgeBase.open(folder)) if (folder / "manifest.json").exists() else 0

    def bill(self, work: Work) -> str:
        """Return :meth:`cost` in words, and the hours that calls are reckoned to take."""
        found = self.cost(work)
        speed = MINIATURE_SPEED if self.subject.model == MINIATURE else SD15_SPEED
        kept = found.gigabytes(int(np.prod(self.subject.latent_shape)))
        return (
            f"{found.calls:,} network calls of one picture to make, {kept:.2g} GB of bases to keep; "
            f"{found.hours(speed):.2g} hours at {speed.calls:.0f} calls a second ({speed.told})"
        )

    def _run(
        self, sampling: Sampling, replicate: int, prompts: list[str], noise_ids: list[int], before: Sequence[int] = ()
    ) -> tuple[list[Image.Image], list[int], list[bool], float]:
        pipe = self._pipeline(sampling.solver)
        if sampling.chain is not None:
            base = self.base(sampling.chain.recording, replicate)
            ends = self._finished(sampling.chain.recording, replicate)
            return run_chain(pipe, base, ends, prompts, noise_ids, sampling.chain)
        if sampling.jump is not None:
            jump = sampling.jump
            base = self.base(jump.recording, replicate)
            if jump.value == "picture":
                return reuse_pictures(pipe, base, prompts, noise_ids, jump)
            if jump.thresholds:
                return run_by_similarity(pipe, base, prompts, noise_ids, jump)
            if jump.key != "trajectory":
                values = estimates(pipe, base, prompts, noise_ids, jump, before=before)
                return run_to(values, pipe, base, prompts, noise_ids, jump)
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

        noises = NoiseBank.draw(self._noise_seeds(replicate), self.subject.latent_shape)
        pictures: list[Image.Image] = []
        calls: list[int] = []
        counted = 0

        def count(*_: Any) -> None:
            nonlocal counted
            counted += 1

        started = time.perf_counter()
        with pipe.unet.register_forward_pre_hook(count), quiet(pipe), torch.inference_mode():
            for start in tqdm(range(0, len(prompts), self.batch_size), desc=sampling.label, unit="batch"):
                batch = slice(start, start + self.batch_size)
                counted = 0
                pictures += pipe(
                    prompts[batch],
                    num_inference_steps=sampling.solver.steps,
                    **sampling.solver.timesteps,
                    guidance_scale=self.subject.guidance,
                    latents=starts(pipe, noises, noise_ids[batch]),
                ).images
                calls += [counted] * len(prompts[batch])
        return pictures, calls, [False] * len(prompts), time.perf_counter() - started

    def _looked_at(
        self,
        asked: Mapping[str, Any],
        pictures: Sequence[Image.Image],
        calls: Sequence[int],
        jumped: Sequence[bool],
        seconds: float,
    ) -> Samples:
        return Samples(
            self.subject.features(pictures),
            self.subject.judge(asked, pictures),
            thumbnails(pictures),
            np.asarray(calls, np.float64),
            np.asarray(jumped),
            seconds,
            as_array(pictures[:SHOWN]),
        )

    def _keep(self, path: Path, sampling: Sampling, replicate: int, samples: Samples) -> None:
        write_json(path.parent / "sampling.json", {"label": sampling.label, "replicate": replicate, **asdict(sampling)})
        samples.write(path)
        for part in path.parent.glob("part-*.npz"):
            part.unlink()

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
            self.subject.base_prompts(replicate, round(recording.share * self.scale.entries), recording.styles),
            self._folder("bases", recording, replicate),
            plan=Plan(recording.solver.steps, last, recording.value_steps, tuple(more)),
            noises=self._noise_seeds(replicate),
            batch_size=self.batch_size,
            guidance_scale=self.subject.guidance,
            model_id=self.subject.model,
            **recording.solver.timesteps,
        )

    def scheduler(self, solver: Solver) -> Any:
        """Return a scheduler as the solver's runs have it before their first step."""
        return self._opened.scheduler(solver)

    def _pipeline(self, solver: Solver) -> Any:
        return self._opened.pipeline(solver)

    def texts(self, recording: Recording, replicate: int) -> tuple[Tensor, Tensor]:
        """Return the pipeline's own embeddings (n, d) of the base's prompts and of the replicate's."""
        pipe, base = self._pipeline(recording.solver), self.base(recording, replicate)
        return embedded(pipe, base.prompts(range(len(base)))), embedded(pipe, list(self.prompts(replicate)))

    def noise_ids(self, count: int) -> list[int]:
        return [self.scale.noise_of(place) for place in range(count)]

    def _noise_seeds(self, replicate: int) -> list[int]:
        return [replicate * self.scale.noises + place for place in range(self.scale.noises)]

    def _file(self, kind: str, sampling: Sampling, replicate: int) -> Path:
        return self._folder("samples", sampling, replicate) / _KEPT[kind]

    def _folder(self, kind: str, what: Sampling | Recording | Solver, replicate: int) -> Path:
        scale = (self.scale.prompts, self.scale.entries, self.scale.noises)
        rule = combiner(what.jump.weights) if isinstance(what, Sampling) and what.jump else LeastSquares()
        # A rule's constants are not in what a sampling says; other constants are another run.
        more: tuple[str, ...] = () if rule == LeastSquares() else (repr(rule),)
        if isinstance(what, Sampling) and what.chain:
            more = (repr(BANDWIDTHS), repr(CHAINED), repr(Kriging()), repr(JITTER))
        eyes = (self.subject.eyes,) if self.subject.eyes and kind in ("samples", "going-on") else ()
        return self.folder / kind / fingerprint(what, replicate, scale, self.subject.weights, *eyes, *more)
