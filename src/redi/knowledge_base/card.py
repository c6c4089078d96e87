"""Owns the dataset card of a shared base, written from its manifest; must not know the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.hashes import FileHashes

if TYPE_CHECKING:
    from redi.knowledge_base.base import KnowledgeBase

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card_of(
    base: KnowledgeBase,
    repo_id: str,
    hashes: FileHashes,
    *,
    license: str | None = None,
    quality: Mapping[str, Any] | None = None,
) -> str:
    """Return the card (Markdown with YAML in front) of a base.

    Args:
        base: The base.
        repo_id: What the hub will call it.
        hashes: Of the files that are shared.
        license: As the hub names licences; without one the card says that none was given.
        quality: Measured figures by name; without any the card says that none were given.
    """
    from huggingface_hub import DatasetCardData

    manifest, plan = base.manifest, base.plan
    identity = manifest.identity
    model = _object(identity, "information").get("model")
    on_hub: bool = isinstance(model, str) and model.count("/") == 1 and not model.startswith((".", "/", "~"))
    more: dict[str, Any] = {"base_model": [model]} if on_hub else {}
    data = DatasetCardData(
        license=license,
        pretty_name=f"redi knowledge base of {len(base)} entries",
        size_categories=[next((name for most, name in _SIZES if len(base) < most), "n>10M")],
        tags=["redi", "diffusers", "trajectory-retrieval"],
        **more,
    )
    facts: dict[str, Any] = {
        "model": _model(model),
        "revision": _object(identity, "information").get("revision") or "not recorded",
        "pipeline": identity.get("pipeline"),
        "numbers of the model": identity.get("dtype"),
        "sampler": _object(identity, "scheduler").get("class"),
        "steps": plan.num_inference_steps,
        "key steps": ", ".join(map(str, plan.key_steps)),
        "value steps": ", ".join(map(str, plan.value_steps)),
        "arguments of every call": _object(identity, "call"),
        "values kept as": manifest.values,
        "latent": " x ".join(map(str, manifest.latent_shape)),
        "noise": f"{manifest.noise['kind']}, {len(base.noise_bank)} in the bank",
        "entries": len(base),
        "built": manifest.created,
        "built with": manifest.library_versions,
        "id": manifest.kb_id,
        "signature": hashes.signature,
    }
    licence = f"{_inline(license)}" if license else "none was given"
    measured = _table(quality) if quality else "None were given."
    key = plan.key_steps[0]
    value = plan.value_steps[-1]
    return f"""---
{data.to_yaml()}
---

# {_inline(repo_id)}

Recorded denoising trajectories for [ReDi](https://arxiv.org/abs/2302.02285) (Zhang et al., ICML 2023): with them a
Diffusers pipeline of the same model jumps over most of its network calls. Steps are counted completed.

```python
import redi
from redi import KnowledgeBase

kb = KnowledgeBase.from_pretrained("{_inline(repo_id)}")
redi.enable(pipe, kb, key_step={key}, value_step={value})  # pipe: the pipeline named below
```

`redi pull {_inline(repo_id)} my-base --value-step {value}` fetches one value step alone;
`redi inspect my-base --verify` reads all of it again.

## What it was built with

{_table(facts)}

## Size

{_table(_sizes(base, hashes))}

## Distance of entries to the nearest other entry

{_table({f"key step {step}": _distances(base, step) for step in plan.key_steps})}

## Quality

{measured}

## Licence

Of this base: {licence}. A base holds prompts and latents of the model's pictures: the licences of the model and of the
prompts apply to them too.

## Files

Nothing in a base is executed: JSON, safetensors and Lance (Arrow) tables of numbers and text. `hashes.json` lists the
SHA-256 of every file; its signature stands for all of them.
"""


def _sizes(base: KnowledgeBase, hashes: FileHashes) -> dict[str, str]:
    steps = dict.fromkeys(base.plan.value_steps, 0)
    rest = 0
    for file in hashes.files.values():
        if file.value_step in steps:
            steps[file.value_step] += file.size
        else:
            rest += file.size
    count = max(1, len(base))
    named = {"keys, prompts, noises": rest, **{f"values after step {step}": size for step, size in steps.items()}}
    named["together"] = sum(named.values())
    return {name: f"{size / 1e6:.1f} MB, {size / count:.0f} bytes an entry" for name, size in named.items()}


def _distances(base: KnowledgeBase, key_step: int) -> str:
    try:
        known = base.leave_one_out(key_step)
    except KnowledgeBaseError:
        return "not measured"
    if not len(known):
        return "no two entries share a noise"
    quantiles = known.quantile(known.new_tensor((0.05, 0.5, 0.95))).tolist()
    return "5 % {:.4g}, median {:.4g}, 95 % {:.4g}".format(*quantiles)


def _model(model: Any) -> str:
    """Return a model's name; of a folder, which is nobody else's, the last part of its path."""
    name = str(model or "not recorded")
    return f"a folder called {name.rstrip('/').rpartition('/')[2]}" if name.startswith("/") else name


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {_inline(name)} | {_told(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"{_inline(name)}: {_told(each)}" for name, each in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _inline(value)


def _inline(value: Any) -> str:
    """Return text that neither breaks a table's cell nor is anything but text."""
    text = "".join(each if each.isprintable() else " " for each in str(value))
    for special in "\\`|<>[]":
        text = text.replace(special, f"&#{ord(special)};")
    return text
