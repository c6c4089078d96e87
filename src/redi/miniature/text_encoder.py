"""Owns teaching the text encoder to read captions before any picture is seen; must not know the denoiser.

The reading task gives every noun's token the colour, size and relation that belong to it, so that the denoiser's
cross-attention finds bound attributes from its first step on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from redi.errors import InputError
from redi.miniature.architecture import MAX_TOKENS, TEXT_WIDTH, make_text_encoder
from redi.miniature.dataset import WORDINGS, Shard, wordings
from redi.miniature.scenes import Description
from redi.miniature.training import Stage, train
from redi.miniature.vocabulary import BACKGROUNDS, COLORS, KINDS, RELATIONS, SIZES, STYLES

_SCENE_HEADS = {"background": len(BACKGROUNDS) + 1, "style": len(STYLES) + 1}
_OBJECT_HEADS = {"color": len(COLORS), "size": len(SIZES) + 1, "relation": 2 * len(RELATIONS) + 1}


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> NDArray[np.int16]:
    """Return token ids (n, 40), padded and cut as the pipeline does."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids
    return np.asarray(ids, np.int16)


def tokenize_shard(tokenizer: CLIPTokenizer, shard: Shard) -> NDArray[np.int16]:
    """Return token ids (n, wordings, 40) of several captions per scene."""
    texts = [text for scene in shard.scenes() for text in wordings(scene)]
    return tokenize(tokenizer, texts).reshape(shard.count, WORDINGS, MAX_TOKENS)


def train_text_encoder(
    stage: Stage,
    tokenizer: CLIPTokenizer,
    descriptions: list[Description],
    tokens: NDArray[np.int16],
    folder: Path,
    *,
    device: torch.device,
) -> tuple[CLIPTextModel, dict[str, Any]]:
    """Train a fresh text encoder to say what captions (n, wordings, 40) ask for.

    Raises:
        InputError: A noun of the vocabulary is not one token.
    """
    torch.manual_seed(stage.seed)
    encoder = make_text_encoder(tokenizer)
    heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, size) for name, size in (_SCENE_HEADS | _OBJECT_HEADS).items()})
    reader = nn.ModuleDict({"encoder": encoder, "heads": heads}).to(device)
    kind_of_token = _kind_of_token(tokenizer).to(device)
    scene_labels, object_labels = _labels(descriptions)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(tokens), (stage.batch_size,), generator=generator)
        wording = torch.randint(WORDINGS, (stage.batch_size,), generator=generator)
        ids = torch.from_numpy(tokens[rows.numpy(), wording.numpy()].astype(np.int64)).to(device)
        hidden = encoder(ids).last_hidden_state
        ends = hidden[torch.arange(len(ids), device=device), (ids == tokenizer.eos_token_id).int().argmax(1)]
        losses = [
            nn.functional.cross_entropy(heads[name](ends).float(), scene_labels[name][rows].to(device))
            for name in _SCENE_HEADS
        ]
        kinds = kind_of_token[ids]
        caption, position = (kinds >= 0).nonzero(as_tuple=True)
        nouns, owner = hidden[caption, position], kinds[caption, position]
        for name in _OBJECT_HEADS:
            labels = object_labels[name][rows].to(device)[caption, owner]
            losses.append(nn.functional.cross_entropy(heads[name](nouns).float(), labels, ignore_index=-1))
        return torch.stack(losses).sum()

    record = train(stage, reader, loss_of, folder, device=device)
    return encoder, record


def _kind_of_token(tokenizer: CLIPTokenizer) -> Tensor:
    """Return, for every token id, the kind whose noun it is, or -1."""
    table = torch.full((len(tokenizer),), -1)
    for index, nouns in enumerate(KINDS.values()):
        for noun in nouns:
            ids = tokenizer(noun, add_special_tokens=False).input_ids
            if len(ids) != 1:
                raise InputError(f"the noun {noun!r} is {len(ids)} tokens", expected="one token per noun")
            table[ids[0]] = index
    return table


def _labels(descriptions: list[Description]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return labels per scene (n) and per scene and kind (n, kinds); -1 where a kind is absent, 0 for unsaid."""
    kinds, colors, sizes, relations = (list(words) for words in (KINDS, COLORS, SIZES, RELATIONS))
    scene = {name: torch.zeros(len(descriptions), dtype=torch.long) for name in _SCENE_HEADS}
    objects = {name: torch.full((len(descriptions), len(KINDS)), -1) for name in _OBJECT_HEADS}
    for row, described in enumerate(descriptions):
        scene["background"][row] = list(BACKGROUNDS).index(described.background) + 1 if described.background else 0
        scene["style"][row] = list(STYLES).index(described.style) + 1 if described.style else 0
        for place, item in enumerate(described.objects):
            kind = kinds.index(item.kind)
            objects["color"][row, kind] = colors.index(item.color)
            objects["size"][row, kind] = sizes.index(item.size) + 1 if item.size else 0
            role = 1 + 2 * relations.index(described.relation) + place if described.relation else 0
            objects["relation"][row, kind] = role
    return scene, objects
