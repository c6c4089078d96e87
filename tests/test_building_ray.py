"""Claims about builds on a Ray cluster of two nodes: whatever dies, the entries are those of an undisturbed build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_build import ADDRESS, differing, load, ray_cluster, workers_of
from redi.building.cluster import Cluster
from redi.errors import IncompatibleError, InputError, RediWarning
from redi.knowledge_base import KnowledgeBase
from tiny import tiny_pipeline
from tiny_build import POISON, build_tiny, many_prompts

COUNT = 48


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as found:
        yield found


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    return build_tiny(pipe, tmp_path_factory.mktemp("undisturbed") / "kb", many_prompts(COUNT))


def on(cluster: Any, folder: Path, **more: Any) -> Cluster:
    return Cluster(partial(load, str(folder / "model"), **more), address=cluster.address)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def after(seconds: float, do: Any) -> threading.Thread:
    thread = threading.Timer(seconds, do)
    thread.start()
    return thread


def test_a_cluster_builds_what_one_process_builds(
    cluster: Any, pipe: Any, undisturbed: KnowledgeBase, tmp_path: Path
) -> None:
    kb = build_tiny(pipe, tmp_path / "kb", many_prompts(COUNT), cluster=on(cluster, tmp_path))
    assert differing(kb, undisturbed) == 0
    assert kb.verify().clean
    wait_until(lambda: workers_of(cluster) == [], "none is left behind")


def test_workers_that_are_killed_lose_and_double_nothing(
    cluster: Any, pipe: Any, undisturbed: KnowledgeBase, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_some() -> None:
        while len(killed) < 3:
            for process in workers_of(cluster)[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(2)

    killer = after(1, kill_some)
    kb = build_tiny(pipe, tmp_path / "kb", many_prompts(COUNT), cluster=on(cluster, tmp_path, slow=0.05))
    killer.join()
    assert len(killed) == 3
    assert differing(kb, undisturbed) == 0
    assert kb.verify().clean


def test_a_node_that_is_lost_and_a_slow_worker_hold_nothing_up(
    cluster: Any, pipe: Any, undisturbed: KnowledgeBase, tmp_path: Path
) -> None:
    extra = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    slow_once = tmp_path / "slow"
    on_three = on(cluster, tmp_path, slow=0.02, much_slower_once=str(slow_once))
    lost = after(6, lambda: cluster.remove_node(extra, allow_graceful=False))
    kb = build_tiny(pipe, tmp_path / "kb", many_prompts(COUNT), cluster=on_three)
    lost.join()
    assert slow_once.exists(), "one of the workers took half a minute for every evaluation"
    assert differing(kb, undisturbed) == 0
    assert kb.verify().clean


def test_a_poisoned_prompt_is_refused_whether_it_raises_or_kills(cluster: Any, pipe: Any, tmp_path: Path) -> None:
    prompts = [*many_prompts(10), POISON, *many_prompts(12)[10:]]
    for poison, reason in (("raises", "ValueError: poison"), ("kills", "its worker died")):
        where = on(cluster, tmp_path, poison=poison)
        with pytest.warns(RediWarning, match="1 entries were refused"):
            kb = build_tiny(pipe, tmp_path / poison, prompts, cluster=where)
        (refused,) = kb.refused()
        assert (refused.prompt, refused.unit, refused.slot) == (POISON, 1, 4)
        assert reason in refused.reason
        assert sorted(kb.prompts(range(len(kb)))) == sorted(many_prompts(12))
        assert kb.verify().clean


def test_a_driver_that_is_killed_goes_on_when_it_is_called_again(
    cluster: Any, pipe: Any, undisturbed: KnowledgeBase, tmp_path: Path
) -> None:
    kb_path = tmp_path / "kb"
    told = {**os.environ, ADDRESS: cluster.address}
    command = [sys.executable, str(Path(__file__).parent / "ray_build.py"), str(tmp_path), str(kb_path), str(COUNT)]
    driver = subprocess.Popen(command, env=told)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and driver.poll() is None:
            if (kb_path / "manifest.json").exists() and len(KnowledgeBase.open(kb_path)):
                break
            time.sleep(0.05)
        assert driver.poll() is None, "it had not finished"
    finally:
        driver.kill()
        driver.wait()
    held = len(KnowledgeBase.open(kb_path))
    assert 0 < held < COUNT
    kb = build_tiny(pipe, kb_path, many_prompts(COUNT), cluster=on(cluster, tmp_path))
    assert differing(kb, undisturbed) == 0
    assert kb.verify().clean


def test_a_worker_with_another_model_is_refused(cluster: Any, pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="a worker loaded another pipeline"):
        build_tiny(pipe, tmp_path / "kb", cluster=on(cluster, tmp_path, other=True))


def test_a_model_that_loads_nowhere_is_told(cluster: Any, pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model"), pytest.warns(RediWarning, match="goes on without"):
        build_tiny(pipe, tmp_path / "kb", cluster=on(cluster, tmp_path, broken=True))
    with pytest.raises(InputError, match="load of type str"):
        Cluster("miniature")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="workers=0"):
        Cluster(lambda: None, workers=0)
