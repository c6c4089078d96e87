"""Builds a knowledge base with the tiny pipeline, also as a process that can be killed; must not know pytest."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from redi.building import build
from redi.errors import KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase
from redi.plan import Plan
from tiny import tiny_pipeline

PLAN = Plan(10, key_step=3, value_steps=(5, 8), more_key_steps=(1,))
COLOURS, THINGS = ("red", "blue", "green", "old"), ("cat", "dog", "boat", "house", "tree")
PROMPTS = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]  # 20


def many_prompts(count: int) -> list[str]:
    """Return prompts that all differ."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"a {PROMPTS[i % 20][2:]} {letters[i // 26 % 26]} {letters[i % 26]}" for i in range(count)]


def build_tiny(pipe: Any, path: Path, prompts: list[str] = PROMPTS, **changes: Any) -> KnowledgeBase:
    """Build with small units: 20 prompts make 4 units of 6, 6, 6 and 2 entries, in batches of 4 at most."""
    settings = {"plan": PLAN, "noises": 3, "batch_size": 4, "unit_size": 6, "progress": False}
    return build(pipe, prompts, path, **{**settings, **changes})


def count_calls(pipe: Any) -> list[int]:
    """Return a list that grows by the rows of every evaluation of the U-Net."""
    rows: list[int] = []
    pipe.unet.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    return rows


class Interruption:
    """Raises an error in the U-Net's n-th evaluation and all that follow; as a context, expects it and ends."""

    def __init__(self, pipe: Any, after: int, error: BaseException) -> None:
        self.left, self.error = after, error
        self.handle = pipe.unet.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left <= 0:
            raise self.error

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.handle.remove()
        assert kind is type(self.error)
        return True


POISON = "a poisoned cup"


@contextmanager
def poison(pipe: Any) -> Iterator[None]:
    """Let the pipeline raise an error for one prompt, as a text that a filter or a tokenizer chokes on."""
    stock = pipe.tokenizer

    class Choking(type(stock)):  # type: ignore[misc]
        def __call__(self, text: Any, *args: Any, **more: Any) -> Any:
            if POISON in text:
                raise ValueError("poison")
            return super().__call__(text, *args, **more)

    stock.__class__ = Choking
    try:
        yield
    finally:
        stock.__class__ = Choking.__base__


def undisturbed_seconds(folder: Path, count: int) -> float:
    """Return how long a build of so many prompts takes here when nobody kills it, from which kills are timed."""
    pipe, start = tiny_pipeline(folder / "model"), time.perf_counter()
    build_tiny(pipe, folder / "undisturbed", many_prompts(count))
    return time.perf_counter() - start


def server() -> ForkServerContext:
    """Return a way to start processes that have the heavy imports already."""
    context = multiprocessing.get_context("forkserver")
    pipeline = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
    context.set_forkserver_preload(["torch", pipeline, "transformers.models.clip.modeling_clip"])
    return context


def build_process(folder: str, path: str, count: int, channel: Connection) -> None:
    """Build; tells when the networks begin to run, and when all is done."""
    torch.set_num_threads(1)
    pipe = tiny_pipeline(Path(folder))
    channel.send("started")
    build_tiny(pipe, Path(path), many_prompts(count))
    channel.send("done")


def kill_build(context: ForkServerContext, folder: Path, path: Path, count: int, seconds: float) -> bool:
    """Build in a process and kill it (SIGKILL) so long after its start; says whether it had not finished."""
    ours, theirs = context.Pipe()
    process = context.Process(target=build_process, args=(str(folder), str(path), count, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(120) or ours.recv() != "started":
            raise RuntimeError("the building process did not start")
        time.sleep(seconds)
        process.kill()
        process.join()
        return not ours.poll() or ours.recv() != "done"
    except EOFError:
        return True
    finally:
        process.kill()
        process.join()


def full_disk_process(folder: str, path: str, channel: Connection) -> None:
    """Build until the disk is full (files of 20 kB at most), then with room again; sends error, entries, verdict."""
    torch.set_num_threads(1)
    pipe = tiny_pipeline(Path(folder))
    calls, hard = [0], resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def fill_the_disk(*_: object) -> None:
        calls[0] += 1
        if calls[0] == 4 + 9 + 9 + 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    pipe.unet.register_forward_pre_hook(fill_the_disk)
    arguments: dict[str, Any] = {"prompts": many_prompts(60), "batch_size": 20, "unit_size": 20}
    try:
        build_tiny(pipe, Path(path), **arguments)
        channel.send("no error")
    except KnowledgeBaseError as error:
        channel.send(str(error))
    channel.send(len(KnowledgeBase.open(path)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    kb = build_tiny(pipe, Path(path), **arguments)
    channel.send((len(kb), kb.verify().clean))
