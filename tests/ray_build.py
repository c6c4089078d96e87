"""A Ray cluster of two nodes on this machine, and pipelines of every kind for its workers; must not know pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ADDRESS = "REDI_TEST_RAY_ADDRESS"
_HERE = str(Path(__file__).parent)


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Start two nodes of one CPU each, whose workers find the tests' modules; end them."""
    os.environ["PYTHONPATH"] = os.pathsep.join([_HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "500",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()


def workers_of(cluster: Any) -> list[int]:
    """Return the processes that are a worker of a build now."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::_Worker" in line]


def differing(kb: Any, undisturbed: Any) -> int:
    """Return how many entries are in one base only, or twice, or differ beyond rounding."""
    import torch

    from tiny_build import PLAN

    rows = [{(e.unit, e.slot): at for at, e in enumerate(each.entries(range(len(each))))} for each in (kb, undisturbed)]
    doubled = len(kb) - len(rows[0])
    both = sorted(rows[0].keys() & rows[1].keys())
    ours, theirs = ([each[place] for place in both] for each in rows)
    wrong = torch.zeros(len(both), dtype=torch.bool)
    kinds = [(step, "keys") for step in PLAN.key_steps] + [(step, "values") for step in PLAN.value_steps]
    for step, kind in kinds:
        one, other = getattr(kb, kind)(ours, step), getattr(undisturbed, kind)(theirs, step)
        wrong |= ~torch.isclose(one, other, rtol=1e-2, atol=1e-2).flatten(1).all(1)
    wrong |= torch.tensor([a != b for a, b in zip(kb.prompts(ours), undisturbed.prompts(theirs), strict=True)])
    return doubled + len(rows[0].keys() ^ rows[1].keys()) + int(wrong.sum())


def load(
    folder: str,
    *,
    slow: float = 0.0,
    much_slower_once: str | None = None,
    poison: str | None = None,
    other: bool = False,
    broken: bool = False,
) -> Any:
    """Return the tests' tiny pipeline, healthy or not."""
    import torch

    from tiny import tiny_pipeline
    from tiny_build import POISON

    torch.set_num_threads(1)
    if broken:
        raise FileNotFoundError("no such model")
    pipe = tiny_pipeline(Path(folder) / str(os.getpid()))
    if other:
        with torch.no_grad():
            next(pipe.unet.parameters()).add_(1)
    if much_slower_once is not None:
        with suppress(FileExistsError):
            Path(much_slower_once).touch(exist_ok=False)
            slow = 30.0
    if slow:
        pipe.unet.register_forward_pre_hook(lambda *_: time.sleep(slow))
    if poison is not None:

        class Choking(type(pipe.tokenizer)):  # type: ignore[misc]
            def __call__(self, text: Any, *args: Any, **more: Any) -> Any:
                if POISON in text and poison == "kills":
                    os.kill(os.getpid(), signal.SIGKILL)
                if POISON in text:
                    raise ValueError("poison")
                return super().__call__(text, *args, **more)

        pipe.tokenizer.__class__ = Choking
    return pipe


def main() -> None:
    """Build on the cluster as a driver of its own, which can be killed."""
    from functools import partial

    from redi.building.cluster import Cluster
    from tiny import tiny_pipeline
    from tiny_build import build_tiny, many_prompts

    folder, path, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    cluster = Cluster(partial(load, str(folder / "model"), slow=0.1), address=os.environ[ADDRESS])
    build_tiny(tiny_pipeline(folder / "own"), path, many_prompts(count), cluster=cluster)


if __name__ == "__main__":
    main()
