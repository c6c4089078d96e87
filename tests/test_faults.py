"""Claims about what is left, and what is said, when something goes wrong in an enabled pipeline."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import redi
from ground import NEW, NOISES, PLAN, Ground, call
from recording import full_images, record
from redi.errors import KnowledgeBaseError, RediError, RediWarning, UnsupportedError
from redi.knowledge_base import entries
from redi.retrieval import Nearest
from tiny import scheduler


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


class Failing:
    """Raises ``error`` at one place of a run: in the network's or the callback's n-th turn, or in the weights."""

    default_neighbors = 1

    def __init__(self, place: str, turn: int, error: BaseException) -> None:
        self.place, self.turn, self.error = place, turn, error
        self.turns, self.armed = 0, False

    def _take_turn(self, place: str) -> None:
        if self.armed and place == self.place:
            self.turns += 1
            if self.turns == self.turn:
                raise self.error

    @contextmanager
    def in_network(self, pipe: Any) -> Iterator[None]:
        hook = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: self._take_turn("network"))
        try:
            yield
        finally:
            hook.remove()

    def callback(self, pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self._take_turn("callback")
        return tensors

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Any:
        self._take_turn("retrieval")
        return Nearest().combine(query, keys, values)


def attributes(pipe: Any) -> list[dict[str, int]]:
    """Return what every object of the pipeline holds: the names, and which object of a method stands under them."""
    owners = [pipe, *(part for part in pipe.components.values() if hasattr(part, "__dict__"))]
    modules = [module for owner in owners if isinstance(owner, torch.nn.Module) for module in owner.modules()]
    return [{name: id(value) * callable(value) for name, value in vars(each).items()} for each in (*owners, *modules)]


def looks_stock(pipe: Any) -> bool:
    """Say whether scheduler and networks have the methods of their classes, and nothing is called after redi."""
    held = [name for names in attributes(pipe) for name in names]
    methods = [pipe.scheduler.step, pipe.scheduler.set_timesteps, pipe.unet.forward, pipe.prepare_latents]
    own = [getattr(type(method.__self__), method.__name__) is method.__func__ for method in methods]
    return all(own) and not any("redi" in name for name in held)


PLACES = [("network", 2), ("network", 5), ("callback", 1), ("callback", 5), ("callback", 11), ("retrieval", 1)]
"""In the head, in the tail; in the head, in a ghost step, in the tail; at the key step."""


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize(("place", "turn"), PLACES)
def test_nothing_is_left_wherever_a_run_breaks(ground: Ground, place: str, turn: int, error: BaseException) -> None:
    pipe = ground.pipe("pndm")
    plain = full_images(pipe, [NEW], NOISES[:1], 12)
    failing = Failing(place, turn, error)
    redi.enable(pipe, ground.base("pndm"), weights=failing, max_distance=1e9)
    wanted = call(pipe, NEW, latents=NOISES[:1])
    before = attributes(pipe)
    failing.armed = True
    with failing.in_network(pipe), pytest.raises(type(error)):
        call(pipe, NEW, latents=NOISES[:1], callback_on_step_end=failing.callback)

    assert looks_stock(pipe)
    assert [set(now) for now in attributes(pipe)] == [set(then) for then in before]
    assert redi.reports(pipe) == []
    failing.armed = False
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), wanted)
    redi.disable(pipe)
    assert torch.equal(full_images(pipe, [NEW], NOISES[:1], 12), plain)


def test_nothing_is_left_after_success(ground: Ground) -> None:
    pipe = ground.pipe("pndm")
    full_images(pipe, [NEW], NOISES[:1], 12)
    before = [set(names) for names in attributes(pipe)]
    redi.enable(pipe, ground.base("pndm"), max_distance=1e9)
    call(pipe, [NEW, NEW], latents=NOISES[:2])
    assert looks_stock(pipe)
    assert [set(names) for names in attributes(pipe)] == before


# The pipeline's interrupt flag


def interrupt_at(last: int) -> Callable[..., dict[str, Tensor]]:
    def callback(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = index >= last
        return tensors

    return callback


@pytest.mark.parametrize(
    ("last", "jumped", "calls", "reason"),
    [
        (1, False, 2, "its run does not come through the key step; interrupted after 2 scheduler calls"),
        (4, True, 3, "interrupted after 5 scheduler calls"),
        (9, True, 5, "interrupted after 10 scheduler calls"),
        (11, True, 7, None),
    ],
    ids=["head", "ghost", "tail", "end"],
)
def test_an_interrupted_run_ends_clean_and_says_where(
    ground: Ground, last: int, jumped: bool, calls: int, reason: str | None
) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), max_distance=1e9)
    wanted = call(pipe, NEW, latents=NOISES[:1])
    call(pipe, NEW, latents=NOISES[:1], callback_on_step_end=interrupt_at(last))
    (report,) = redi.reports(pipe)
    assert (report.jumped, report.calls, report.reason) == (jumped, calls, reason)
    assert reason is None or "interrupted" in " ".join(redi.summary(pipe).split())
    assert looks_stock(pipe)
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), wanted)


# Callbacks that use the pipeline's networks


def test_a_callback_may_encode_a_prompt_while_images_sleep(ground: Ground) -> None:
    pipe = enabled(ground, ground.pipe())

    def embeds(prompt: str) -> Tensor:
        wanted, unwanted = pipe.encode_prompt(prompt, pipe.device, 1, True, negative_prompt="ugly")
        return torch.cat([unwanted, wanted])

    def travelled(embeds_of: Callable[[str], Tensor]) -> Tensor:
        def callback(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            prompts = {0: "a red cat", 5: "a green house with a boat"}
            return {"prompt_embeds": embeds_of(prompts[index])} if index in prompts else {}

        inputs = ["latents", "prompt_embeds"]
        return call(
            pipe,
            NEW,
            latents=NOISES[:1],
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=inputs,
        )

    known = {prompt: embeds(prompt) for prompt in ("a red cat", "a green house with a boat")}
    wanted = travelled(known.__getitem__)
    assert torch.equal(travelled(embeds), wanted)
    assert redi.reports(pipe)[0].calls == 7, "a text encoder that the callback calls is no step"


# Several pipelines, several threads


class Pause:
    """A callback that stops at step 5, a ghost step, until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.leave = threading.Event(), threading.Event()

    def __call__(self, pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == 4:
            self.reached.set()
            assert self.leave.wait(60)
        return tensors


@contextmanager
def paused_run(pipe: Any, results: list[Tensor]) -> Iterator[None]:
    """Run ``pipe`` in a thread; the block is executed while the run stands in a ghost step."""
    pause = Pause()

    def work() -> None:
        results.append(call(pipe, NEW, latents=NOISES[:1], callback_on_step_end=pause))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert pause.reached.wait(60)
        yield
    finally:
        pause.leave.set()
        thread.join(60)


def sharing(pipe: StableDiffusionPipeline, **changes: Any) -> StableDiffusionPipeline:
    """Return another pipeline of the same components but for ``changes``."""
    other = StableDiffusionPipeline(**{**pipe.components, **changes}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def enabled(ground: Ground, pipe: Any, value_step: int = 8) -> Any:
    redi.enable(pipe, ground.base(), value_step=value_step, max_distance=1e9)
    return pipe


def test_pipelines_that_share_networks_take_turns(ground: Ground) -> None:
    alone = [call(enabled(ground, ground.pipe(), step), NEW, latents=NOISES[:1]) for step in (6, 8)]
    first = enabled(ground, ground.pipe(), 6)
    second = enabled(ground, sharing(first, scheduler=scheduler("ddim")), 8)
    third = sharing(first)
    plain = full_images(third, [NEW], NOISES[:1], 12)
    for _ in range(2):
        assert torch.equal(call(first, NEW, latents=NOISES[:1]), alone[0])
        assert torch.equal(call(second, NEW, latents=NOISES[:1]), alone[1])
        assert torch.equal(full_images(third, [NEW], NOISES[:1], 12), plain)
    assert [redi.reports(pipe)[0].value_step for pipe in (first, second)] == [6, 8]
    redi.disable(first)
    assert torch.equal(call(second, NEW, latents=NOISES[:1]), alone[1])


def test_a_plain_pipeline_in_another_thread_may_use_the_networks_of_a_running_one(ground: Ground) -> None:
    pipe = enabled(ground, ground.pipe())
    wanted = call(pipe, NEW, latents=NOISES[:1])
    other = sharing(pipe, scheduler=scheduler("ddim"))
    plain = full_images(other, [NEW], NOISES[1:2], 12)
    results: list[Tensor] = []
    with paused_run(pipe, results):
        meanwhile = full_images(other, [NEW], NOISES[1:2], 12)
    assert torch.equal(meanwhile, plain)
    assert torch.equal(results[0], wanted)
    assert redi.reports(pipe)[0].calls == 7


@pytest.mark.parametrize("enable_other", [True, False], ids=["enabled", "plain"])
def test_a_scheduler_of_a_running_pipeline_is_refused_to_another(ground: Ground, enable_other: bool) -> None:
    pipe = enabled(ground, ground.pipe())
    wanted = call(pipe, NEW, latents=NOISES[:1])
    other = sharing(pipe)
    if enable_other:
        enabled(ground, other)
    results: list[Tensor] = []
    with paused_run(pipe, results), pytest.raises(UnsupportedError, match=r"already run by redi|another thread"):
        call(other, NEW, latents=NOISES[:1])
    assert torch.equal(results[0], wanted)


def test_two_enabled_pipelines_with_one_unet_at_once_are_refused(ground: Ground) -> None:
    pipe = enabled(ground, ground.pipe())
    wanted = call(pipe, NEW, latents=NOISES[:1])
    other = enabled(ground, sharing(pipe, scheduler=scheduler("ddim")))
    results: list[Tensor] = []
    with paused_run(pipe, results), pytest.raises(UnsupportedError, match="forward is already run by redi"):
        call(other, NEW, latents=NOISES[:1])
    assert torch.equal(results[0], wanted)
    assert torch.equal(call(other, NEW, latents=NOISES[:1]), wanted)


def test_enabling_a_pipeline_leaves_another_one_alone_that_runs_on_its_networks(ground: Ground) -> None:
    other = ground.pipe()
    pipe = sharing(other, scheduler=scheduler("ddim"))
    plain = full_images(other, [NEW], NOISES[1:2], 12)
    stands, goes_on = threading.Event(), threading.Event()
    scale = pipe.scheduler.scale_model_input

    def stand(*args: Any, **kwargs: Any) -> Tensor:
        """Stop where redi asks the pipeline for its schedule, right before the first network would be called."""
        stands.set()
        assert goes_on.wait(60)
        return scale(*args, **kwargs)

    base = ground.base()
    pipe.scheduler.scale_model_input = stand
    thread = threading.Thread(target=redi.enable, args=(pipe, base))
    thread.start()
    assert stands.wait(60)
    try:
        assert torch.equal(full_images(other, [NEW], NOISES[1:2], 12), plain)
    finally:
        goes_on.set()
        thread.join(60)
    assert "redi is enabled with" in redi.summary(pipe)


@pytest.mark.parametrize("enable_again", [False, True], ids=["as it is", "enabled again meanwhile"])
def test_one_pipeline_in_two_threads_is_refused_and_the_first_one_is_right(ground: Ground, enable_again: bool) -> None:
    pipe = enabled(ground, ground.pipe())
    wanted = call(pipe, NEW, latents=NOISES[:1])
    results: list[Tensor] = []
    with paused_run(pipe, results):
        if enable_again:
            enabled(ground, pipe)
        with pytest.raises(UnsupportedError, match=r"while one runs|already run by redi"):
            call(pipe, NEW, latents=NOISES[:1])
    assert torch.equal(results[0], wanted)
    assert looks_stock(pipe)


def test_a_scheduler_replaced_after_enabling_is_refused_until_it_fits_again(ground: Ground) -> None:
    pipe = enabled(ground, ground.pipe())
    wanted = call(pipe, NEW, latents=NOISES[:1])
    pipe.scheduler = scheduler("euler")
    assert "pipe.scheduler was replaced; the next call will be refused" in redi.summary(pipe)
    with pytest.raises(redi.RediError, match="EulerDiscreteScheduler"):
        call(pipe, NEW, latents=NOISES[:1])
    pipe.scheduler = scheduler("ddim")
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), wanted)


# Retrieval that fails


def remove(base: Path) -> None:
    shutil.rmtree(base)


def truncate(base: Path) -> None:
    for file in (base / "entries.lance" / "data").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def spoil_numbers(base: Path) -> None:
    """Write NaN over the stored latents, behind the back of their checksums."""
    stored = redi.KnowledgeBase.open(base).values(range(18), 8).half().numpy()
    for file in (base / "entries.lance" / "data").iterdir():
        data = file.read_bytes()
        for latent in stored:
            data = data.replace(latent.tobytes(), b"\xff" * latent.nbytes)
        file.write_bytes(data)


@pytest.mark.parametrize("strict", [False, True], ids=["abstains", "strict"])
@pytest.mark.parametrize("damage", [remove, truncate, spoil_numbers])
def test_a_base_damaged_after_enabling_never_gives_a_wrong_picture(
    ground: Ground, tmp_path: Path, damage: Callable[[Path], None], strict: bool
) -> None:
    pipe = ground.pipe("pndm")
    plain = full_images(pipe, [NEW, NEW], NOISES[:2], 12)
    copied = tmp_path / "base"
    shutil.copytree(ground.base("pndm").path, copied)
    redi.enable(pipe, copied, max_distance=1e9, strict=strict)
    damage(copied)
    if strict:
        with pytest.raises(KnowledgeBaseError):
            call(pipe, [NEW, NEW], latents=NOISES[:2])
    else:
        with pytest.warns(RediWarning, match="retrieval failed"):
            assert torch.equal(call(pipe, [NEW, NEW], latents=NOISES[:2]), plain)
        assert {report.reason.partition(":")[0] for report in redi.reports(pipe)} == {"retrieval failed"}
    assert looks_stock(pipe)


def test_a_base_that_was_cut_before_is_refused_before_a_network_is_called(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe("pndm")
    shutil.copytree(ground.base("pndm").path, tmp_path / "base")
    truncate(tmp_path / "base")
    with pytest.raises(KnowledgeBaseError, match="bytes"):
        redi.enable(pipe, tmp_path / "base")
    assert looks_stock(pipe)


@pytest.mark.parametrize("strict", [False, True], ids=["abstains", "strict"])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_stored_nan_never_gives_a_wrong_picture(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, strict: bool
) -> None:
    """As a writer without redi's checks would store it, with a checksum that fits."""
    base = base_with_nan(ground, tmp_path / "nan", part, monkeypatch)
    pipe = ground.pipe()
    plain = full_images(pipe, [NEW], NOISES[:1], 12)
    redi.enable(pipe, base, weights="nearest", neighbors=6, max_distance=1e9, strict=strict)
    if strict:
        with pytest.raises(KnowledgeBaseError, match="not finite"):
            call(pipe, NEW, latents=NOISES[:1])
    else:
        with pytest.warns(RediWarning, match="retrieval failed for image 1"):
            assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), plain)
        assert redi.reports(pipe)[0].jumped is False


def base_with_nan(ground: Ground, path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> redi.KnowledgeBase:
    encode = entries.encode_unit

    def encode_spoilt(*args: Any) -> Any:
        rows, refusals = encode(*args)
        column = "key_3" if part == "keys" else "value_8"
        rows.latents[column][:] = float("nan")
        return rows, refusals

    with monkeypatch.context() as patch:
        patch.setattr("redi.knowledge_base.base.encode_unit", encode_spoilt)
        return record(path, ground.pipe(), PLAN, finish=False)


def test_a_query_with_nan_raises_if_strict(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), max_distance=1e9, strict=True)

    def spoil(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * (torch.nan if index == 1 else 1)}

    with pytest.raises(RediError, match="NaN or infinity after 3 steps"):
        call(pipe, NEW, latents=NOISES[:1], callback_on_step_end=spoil)
    assert looks_stock(pipe)
