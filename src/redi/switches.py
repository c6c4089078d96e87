"""Owns what changes a network's numbers without being a weight: config, FreeU, vocabulary; must not know pipelines."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_OF_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version")
_FREEU = ("s1", "s2", "b1", "b2")


def switches_of(network: nn.Module) -> dict[str, Any]:
    """Return a network's config and its FreeU factors, without what is at its default.

    Defaults are left out so that a library that adds a field tells no two networks apart. Numbers of different weights
    are told apart by the weights' hash; this is for equal weights that are used differently (attention heads, FreeU).
    """
    network = getattr(network, "_orig_mod", network)  # what torch.compile(network) wraps
    config: Any = getattr(network, "config", {})
    if hasattr(config, "to_diff_dict"):  # transformers
        chosen = {name: value for name, value in config.to_diff_dict().items() if name not in _OF_THE_FILE}
    else:  # Diffusers
        parameters = inspect.signature(type(network)).parameters
        chosen = {
            name: value
            for name, value in dict(config).items()
            if name not in parameters or not _same(parameters[name].default, value)
        }
    found = {name: value for name, value in chosen.items() if not name.startswith("_")}
    blocks: Any = getattr(network, "up_blocks", ())
    freeu = [[getattr(block, name, None) for name in _FREEU] for block in blocks]
    if any(value is not None for factors in freeu for value in factors):
        found["freeu"] = freeu
    return found


def hash_vocabulary(tokenizer: Any) -> str:
    """Return a hash of the pieces that a tokenizer cuts text into, and of how many it keeps; free the second time."""
    look = (len(tokenizer), tokenizer.model_max_length)
    known = _known.get(tokenizer)
    if known is None or known[0] != look:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
        state = ("padding", "truncation")  # of the latest call
        rules = {name: value for name, value in rules.items() if name not in state}
        text = json.dumps([rules, tokenizer.model_max_length], sort_keys=True)
        known = (look, f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
        _known[tokenizer] = known
    return known[1]


_known: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def _same(one: Any, other: Any) -> bool:
    """Say whether two config values are equal as JSON has them, where a tuple is a list."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)
