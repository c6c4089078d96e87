"""Owns what redi claims of a pipeline, each claim a function that checks it and says what it found in a few words.

The claims go through ``redi.enable`` and the pipeline's own call wherever a base is involved. Two of them need numbers
that a base does not hold (it keeps float16) and ask the engine that ``enable`` runs on.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

import redi
from redi.calls import parameters_of
from redi.conditioning import capture
from redi.engine import Jump, run
from redi.identity import identity_of
from redi.knowledge_base import EntryBatch, KnowledgeBase, Manifest, NoiseBank
from redi.modular import bars_of, is_modular
from tiny import Watcher
from tiny_pipelines import FROM_PICTURE, MODULAR, TEXT_TO_ANYTHING, Tiny

PLAN = redi.Plan(8, key_step=3, value_steps=(6,))
PROMPTS = ("a red cat", "a big dog")
"""Of one length: where several samples are made of a prompt, PixArt and Sana give them each other's attention masks."""
OTHER = "a green house"
SEEDS = (11, 22)


class Case:
    """One pipeline, with what its claims share: bases, and the samples and trajectories of the untouched pipeline."""

    def __init__(self, tiny: Tiny, folder: Path) -> None:
        self.tiny, self.folder = tiny, folder
        self.bank = NoiseBank.draw(SEEDS, tiny.shape)
        self.built = functools.cache(tiny.build)
        self.base = functools.cache(self._base)
        self.full = functools.cache(self._full)

    def pipe(self, dtype: torch.dtype = torch.float32, guided: bool = True) -> Any:
        """Return the pipeline."""
        return self.built(dtype, guided or self.tiny.make_unguided is None)

    def arguments(self, guided: bool = True) -> dict[str, Any]:
        """Return what every call gets."""
        return {**self.tiny.call, **(self.tiny.guided if guided else self.tiny.unguided)}

    def noises(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the bank's noises in the dtype of the pipeline's latents, which may be wider than its networks'."""
        latents = identity_of(self.pipe(dtype), num_inference_steps=PLAN.num_inference_steps, **self.arguments())[
            "latents"
        ]
        return self.bank.latents.to(getattr(torch, latents["dtype"]))

    def start(self, images: Sequence[int] = (0, 1), dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Return arguments that let images start from these noises, and a picture be encoded the same each time."""
        places = list(images)
        if not self.tiny.takes_latents:
            return {"generator": [torch.Generator().manual_seed(SEEDS[place]) for place in places]}
        of_picture = [torch.Generator().manual_seed(0) for _ in places] if "image" in self.tiny.call else None
        return {"latents": self.noises(dtype)[places], "generator": of_picture}

    def call(self, prompts: Sequence[str] = PROMPTS, guided: bool = True, **more: Any) -> dict[str, Any]:
        """Return a whole call of the untouched pipeline that ends in latents."""
        texts = {
            name: [value] * len(prompts) if name.startswith("negative_prompt") else value
            for name, value in self.arguments(guided).items()
        }
        steps = {"num_inference_steps": PLAN.num_inference_steps, "output_type": "latent"}
        return {"prompt": list(prompts), **texts, **steps, **self.tiny.form, **more}

    def samples(self, output: Any) -> Any:
        """Return what a pipeline made."""
        return getattr(output, self.tiny.output) if self.tiny.output else output

    def _full(self, guided: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Watcher]:
        """Return what the pipeline makes of both prompts, each from its own noise, and what it passes through."""
        pipe, watcher, call = self.pipe(dtype, guided), Watcher(), self.call(guided=guided, **self.start(dtype=dtype))
        with run(pipe, watcher):
            samples = self.samples(pipe(**call))
        return samples, watcher

    def _base(self, guided: bool = True, dtype: torch.dtype = torch.float32) -> KnowledgeBase:
        """Return a base that holds these two trajectories."""
        _, watcher = self.full(guided, dtype)
        pipe, arguments = self.pipe(dtype, guided), self.arguments(guided)
        identity = identity_of(pipe, num_inference_steps=PLAN.num_inference_steps, **arguments)
        shared = self.tiny.takes_latents
        bank = self.bank if shared else NoiseBank.draw((), self.tiny.shape)
        references = {PLAN.key_step: bank.latents.clone()}
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "base"
        kind = {"kind": "shared" if shared else "independent", "seeds": list(bank.seeds)}
        base = KnowledgeBase.create(path, Manifest(PLAN, identity, self.tiny.shape, kind), bank, references)
        seen = {step: watcher.seen[step].float() for step in (PLAN.key_step, *PLAN.value_steps)}
        keys = {PLAN.key_step: seen.pop(PLAN.key_step)}
        base.add_unit(0, EntryBatch(list(PROMPTS), [0, 1] if shared else [-1, -1], list(SEEDS), keys, seen))
        return base

    def enabled(self, pipe: Any, guided: bool = True, limit: float = float("inf")) -> Any:
        """Enable the base on a pipeline."""
        dtype = next(network.dtype for network in denoisers(pipe).values())
        return redi.enable(pipe, self.base(guided, dtype), weights="nearest", max_distance=limit)


def denoisers(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the networks that are called in the loop."""
    names = ("controlnet", "unet", "transformer", "transformer_2")
    return {name: part for name in names if (part := pipe.components.get(name)) is not None}


@contextlib.contextmanager
def counted(pipe: Any) -> Iterator[list[str]]:
    """Count evaluations, under whatever redi puts on the networks: the list gets a name for each."""
    made: list[str] = []

    def counting(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def count(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return forward(*args, **kwargs)

        return count

    networks = denoisers(pipe)
    for name, network in networks.items():
        network.forward = counting(name, network.forward)
    try:
        yield made
    finally:
        for network in networks.values():
            del network.forward


def again(call: dict[str, Any]) -> dict[str, Any]:
    """Return the call, its generators as they were before the first time."""
    for generator in call.get("generator") or ():
        generator.manual_seed(generator.initial_seed())
    return call


def far(one: Tensor, other: Tensor) -> float:
    """Return the largest relative distance of a sample."""
    one, other = one.float().flatten(1), other.float().flatten(1)
    return float(((one - other).norm(dim=1) / other.norm(dim=1)).max())


_ROUNDING = 1e-5


def told(distance: float) -> str:
    """Say how far two samples are apart, in steps so coarse that every machine says the same."""
    bounds = {0.0: "bit-identical", _ROUNDING: "rounding", 1e-3: "to 0.1 %", 0.1: "to 10 %"}
    return next(words for bound, words in bounds.items() if distance <= bound)


def calls_are_counted(case: Case, guided: bool = True) -> str:
    """A jump from step 3 to 6 of 8 saves the calls of three steps, and the reports tell the calls that were made."""
    pipe = case.pipe(guided=guided)
    with counted(pipe) as of_full:
        pipe(**case.call(guided=guided, **case.start()))
    with case.enabled(pipe, guided), counted(pipe) as of_jump:
        pipe(**case.call(guided=guided, **case.start()))
        reports = redi.reports(pipe)
    assert len(of_full) * (5 - case.tiny.begins) == len(of_jump) * (8 - case.tiny.begins)
    assert [(each.calls, each.full_calls, each.jumped) for each in reports] == [(len(of_jump), len(of_full), True)] * 2
    return f"{len(of_jump)} of {len(of_full)}"


def an_exact_value_gives_the_full_sample(case: Case, guided: bool = True, dtype: torch.dtype = torch.float32) -> str:
    """Jumping to what the trajectory itself passes through ends where it ends."""
    full, own = case.full(guided, dtype)
    pipe, call = case.pipe(dtype, guided), case.call(guided=guided, **case.start(dtype=dtype))
    with run(pipe, Watcher(3, lambda latents: [Jump(6, row) for row in own.seen[6]])):
        jumped = case.samples(pipe(**again(call)))
    single_step = ("DDIM", "EulerDiscrete", "FlowMatchEuler")
    assert torch.equal(jumped, full) or not type(pipe.scheduler).__name__.startswith(single_step)
    distance = far(jumped, full)
    assert distance < 0.1
    return told(distance)


def a_prompt_of_the_base_is_retrieved(case: Case, guided: bool = True, dtype: torch.dtype = torch.float32) -> str:
    """An enabled pipeline takes what the base was built with, its noises too where it starts from noise alone, and ends
    as in full but for the base's float16."""
    full, _ = case.full(guided, dtype)
    pipe, start = case.pipe(dtype, guided), case.start(dtype=dtype)
    pictures = {name: value for name, value in case.tiny.call.items() if isinstance(value, Tensor)}
    if not pictures:
        seeds = _seeds_that_choose(case.bank, case.noises(dtype))
        start = {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    with case.enabled(pipe, guided):
        jumped = case.samples(pipe(prompt=list(PROMPTS), output_type="latent", **case.tiny.form, **start, **pictures))
        reports = redi.reports(pipe)
    found = [(each.jumped, each.noise_id, each.neighbors[0].prompt) for each in reports]
    noise_ids = [0, 1] if case.tiny.takes_latents else [None, None]
    assert found == list(zip([True, True], noise_ids, PROMPTS, strict=True))
    distance = far(jumped, full)
    assert distance < 0.1
    return told(distance)


def _seeds_that_choose(bank: NoiseBank, noises: Tensor) -> list[int]:
    """Return for each noise a seed whose generator chooses it, after the pipeline's own draw has moved it on."""
    chosen = {}
    for seed in range(32):
        generator = torch.Generator().manual_seed(seed)
        torch.randn_like(noises[:1], generator=generator)
        chosen[bank.choose(1, generator)[0]] = seed
    return [chosen[noise_id] for noise_id in range(len(bank))]


def abstaining_is_as_untouched(case: Case, guided: bool = True, dtype: torch.dtype = torch.float32) -> str:
    """Beyond the gate a call makes the calls of the untouched pipeline and its samples, bit for bit."""
    pipe = case.pipe(dtype, guided)
    call = case.call([OTHER, OTHER], guided, **case.start(dtype=dtype))
    with counted(pipe) as of_plain:
        plain = case.samples(pipe(**again(call)))
    with case.enabled(pipe, guided, limit=0.0), counted(pipe) as of_abstaining:
        abstaining = case.samples(pipe(**again(call)))
        assert [each.jumped for each in redi.reports(pipe)] == [False, False]
    assert torch.equal(plain, abstaining)
    assert of_plain == of_abstaining
    return "bit-identical"


def a_prompt_swapped_in_the_tail_is_the_second_prompts_tail(case: Case, guided: bool = True) -> str:
    """After a jump, a run whose tail gets the second prompt ends as that prompt's own run with the same jump."""
    pipe, second = case.pipe(guided=guided), [f"{prompt} in ice" for prompt in PROMPTS]
    _, own = case.full(guided)

    def jumped(prompts: Sequence[str], tail: Any = None) -> Tensor:
        with run(pipe, Watcher(3, lambda latents: [Jump(6, row) for row in own.seen[6]]), tail_conditioning=tail):
            return case.samples(pipe(**case.call(prompts, guided, **case.start())))

    swapped = jumped(PROMPTS, capture(pipe, **case.call(second, guided)))
    assert torch.equal(swapped, jumped(second))
    assert not torch.equal(swapped, jumped(PROMPTS))
    return "bit-identical"


def without_guidance(case: Case) -> str:
    """All of this holds without classifier-free guidance too."""
    calls = calls_are_counted(case, guided=False)
    an_exact_value_gives_the_full_sample(case, guided=False)
    abstaining_is_as_untouched(case, guided=False)
    a_prompt_swapped_in_the_tail_is_the_second_prompts_tail(case, guided=False)
    return calls


def every_sample_of_a_batch_is_decided_alone(case: Case) -> str:
    """In a batch the samples of the base's own prompts and noises jump, the others abstain, and each ends as alone; so
    do two samples of each of two prompts."""
    pipe, noises = case.pipe(), (0, 1, 0, 1)
    own, other = case.full()[1].seen[3], Watcher()
    with run(pipe, other):
        pipe(**case.call(PROMPTS[::-1], **case.start()))
    limit = float((own - other.seen[3]).flatten(1).norm(dim=1).min()) / 2
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    several = {case.tiny.several: 2}
    untouched = case.samples(pipe(**case.call(**case.start(noises), **several)))
    with case.enabled(pipe, limit=limit):
        together = case.samples(pipe(**case.call(prompts, **case.start(noises))))
        of_single = redi.reports(pipe)
        calls = [case.call([prompt], **case.start([place])) for prompt, place in zip(prompts, noises, strict=True)]
        alone = [case.samples(pipe(**call)) for call in calls]
        pairs = case.samples(pipe(**case.call(**case.start(noises), **several)))
        of_pairs = redi.reports(pipe)
    for reports in (of_single, of_pairs):
        assert [each.prompt for each in reports] == prompts
        assert [each.jumped for each in reports] == [True, False, False, True]
        assert [each.calls < each.full_calls for each in reports] == [True, False, False, True]
    assert far(pairs[1:3], untouched[1:3]) < 1e-4
    assert far(pairs[[0, 3]], together[[0, 3]]) < 1e-4
    distance = far(together, torch.cat(alone))
    assert distance < 1e-4
    # Whether a batch's sums are rounded as a picture's alone is the processor's: some are, bit for bit.
    return told(max(distance, _ROUNDING))


def bfloat16_runs_as_float32(case: Case) -> str:
    """In bfloat16 exact values give the full sample, a base's entries are found, and abstaining changes nothing."""
    abstaining_is_as_untouched(case, dtype=torch.bfloat16)
    a_prompt_of_the_base_is_retrieved(case, dtype=torch.bfloat16)
    return an_exact_value_gives_the_full_sample(case, dtype=torch.bfloat16)


def callbacks_see_the_whole_schedule(case: Case) -> str:
    """The user's callback is called once a step of the whole schedule, jump or not, as on the untouched pipeline."""
    pipe = case.pipe()
    name = next(each for each in ("callback_on_step_end", "callback", "") if each in parameters_of(pipe) or not each)
    if not name:
        return "it has none"
    seen: list[tuple[int, float, tuple[int, ...]]] = []

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, float(timestep), tuple(tensors["latents"].shape)))
        return {}

    def legacy(step: int, timestep: Any, latents: Tensor) -> None:
        seen.append((step, float(timestep), tuple(latents.shape)))

    call = case.call(**case.start(), **{name: legacy if name == "callback" else on_step_end})
    pipe(**again(call))
    untouched = seen.copy()
    seen.clear()
    with case.enabled(pipe):
        pipe(**again(call))
    assert seen == untouched
    assert [step for step, _, _ in seen] == list(range(8 - case.tiny.begins))
    return name


def every_output_type_is_the_pipelines_own(case: Case) -> str:
    """What comes back has the type, form and numbers of the untouched pipeline, also as a tuple."""
    pipe = case.pipe()
    types = ("latent", *case.tiny.output_types)
    flags = [{"return_dict": flag} for flag in (True, False)] if "return_dict" in parameters_of(pipe) else [{}]
    forms = [{"output_type": kind, **flag} for kind in types for flag in flags]
    calls = [case.call([OTHER], **case.start([0]), **form) for form in forms]
    plain = [pipe(**again(call)) for call in calls]
    with case.enabled(pipe, limit=0.0):
        for call, of_plain in zip(calls, plain, strict=True):
            assert same(pipe(**again(call)), of_plain)
    with case.enabled(pipe):
        for call, of_plain in zip(calls, plain, strict=True):
            assert alike(pipe(**again(call)), of_plain)
    return ", ".join(types)


def same(one: Any, other: Any) -> bool:
    """Say whether two outputs are equal to the last bit."""
    if not alike(one, other):
        return False
    if isinstance(one, Mapping):
        return all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return all(map(same, one, other))
    if one is None:
        return True
    return bool(np.array_equal(one, other))


def alike(one: Any, other: Any) -> bool:
    """Say whether two outputs have the same types and shapes."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if one is None:
        return True
    return (one.size if isinstance(one, Image) else one.shape) == (
        other.size if isinstance(other, Image) else other.shape
    )


def it_saves_and_loads_after_enable_and_disable(case: Case) -> str:
    """Saved enabled or disabled, it loads as the stock class, makes the same samples and fits the base."""
    pipe, call = copy.copy(case.pipe()), case.call(**case.start())
    with case.enabled(pipe):
        jumped = case.samples(pipe(**again(call)))
        pipe.save_pretrained(str(case.folder / "enabled"))
    loaded = _loaded(case, "enabled")
    with case.enabled(loaded):
        assert far(case.samples(loaded(**again(call))), jumped) < 1e-5
    pipe.save_pretrained(str(case.folder / "disabled"))
    assert far(case.samples(_loaded(case, "disabled")(**again(call))), case.full()[0]) < 1e-5
    return "yes"


def _loaded(case: Case, name: str) -> Any:
    """Return a saved pipeline, of the stock class."""
    stock = type(case.pipe())
    loaded = stock.from_pretrained(str(case.folder / name))
    if is_modular(loaded):
        loaded.load_components()
        loaded.update_components(guider=case.pipe().guider)  # which modular pipelines do not save
    assert type(loaded) is stock
    for bar in bars_of(loaded):
        bar.set_progress_bar_config(disable=True)
    return loaded


CLAIMS: Mapping[str, Callable[[Case], str]] = {
    "network calls": calls_are_counted,
    "exact value": an_exact_value_gives_the_full_sample,
    "own entry": a_prompt_of_the_base_is_retrieved,
    "abstaining": abstaining_is_as_untouched,
    "prompt swap": a_prompt_swapped_in_the_tail_is_the_second_prompts_tail,
    "without guidance": without_guidance,
    "batch": every_sample_of_a_batch_is_decided_alone,
    "bfloat16": bfloat16_runs_as_float32,
    "callback": callbacks_see_the_whole_schedule,
    "output types": every_output_type_is_the_pipelines_own,
    "save and load": it_saves_and_loads_after_enable_and_disable,
}
PIPELINES: Mapping[str, Tiny] = {**TEXT_TO_ANYTHING, **FROM_PICTURE, **MODULAR}


class Matrix:
    """Outcomes of every claim about every pipeline, each found out once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.case = functools.cache(self._case)
        self.outcome = functools.cache(self._outcome)

    def _case(self, pipeline: str) -> Case:
        folder = self.folder / pipeline.replace(" ", "-")
        folder.mkdir()
        return Case(PIPELINES[pipeline], folder)

    def row(self, pipeline: str) -> list[str]:
        """Return the outcomes of all claims about one pipeline."""
        return [self.outcome(pipeline, claim) for claim in CLAIMS]

    def _outcome(self, pipeline: str, claim: str) -> str:
        return CLAIMS[claim](self.case(pipeline))
