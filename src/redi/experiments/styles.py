"""Owns the study of styles that a base does not hold (figures 4 and 5 of the paper); must not know how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redi.comparison import Column
from redi.experiments.bills import Cost, Work
from redi.experiments.laboratory import Laboratory
from redi.experiments.sample_files import Pictures
from redi.experiments.sampling import Recording, Scale, Solver
from redi.experiments.sheets import sheet
from redi.generating import Generation, full, stylize
from redi.identity import library_versions
from redi.knowledge_base import KnowledgeBase
from redi.metrics import mean_interval
from redi.miniature.evaluation import bundled_evaluator
from redi.miniature.evaluator import Reading
from redi.miniature.quality import faithful, layout_similarity
from redi.miniature.scenes import Description
from redi.miniature.vocabulary import STYLES
from redi.results import write_json, write_picture
from redi.retrieval import combiner

_QUERIES = 10
"""Contents of each replicate, each in every style."""

RECORDING = Recording(Solver("dpm", 20), (3,), (10,), share=0.15, styles=False)
FULL = "full, prompt and style from the first step"
_SHEET = 6
_INFINITE = float("inf")


@dataclass(frozen=True)
class Way:
    """One way to a picture in a style."""

    label: str
    neighbors: int | None = None
    weights: str = "least-squares"
    jumps: bool = True


WAYS = (
    Way("ReDi, least squares H=2", neighbors=2),
    Way("ReDi, kriging", weights="kriging"),
    Way("prompt alone up to the key, then prompt and style, no jump", jumps=False),
)


def run_styles(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], recording: Recording = RECORDING
) -> dict[str, Any]:
    """Put held-out contents into styles, and let the evaluator read content, style and layout.

    Content is right if everything that the prompt says apart from the style is there; layout is compared with the
    run in full of the prompt alone from the same noise.

    Args:
        laboratory: Has the base, of captions without a style, and the prompts.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        recording: The base: its only key and value step.

    Returns:
        What the JSON file holds.
    """
    scale = laboratory.scale
    ((key_step,), (value_step,)) = recording.key_steps, recording.value_steps
    steps = recording.solver.steps
    contents = [_contents(laboratory, replicate) for replicate in range(scale.replicates)]
    tell(f"styles: at most {laboratory.bill(work(scale, recording))}")
    plain: list[Pictures] = []
    made: dict[tuple[str, str], list[Pictures]] = {}
    for replicate, content in enumerate(contents):
        prompts, noise_ids = list(content), laboratory.noise_ids(len(content))
        run = partial(laboratory.pictures, recording, replicate)
        plain.append(run("no style", partial(full, prompts=prompts, noise_ids=noise_ids, progress=False)))
        for style, suffix in STYLES.items():
            whole = [f"{prompt} {suffix}" for prompt in prompts]
            found = run(f"full {suffix}", partial(full, prompts=whole, noise_ids=noise_ids, progress=False))
            made.setdefault((FULL, style), []).append(found)
            for way in WAYS:
                one = partial(_stylized, prompts=prompts, noise_ids=noise_ids, suffix=suffix, way=way)
                made.setdefault((way.label, style), []).append(run(f"{way!r} {combiner(way.weights)!r} {suffix}", one))
    asked = [description for each in contents for description in each.values()]
    before = _read(plain)
    measured = {(label, style): _measures(asked, style, _read(found), before) for (label, style), found in made.items()}
    rows = []
    for label in (FULL, *(way.label for way in WAYS)):
        calls = float(np.concatenate([each.calls for style in STYLES for each in made[label, style]]).mean())
        for names in (*((style,) for style in STYLES), tuple(STYLES)):
            row: dict[str, Any] = {"label": label, "style": names[0] if len(names) == 1 else "all", "calls": calls}
            for measure in ("faithfulness", "style_right", "layout"):
                # A content's styles are averaged first: intervals are over contents.
                own, rival = (_mean([measured[one, name][measure] for name in names]) for one in (label, FULL))
                row[measure] = asdict(mean_interval(own))
                row[f"{measure}_against_full"] = asdict(mean_interval(own - rival))
            rows.append(row)
        tell(
            f"{label}: {calls:.0f} calls, content {rows[-1]['faithfulness']['value']:.1%}, style "
            f"{rows[-1]['style_right']['value']:.1%}, layout {rows[-1]['layout']['value']:.1%}"
        )
    result = {
        "study": "styles",
        "kind": "styles",
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "solver": f"{recording.solver.name}-{steps}",
        "key_step": key_step,
        "value_step": value_step,
        "entries": round(recording.share * scale.entries),
        "contents": len(asked),
        "full": FULL,
        "versions": library_versions(),
        "rows": rows,
        "sheet": f"{scale.name}/styles.png",
    }
    write_json(results / scale.name / "styles.json", result)
    write_picture(results / scale.name / "styles.png", _sheet(list(contents[0]), plain[0], made))
    return result


def work(scale: Scale, recording: Recording) -> Work:
    """Return what the study runs, at most: as if the first prompts said nothing of a style."""
    return Work(recordings=(recording,), others={"styles": Cost(_runs(recording) * min(_QUERIES, scale.prompts), 0)})


def _runs(recording: Recording) -> int:
    """Return the network calls of one content in all styles and ways."""
    ((key_step,), (value_step,)), steps = (recording.key_steps, recording.value_steps), recording.solver.steps
    of_styles = sum(steps - way.jumps * (value_step - key_step) for way in (*WAYS, Way("", jumps=False)))
    return steps + len(STYLES) * of_styles


def _contents(laboratory: Laboratory, replicate: int) -> dict[str, Description]:
    """Return the replicate's first prompts that say nothing of a style."""
    found = {text: asked for text, asked in laboratory.prompts(replicate).items() if asked.style is None}
    return dict(list(found.items())[:_QUERIES])


def _stylized(
    pipe: Any, base: KnowledgeBase, *, prompts: Sequence[str], noise_ids: Sequence[int], suffix: str, way: Way
) -> list[Generation]:
    return stylize(
        pipe,
        base,
        prompts,
        suffix,
        noise_ids=noise_ids,
        progress=False,
        neighbors=way.neighbors,
        weights=way.weights,
        max_distance=_INFINITE if way.jumps else 0.0,
    )


def _read(found: Sequence[Pictures]) -> list[Reading]:
    pictures = [Image.fromarray(picture) for each in found for picture in each.pictures]
    return bundled_evaluator().read(pictures)


def _measures(
    asked: Sequence[Description], style: str, seen: Sequence[Reading], before: Sequence[Reading]
) -> dict[str, NDArray[np.float64]]:
    """Return for each content (n) whether it is there, whether the style is, and how alike the layouts are."""
    right = [faithful(one, reading).content for one, reading in zip(asked, seen, strict=True)]
    alike = [layout_similarity(one, other) for one, other in zip(seen, before, strict=True)]
    return {
        "faithfulness": np.asarray(right, np.float64),
        "style_right": np.asarray([reading.style == style for reading in seen], np.float64),
        "layout": np.asarray(alike, np.float64),
    }


def _mean(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.mean(parts, axis=0))


def _sheet(prompts: Sequence[str], plain: Pictures, made: dict[tuple[str, str], list[Pictures]]) -> Any:
    """Return the first contents without a style and in each, in full and by each way that jumps."""
    labels = {FULL: "full"} | {way.label: way.label for way in WAYS if way.jumps}
    rows = {"no style, full": plain}
    rows |= {f"{style}: {short}": made[label, style][0] for style in STYLES for label, short in labels.items()}
    columns = [
        Column(
            prompt,
            tuple(Image.fromarray(each.pictures[place]) for each in rows.values()),
            tuple(f"{each.calls[place]:.0f} calls" for each in rows.values()),
        )
        for place, prompt in enumerate(prompts[:_SHEET])
    ]
    heading = "Figures 4 and 5: styles that the base does not hold"
    return sheet(columns, list(rows), per_band=_SHEET, heading=heading)
