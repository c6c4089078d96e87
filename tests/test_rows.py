"""Claims about taking and putting the rows of some images in nested tensors."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from redi.rows import put_rows, rows_of_images, take_rows, take_rows_of_call

WHOLE = torch.arange(12.0).reshape(6, 2)


def test_guidance_rows_belong_to_their_image_modulo_the_batch() -> None:
    assert rows_of_images([0, 2], batch=3, total=6) == [0, 2, 3, 5]


def test_only_tensors_of_all_rows_are_cut() -> None:
    other = torch.zeros(5)
    cut = take_rows({"text": [WHOLE, other], "scale": 7.5, "nothing": None}, [1, 4], 6)
    assert torch.equal(cut["text"][0], WHOLE[[1, 4]])
    assert cut["text"][1] is other
    assert (cut["scale"], cut["nothing"]) == (7.5, None)


def test_putting_back_what_was_taken_changes_nothing_and_keeps_the_original() -> None:
    before = WHOLE.clone()
    changed = put_rows((WHOLE,), (torch.full((2, 2), -1.0),), [1, 4], 6)
    assert torch.equal(WHOLE, before)
    assert torch.equal(put_rows(changed, take_rows((WHOLE,), [1, 4], 6), [1, 4], 6)[0], WHOLE)


def test_output_objects_of_diffusers_keep_their_type() -> None:
    whole = DDIMSchedulerOutput(prev_sample=WHOLE, pred_original_sample=None)
    part = DDIMSchedulerOutput(prev_sample=torch.zeros(1, 2), pred_original_sample=None)
    merged = put_rows(whole, part, [2], 6)
    assert isinstance(merged, DDIMSchedulerOutput)
    assert torch.equal(merged.prev_sample[2], torch.zeros(2))
    cut = take_rows(UNet2DConditionOutput(sample=WHOLE), [0], 6)
    assert isinstance(cut, UNet2DConditionOutput)
    assert torch.equal(cut.sample, WHOLE[:1])


def test_all_rows_are_handed_on_without_a_copy() -> None:
    assert take_rows(WHOLE, range(6), 6) is WHOLE


def test_places_of_tokens_are_not_rows_even_if_there_are_as_many() -> None:
    places = torch.zeros(6, 3)
    call = {"img_ids": places, "image_rotary_emb": (places, places), "text": WHOLE, "txt_ids": torch.zeros(6, 4, 3)}
    cut = take_rows_of_call(call, [1, 4], 6)
    assert cut["img_ids"] is places
    assert cut["image_rotary_emb"][1] is places
    assert torch.equal(cut["text"], WHOLE[[1, 4]])
    assert cut["txt_ids"].shape == (2, 4, 3), "with a batch axis they are rows"
