"""Owns what caches inside networks must forget when a jump changes their images; must not know schedulers or policies.

Diffusers' ``enable_cache`` and DeepCache reuse a network's inner features at later steps. At a jump these belong to
another step, and in a batch whose images disagree to other images. So they are forgotten whenever the images that are
evaluated change, and the next evaluation is a full one. A run in which nobody jumps is left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from redi.errors import UnsupportedError

_TESTED = ("FirstBlockCacheConfig", "PyramidAttentionBroadcastConfig", "TaylorSeerCacheConfig")
_DEEPCACHE = "DeepCache."


def refuse_untested_caches(pipe: Any) -> None:
    """Refuse a cache of Diffusers that redi has not been tested with.

    Raises:
        UnsupportedError: It counts steps by its own calls (MagCache, say), or nobody has tested it.
    """
    for network in _networks(pipe):
        cache = type(getattr(network, "_cache_config", None)).__name__
        if cache not in ("NoneType", *_TESTED):
            raise UnsupportedError(
                f"a {type(network).__name__} with enable_cache({cache})",
                expected=f"no cache, or one that can start afresh after a jump: {', '.join(_TESTED)}",
                fix="call disable_cache() on it, or run this pipeline without redi",
            )


def has_caches(pipe: Any) -> bool:
    """Say whether a network reuses features of other steps, so that its trajectories are approximate."""
    networks: list[Any] = _networks(pipe)
    return any(getattr(each, "_cache_config", None) is not None or _deepcache_helpers(each) for each in networks)


def refresh_caches(pipe: Any) -> None:
    """Let every cache in the pipeline's networks forget, so that the next evaluation computes everything."""
    network: Any
    for network in _networks(pipe):
        if getattr(network, "_cache_config", None) is not None:
            network._reset_stateful_cache()
        for helper in _deepcache_helpers(network):
            helper.start_timestep = None  # the next call counts as the first of its interval
            helper.cached_output.clear()


@contextmanager
def restored_caches(pipe: Any) -> Iterator[None]:
    """Put back, at the end of the block, the step that DeepCache counts from: a plain run would start out of turn."""
    with ExitStack() as cleanup:
        for network in _networks(pipe):
            for helper in _deepcache_helpers(network):
                cleanup.callback(setattr, helper, "start_timestep", helper.start_timestep)
        yield


def _networks(pipe: Any) -> list[nn.Module]:
    found = (component for component in pipe.components.values() if isinstance(component, nn.Module))
    return [getattr(network, "_orig_mod", network) for network in found]  # what torch.compile(network) wraps


def _deepcache_helpers(network: nn.Module) -> list[Any]:
    """Return the ``DeepCacheSDHelper`` whose functions stand in for the forward of the network's middle block."""
    forward = vars(getattr(network, "mid_block", None) or network).get("forward")
    if not inspect.isfunction(forward) or not str(forward.__module__).startswith(_DEEPCACHE):
        return []
    return [inspect.getclosurevars(forward).nonlocals["self"]]
