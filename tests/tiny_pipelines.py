"""Builds tiny instances of the real, unmodified Diffusers pipelines, with random weights and no network.

``TEXT_TO_ANYTHING[name].build()`` is a pipeline with the same weights every time; ``.call`` are the arguments of every
call of it that make it small (8x8 latents or so).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLWan,
    AutoencoderOobleck,
    ClassifierFreeGuidance,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLModularPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    UMT5Config,
    UMT5EncoderModel,
)

from redi.modular import bars_of
from tiny_parts import (
    TOKENS,
    clip,
    clip_tokenizer,
    gemma_tokenizer,
    picture,
    sd_parts,
    sdxl_parts,
    t5,
    t5_tokenizer,
    unet,
    vae,
)


@dataclass(frozen=True)
class Tiny:
    """A pipeline to be built, and what tests must know of it.

    Args:
        make: Builds it, with random weights from torch's global generator.
        shape: Of one latent as its scheduler steps it.
        call: Arguments of every call.
        guided: Arguments that switch classifier-free guidance on.
        unguided: Arguments that switch it off.
        several: Name of its argument for several samples of one prompt.
        output: Name of the samples in what it returns.
        output_types: What its ``output_type`` may be, decoded ones; "latent" goes for all.
        form: Arguments that say what it returns.
        make_unguided: Builds it without guidance, where no argument switches that off.
        begins: Completed steps at which it begins, of eight: image-to-image begins inside the schedule.
        takes_latents: Whether it starts from latents that it is given; otherwise from a noised picture.
    """

    make: Callable[[], Any]
    shape: tuple[int, ...] = (4, 8, 8)
    call: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 5.0, "negative_prompt": "ugly"})
    unguided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    several: str = "num_images_per_prompt"
    output: str = "images"
    output_types: tuple[str, ...] = ("pil", "np", "pt")
    form: Mapping[str, Any] = field(default_factory=dict)
    make_unguided: Callable[[], Any] | None = None
    begins: int = 0
    takes_latents: bool = True

    def build(self, dtype: torch.dtype = torch.float32, guided: bool = True) -> Any:
        """Return the pipeline, on the CPU, its progress bar hidden; the global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.make() if guided or self.make_unguided is None else self.make_unguided()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        for bar in bars_of(pipe):
            bar.set_progress_bar_config(disable=True)
        return pipe if dtype == torch.float32 else pipe.to(dtype)


def stable_diffusion() -> StableDiffusionPipeline:
    """SD 1.5's shape."""
    return StableDiffusionPipeline(**sd_parts(), requires_safety_checker=False)


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """SDXL's shape."""
    return StableDiffusionXLPipeline(**sdxl_parts())


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """SD 3's shape: three text encoders, flow matching."""
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> FluxPipeline:
    """Flux's shape: packed latents, a schedule shifted by the size."""
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma's shape: variance learned, no step callback."""
    return PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            norm_elementwise_affine=False,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(solver_order=2),
        vae=vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def sana() -> SanaPipeline:
    """Sana's shape: a deep-compression autoencoder, flow by DPM-Solver++."""
    blocks = {
        "layers_per_block": (1, 1),
        "block_out_channels": (8, 8),
        "qkv_multiscales": ((), ()),
        "block_types": "ResBlock",
    }
    tokenizer = gemma_tokenizer()
    return SanaPipeline(
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            **{f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in blocks.items()},
            scaling_factor=0.41407,
        ),
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        tokenizer=tokenizer,
    )


def wan_transformer() -> WanTransformer3DModel:
    """Return one expert."""
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )


def wan(**experts: Any) -> WanPipeline:
    """Wan 2.1's shape: video, two network calls a step, latents that are not scaled."""
    return WanPipeline(
        transformer=wan_transformer(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        vae=AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 2.5, 1.0],
        ),
        text_encoder=t5(UMT5EncoderModel, UMT5Config),
        tokenizer=t5_tokenizer(),
        **experts,
    )


def wan_of_two_experts() -> WanPipeline:
    """Wan 2.2's shape: another network from the boundary on."""
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.8)


def stable_audio() -> StableAudioPipeline:
    """Stable Audio's shape: waveforms, a legacy callback."""
    return StableAudioPipeline(
        transformer=StableAudioDiTModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(
            sigma_min=0.3,
            sigma_max=500,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
            solver_order=2,
        ),
        vae=AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[1, 2],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=4,
        ),
        text_encoder=t5(width=32),
        tokenizer=t5_tokenizer(),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=16, min_value=0, max_value=32
        ),
    )


def image_to_image() -> StableDiffusionImg2ImgPipeline:
    """SD's shape, from a picture that is noised."""
    return StableDiffusionImg2ImgPipeline(**sd_parts(), requires_safety_checker=False)


def image_to_image_xl() -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's shape, from a picture that is noised."""
    return StableDiffusionXLImg2ImgPipeline(**sdxl_parts())


def inpaint() -> StableDiffusionInpaintPipeline:
    """SD's shape, with a U-Net that sees mask and masked picture."""
    return StableDiffusionInpaintPipeline(**{**sd_parts(), "unet": unet(9)}, requires_safety_checker=False)


def inpaint_xl() -> StableDiffusionXLInpaintPipeline:
    """SDXL's shape, the plain U-Net: what is not masked is put back after every step."""
    return StableDiffusionXLInpaintPipeline(**sdxl_parts())


def controlnet() -> StableDiffusionControlNetPipeline:
    """SD's shape, with a second network whose features are added."""
    parts = sd_parts()
    control = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8))
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight)  # else zero, and the control does nothing
    return StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False)


def modular_xl(guidance_scale: float = 5.0) -> StableDiffusionXLModularPipeline:
    """SDXL's shape, made of blocks, guided by a component."""
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**sdxl_parts(), guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
    return pipe


SQUARE = {"height": 16, "width": 16}
VIDEO = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": TOKENS}

TEXT_TO_ANYTHING: Mapping[str, Tiny] = {
    "StableDiffusion": Tiny(stable_diffusion),
    "StableDiffusionXL": Tiny(stable_diffusion_xl),
    "StableDiffusion3": Tiny(stable_diffusion_3, call={"max_sequence_length": TOKENS}),
    "Flux": Tiny(
        flux,
        (16, 16),
        {**SQUARE, "max_sequence_length": TOKENS},
        guided={"true_cfg_scale": 4.0, "negative_prompt": "ugly"},
        unguided={},
    ),
    "PixArt-Sigma": Tiny(
        pixart_sigma,
        call={"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": TOKENS},
    ),
    "Sana": Tiny(
        sana,
        (4, 16, 16),
        {
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
            "complex_human_instruction": [],
            "max_sequence_length": TOKENS,
        },
    ),
    "Wan": Tiny(wan, (4, 2, 4, 4), VIDEO, several="num_videos_per_prompt", output="frames"),
    "Wan, two experts": Tiny(wan_of_two_experts, (4, 2, 4, 4), VIDEO, several="num_videos_per_prompt", output="frames"),
    "StableAudio": Tiny(
        stable_audio, (4, 8), several="num_waveforms_per_prompt", output="audios", output_types=("np", "pt")
    ),
}

MASKED = {"image": picture(1), "mask_image": (picture(2, 1) > 0.5).float(), "strength": 1.0, **SQUARE}
FROM_PICTURE: Mapping[str, Tiny] = {
    "StableDiffusionImg2Img": Tiny(
        image_to_image, call={"image": picture(1), "strength": 0.9}, begins=1, takes_latents=False
    ),
    "StableDiffusionXLImg2Img": Tiny(
        image_to_image_xl, call={"image": picture(1), "strength": 0.9}, begins=1, takes_latents=False
    ),
    "StableDiffusionInpaint": Tiny(inpaint, call=MASKED),
    "StableDiffusionXLInpaint": Tiny(inpaint_xl, call=MASKED),
    "StableDiffusionControlNet": Tiny(controlnet, call={"image": picture(1), "control_guidance_end": 0.5}),
}

MODULAR: Mapping[str, Tiny] = {
    "StableDiffusionXL, modular": Tiny(
        modular_xl,
        call=SQUARE,
        guided={"negative_prompt": "ugly"},
        unguided={"negative_prompt": "ugly"},
        form={"output": "images"},
        output="",
        make_unguided=lambda: modular_xl(1.0),
    )
}
