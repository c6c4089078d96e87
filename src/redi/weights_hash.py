"""Owns the content hashes of a network's weights and of its adapters; must not know pipelines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from redi.errors import UnsupportedError


@dataclass(frozen=True)
class WeightsHash:
    """What a network's weights are.

    Attributes:
        base: ``sha256:...`` over class-independent names, dtypes, shapes and bytes of every parameter and persistent
            buffer that belongs to no adapter, in the order of the state_dict.
        adapters: The same of each adapter (LoRA and its kin, by PEFT) that takes part in the forward pass, by name,
            with the scales at which its layers apply it. An adapter that is merged into the weights shows in ``base``.
    """

    base: str
    adapters: Mapping[str, Mapping[str, Any]]


def hash_weights(network: nn.Module) -> WeightsHash:
    """Return the hashes of a network's weights; free the second time, until a weight changes.

    Whether something changed is read from each tensor's name, dtype, shape, version counter and a few hundred of its
    values, because writing through ``.data`` (as merging a LoRA or swapping an average in does) leaves the counter as
    it was, and moving a network to another device resets it.

    Raises:
        UnsupportedError: A weight is not in memory (offloaded to the disk, say).
    """
    network = getattr(network, "_orig_mod", network)  # what torch.compile(network) wraps
    tensors = {
        name: _offloaded(network, name) if tensor.is_meta else tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
    }
    absent = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if absent is not None:
        raise UnsupportedError(
            f"weight {absent} of {type(network).__name__} is not in memory",
            expected="weights that can be read",
            fix="offload to the CPU, with enable_model_cpu_offload or enable_sequential_cpu_offload",
        )
    adapted = any(".base_layer." in f".{name}" for name in tensors)  # walking a network's layers takes a while
    scales = _active_scales(network) if adapted else {}
    state = (_look(tensors.items()), repr(scales))
    known = _known.get(network)
    if known is None or known[0] != state:
        known = (state, _hash(tensors, _adapter_owners(network, tensors), scales))
        _known[network] = known
    return known[1]


def _offloaded(network: nn.Module, name: str) -> Tensor:
    """Return the weight that accelerate keeps on the CPU between two calls; where it does not, the empty one."""
    owner, _, own_name = name.rpartition(".")
    module = network.get_submodule(owner)
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        in_memory = isinstance(getattr(weights, "dataset", weights), dict)  # not a lazy map that reads the disk
        if in_memory and weights is not None and own_name in weights:
            kept: Tensor = weights[own_name]
            return kept
    empty: Tensor = getattr(module, own_name)
    return empty


_known: WeakKeyDictionary[nn.Module, tuple[Any, WeightsHash]] = WeakKeyDictionary()


def _hash(
    tensors: Mapping[str, Tensor], owners: Mapping[str, str], scales: Mapping[str, tuple[float, ...]]
) -> WeightsHash:
    """Hash every tensor on its own, several at a time (hashing frees the interpreter), then the hashes by owner."""
    read = {name: tensor for name, tensor in tensors.items() if name not in owners or owners[name] in scales}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(read, pool.map(_tensor_digest, read.values()), strict=True))

    def of(owner: str | None) -> str:
        total = hashlib.sha256()
        for name, digest in digests.items():
            if owners.get(name) == owner:
                # an adapted layer keeps its own weight as base_layer: the same weight under another name
                total.update(name.replace(".base_layer.", ".").encode() + b"\0" + digest)
        return f"sha256:{total.hexdigest()}"

    adapters = {name: MappingProxyType({"hash": of(name), "scales": list(scales[name])}) for name in scales}
    return WeightsHash(of(None), MappingProxyType(adapters))


def _tensor_digest(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{content.dtype} {tuple(tensor.shape)}\0".encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.digest()


def _look(tensors: Iterable[tuple[str, Tensor]]) -> tuple[Any, ...]:
    """Return what shows, at a glance, that a tensor is the one hashed before."""
    seen = []
    for name, tensor in tensors:
        version = 0 if tensor.is_inference() else tensor._version
        corners = tensor.detach()[tuple(slice(None, None, max(1, size // 3)) for size in tensor.shape)]
        seen.append((name, tensor.dtype, tuple(tensor.shape), version, corners.cpu().double().numpy().tobytes()))
    return tuple(seen)


def _adapted_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that PEFT has wrapped, with their names."""
    for name, layer in network.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "active_adapters"):
            yield name, layer


def _adapter_owners(network: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Return which adapter each tensor belongs to; tensors of the network itself are left out."""
    owners = {}
    wrapped = {f"{name}." if name else "": _adapter_names(layer) for name, layer in _adapted_layers(network)}
    for tensor in tensors:
        for prefix, adapters in wrapped.items():
            if not tensor.startswith(prefix):
                continue
            parts = tensor.removeprefix(prefix).split(".")
            owner = next((part for part in parts if part in adapters), None)
            if parts[0] != "base_layer" and owner is not None:
                owners[tensor] = owner
    return owners


def _adapter_names(layer: nn.Module) -> set[str]:
    """Return the adapters that a wrapped layer holds, active or not: the keys of the dicts among its children."""
    dicts = (child for child in layer.children() if isinstance(child, nn.ModuleDict | nn.ParameterDict))
    return {str(name) for child in dicts for name in child}


def _active_scales(network: nn.Module) -> dict[str, tuple[float, ...]]:
    """Return the adapters that take part in the forward pass and the different scales of their layers."""
    scales: dict[str, set[float]] = {}
    for _, layer in _adapted_layers(network):
        if getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False):
            continue
        for adapter in _adapter_names(layer).intersection(layer.active_adapters):
            scales.setdefault(adapter, set()).add(round(float(getattr(layer, "scaling", {}).get(adapter, 1.0)), 6))
    return {adapter: tuple(sorted(values)) for adapter, values in sorted(scales.items())}
