"""Owns the training loop that every part shares (schedule, averaging, checkpoint, resume, loss record); must not
know what is trained."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from redi.errors import InputError

_WARMUP_STEPS = 100
_DECAY_SHARE = 0.25
_LOG_EVERY = 20


@dataclass(frozen=True)
class Stage:
    """How long and how fast one part is trained.

    Args:
        name: Name of the stage and of its files.
        steps: Optimiser steps in all; the learning rate falls linearly to zero over the last quarter.
        batch_size: Pictures (or captions) per step.
        learning_rate: Peak learning rate of AdamW.
        averaging: Decay of the exponential moving average of the weights that is shipped; 0 ships the last weights.
        seed: Seed of weights, batches and noise.
    """

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    averaging: float = 0.0
    seed: int = 0


def train(
    stage: Stage,
    network: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    folder: Path,
    *,
    device: torch.device,
    checkpoint_seconds: float = 120.0,
    on_checkpoint: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train ``network`` on the loss that ``loss_of`` computes from a fresh, seeded generator per step.

    Resumes from ``folder/<name>.checkpoint`` when there is one; writes it every ``checkpoint_seconds`` and appends
    the losses to ``folder/<name>.losses.jsonl``. On return the network holds the averaged weights.

    Returns:
        The training record: stage, seconds, last losses, torch version.

    Raises:
        InputError: The checkpoint belongs to another stage's settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint_path = folder / f"{stage.name}.checkpoint"
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    average = {key: value.detach().clone() for key, value in network.state_dict().items()}
    step, seconds, losses = 0, 0.0, []
    if checkpoint_path.exists():
        saved = torch.load(checkpoint_path, map_location=device, weights_only=True)
        if (saved["batch_size"], saved["seed"]) != (stage.batch_size, stage.seed):
            raise InputError(
                f"{checkpoint_path} was trained with batch size {saved['batch_size']} and seed {saved['seed']}",
                expected=f"batch size {stage.batch_size} and seed {stage.seed}",
                fix="train into an empty folder, or with the checkpoint's settings",
            )
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, seconds = saved["average"], saved["step"], saved["seconds"]

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
            "seconds": seconds,
            "batch_size": stage.batch_size,
            "seed": stage.seed,
        }
        replace_file(checkpoint_path, lambda path: torch.save(state, path))

    network.train()
    started = last_saved = time.monotonic()
    before = seconds
    recent: list[Tensor] = []
    precision = torch.autocast(device.type, torch.bfloat16)
    with tqdm(total=stage.steps, initial=step, desc=stage.name, unit="step", mininterval=5) as progress:
        while step < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * _learning_rate_factor(step, stage.steps)
            generator = torch.Generator().manual_seed(stage.seed * 1_000_003 + step)
            optimizer.zero_grad(set_to_none=True)
            with precision if device.type != "mps" else nullcontext():
                loss = loss_of(generator)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(stage.averaging, (1 + step) / (10 + step)) if stage.averaging else 0.0
            _update_average(average, network, decay)
            recent.append(loss.detach())
            seconds = before + time.monotonic() - started
            progress.update()
            if step % _LOG_EVERY == 0 or step == stage.steps:
                mean = float(torch.stack(recent).mean())  # read once in a while: each reading waits for the device
                losses.append({"step": step, "loss": mean, "seconds": round(seconds, 1)})
                progress.set_postfix(loss=f"{losses[-1]['loss']:.4f}")
                recent.clear()
            if time.monotonic() - last_saved > checkpoint_seconds or step == stage.steps:
                _append_lines(folder / f"{stage.name}.losses.jsonl", losses)
                losses = []
                save()
                if on_checkpoint is not None:
                    on_checkpoint(step)
                last_saved = time.monotonic()
    network.load_state_dict(average)
    network.eval()
    return {"stage": asdict(stage), "seconds": round(seconds, 1), "torch": torch.__version__, "device": device.type}


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and move it into place, so that a good file is never half-written."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_losses(path: Path) -> list[dict[str, float]]:
    """Return the loss record of a stage, without the lines that a resumed run wrote again."""
    by_step = {record["step"]: record for record in map(json.loads, path.read_text().splitlines())}
    return [by_step[step] for step in sorted(by_step)]


def _learning_rate_factor(step: int, steps: int) -> float:
    decay_steps = max(1, round(_DECAY_SHARE * steps))
    return min(1.0, (step + 1) / _WARMUP_STEPS, (steps - step) / decay_steps)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    live = network.state_dict()
    floats = [key for key, value in live.items() if value.dtype.is_floating_point]
    average_all = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average_all([average[key] for key in floats], [live[key] for key in floats], None)
    for key in live.keys() - set(floats):
        average[key].copy_(live[key])


def _append_lines(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
