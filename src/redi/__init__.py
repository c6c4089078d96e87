"""redi: trajectory retrieval for diffusion models.

    import redi

    kb = redi.build(pipe, prompts, "my-base", plan=redi.Plan(24, key_step=2, value_steps=(4, 6)))
    redi.enable(pipe, kb)
    image = pipe("an astronaut riding a horse", num_inference_steps=24).images[0]
    print(redi.summary(pipe))

Names are imported when they are first used, so that ``import redi`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redi.building import build
    from redi.calibrating import calibrate
    from redi.enabling import disable, enable, reports, summary
    from redi.errors import RediError
    from redi.generating import generate, stylize
    from redi.knowledge_base import KnowledgeBase
    from redi.knowledge_base.growth import Growth
    from redi.plan import Plan
    from redi.retrieval import Gate, Report

    __version__: str

__all__ = [
    "Gate",
    "Growth",
    "KnowledgeBase",
    "Plan",
    "RediError",
    "Report",
    "__version__",
    "build",
    "calibrate",
    "disable",
    "enable",
    "generate",
    "reports",
    "stylize",
    "summary",
]

_HOMES = {
    "Gate": "redi.retrieval",
    "Growth": "redi.knowledge_base.growth",
    "KnowledgeBase": "redi.knowledge_base",
    "Plan": "redi.plan",
    "RediError": "redi.errors",
    "Report": "redi.retrieval",
    "build": "redi.building",
    "calibrate": "redi.calibrating",
    "disable": "redi.enabling",
    "enable": "redi.enabling",
    "generate": "redi.generating",
    "reports": "redi.enabling",
    "stylize": "redi.generating",
    "summary": "redi.enabling",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("redi")
    elif name == "solvers":
        value = import_module("redi.solvers")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'redi' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
