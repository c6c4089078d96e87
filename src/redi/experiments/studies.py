"""Owns which samplings each table of the paper, and each claim of ours, compares; must not know how they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redi.experiments.bills import after
from redi.experiments.estimators import Softmax
from redi.experiments.sampling import SPACING, Recording, Sampling, Solver, chained, plain, redi
from redi.experiments.spacings import TIMESTEPS


@dataclass(frozen=True)
class Claim:
    """One sentence that a study tests: ``ours`` is no worse than ``rival`` in a measure, outside the
    interval of their difference.

    Attributes:
        ours: Label of a sampling.
        rival: Label of another.
        measure: "frechet", "closeness" or "at_value" (less is better), or "faithfulness" (more is better).
    """

    ours: str
    rival: str
    measure: str


@dataclass(frozen=True)
class Study:
    """Samplings to be compared.

    Attributes:
        name: As the command calls it.
        title: Of its table.
        samplings: Its rows.
        full: The run in full, which closeness is measured to.
        claims: What is tested.
        paper: What the paper reports (FID on COCO with Stable Diffusion 1.5), by label.
        remark: What else is to be said beside the table, in Markdown.
        plot: Whether to draw measures over calls.
        at_value: Whether to measure how far a jump's x_v is from that of the run in full.
        kind: Which section of the report shows it.
        shown: Labels of the samplings that the sheet of pictures shows, beside the run in full; of none, all.
    """

    name: str
    title: str
    samplings: tuple[Sampling, ...]
    full: Sampling
    claims: tuple[Claim, ...] = ()
    paper: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""
    plot: bool = False
    at_value: bool = False
    kind: str = "comparison"
    shown: tuple[str, ...] = ()


COMPARED = ("frechet", "faithfulness", "closeness")
"""What is told of every comparison."""

PNDM = Recording(Solver("pndm", 50), (10,), (20, 30, 40))
DPM = Recording(Solver("dpm", 20), (5,), (8, 10, 13, 15))
_PNDM_SHORTER, _DPM_SHORTER = Recording(Solver("pndm", 24), (2,), (6,)), Recording(Solver("dpm", 12), (2,), (4,))
"""As many calls as the paper's longest jumps leave: 4 steps of 24 are skipped, not 30 of 50; 2 of 12, not 10 of 20."""
PNDM_KEYS = Recording(Solver("pndm", 24), (1, 4), (5, 8))
"""An earlier key and a later one for as many calls."""
SHORTEST = Recording(Solver("dpm", 5), (1, 2), (3, 4))
SHORT = Recording(Solver("dpm", 10), (1, 2, 3), (4, 5, 6, 7, 8, 9))
_NIRVANA = Recording(Solver("dpm", 20), (1,), (2, 4, 6, 8, 10))
_THRESHOLDS = ((0.95, 10), (0.9, 8), (0.85, 6), (0.75, 4), (0.65, 2))
"""NIRVANA's, whose steps 25, 20, 15, 10 and 5 of 50 are these of 20."""
_FIRST_THRESHOLD = (
    "NIRVANA's thresholds let a picture skip the less, the less its nearest prompt is like its own. Hardly more calls "
    "than a text key's from the start mean that nearly all pass the first."
)
_EVEN: dict[str, bool] = {}
_KARRAS, _LOG_SNR, _TRAILING = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}, {"timestep_spacing": "trailing"}


def _trailing(recording: Recording) -> Recording:
    return replace(recording, solver=replace(recording.solver, settings=tuple(_TRAILING.items())))


SHORTEST_TRAILING, SHORT_TRAILING = _trailing(SHORTEST), _trailing(SHORT)
_SHORT_PNDM = replace(SHORT, solver=Solver("pndm", 10))
_SKIPPED, _SKIPPED_PNDM, _SHOWN = (2, 3, 4, 5, 6, 7), (4, 5, 6), (4, 6)
"""Steps that jumps from several keys skip: with as many steps skipped, a run makes as many calls. And of which of them
there are pictures."""
_SIX = Recording(Solver("dpm", 6), (2,), (3, 4))
_BETWEEN = (
    _SIX,
    _trailing(_SIX),
    _trailing(Recording(Solver("dpm", 7), (3,), (4, 5))),
    _trailing(Recording(Solver("dpm", 8), (3,), (4, 5))),
)
"""Jumps of one step or two, for as many calls as are more than 5 steps leave and fewer than 10 do."""
_SPACED = tuple(
    Recording(Solver("dpm", 8, (spacing,)), (1, 2), (3, 4, 5, 6))
    for spacing in (*_KARRAS.items(), *((SPACING, name) for name in TIMESTEPS))
)
"""Bases of the other spacings; of log-SNR and trailing ones there are longer and shorter ones too."""
_LONG = (DPM, _trailing(DPM), _trailing(Recording(Solver("dpm", 28), (5,), (8,))))
"""Jumps of more calls than those of short bases."""
_CHAINS = "Several jumps: a call at every stop, DPM-Solver++(2M)"
_CHAINED = (
    "A chain makes one call at each of a few stops of the schedule and jumps from each to the next, the last to the "
    "end. Where to is kriging over the entries of the noise, by what the stop's call predicts x_0 to be; of what that "
    "leaves of this prediction, of earlier ones and of the latents, as much is carried as entries show; the bandwidth "
    "is the one that explains each entry best by the others. *No neighbours* is the noise's mean and the offsets, "
    "scaled: steps fitted to the base's trajectories. The stops were chosen on the first bank's prompts. "
    "Chains are an experiment: `redi.enable` makes one jump."
)
_FEW, _MANY = (3, 4, 5, 6, 7, 8, 10), (15, 25)
_ALL = (*_FEW, *_MANY)
_HEUN = (3, 5, 7, 9)
_THIRD: Mapping[str, Any] = {"solver_order": 3}
"""DPM-Solver++(3M)."""
_ALIGNED: Mapping[str, Any] = {SPACING: "align-your-steps"}
_OF_DPM: tuple[Mapping[str, Any], ...] = (_KARRAS, _LOG_SNR, *({SPACING: name} for name in TIMESTEPS))
_EXPONENTIAL: Mapping[str, Any] = {"use_exponential_sigmas": True}
"""Log-SNR spacing by the name that most schedulers have for it."""
_LINSPACED: tuple[Mapping[str, Any], ...] = tuple(
    {"timestep_spacing": "linspace", **each} for each in (_KARRAS, _EXPONENTIAL)
)
"""Of a scheduler that puts Karras's and log-SNR steps between the first and last of its timesteps: with leading ones
these would begin in the middle of the noise."""
_NOT_RUN = (
    "Spacings that are missing: *quadratic* and *align-your-steps* are timesteps of the caller's, which UniPC, DEIS, "
    "DDIM and PNDM refuse; DDIM and PNDM have no noise levels to space. Not run: DPM-Solver++(3M) and Heun in "
    "Karras's, log-SNR and quadratic spacing, Euler in quadratic spacing. With 3 and 4 steps (3M) is (2M), since a run "
    "begins and ends with lower orders."
)
_ALONE: tuple[tuple[str, Mapping[str, Any], tuple[int, ...]], ...] = (
    ("dpm", _EVEN, (*_ALL, 50)),
    ("dpm", _TRAILING, (*_ALL, 50)),
    *(("dpm", spacing, _FEW) for spacing in _OF_DPM),
    ("dpm", _THIRD, _FEW),
    *(("dpm", {**_THIRD, **spacing}, _FEW[2:]) for spacing in (_TRAILING, _ALIGNED)),
    ("unipc", _EVEN, _ALL),
    *(("unipc", spacing, _FEW) for spacing in (_TRAILING, _KARRAS, _EXPONENTIAL)),
    ("deis", _EVEN, _ALL),
    *(("deis", spacing, _FEW) for spacing in (_TRAILING, _KARRAS, _EXPONENTIAL)),
    ("ddim", _EVEN, (*_ALL, 50)),
    ("ddim", _TRAILING, _FEW),
    ("euler", _EVEN, _ALL),
    *(("euler", spacing, _FEW) for spacing in (_TRAILING, *_LINSPACED, _ALIGNED)),
    ("pndm", _EVEN, _ALL[1:]),
    ("pndm", _TRAILING, _FEW[1:]),
    ("heun", _EVEN, (*_HEUN, *_MANY)),
    *(("heun", spacing, _HEUN) for spacing in (_TRAILING, _ALIGNED)),
)
"""Solvers alone, in which spacing, with how many calls."""
_STEPS: Mapping[str, Callable[[int], int]] = {"pndm": lambda calls: calls - 1, "heun": lambda calls: (calls + 1) // 2}
"""Of so many calls: PNDM takes one call more than its steps, Heun nearly twice as many."""


def table1() -> Study:
    """Table 1 of the paper: PNDM with and without ReDi, H = 1 and 2; its 20, 30 and 40 calls are 21, 31 and 41. And
    its claim for a shorter schedule and for fewer steps alone."""
    plains = [plain("pndm", steps) for steps in (20, 30, 40, 50)]
    finest = plain("ddim", 1000, **_TRAILING)  # leading ones begin at timestep 1000, which a model of 1000 has not
    jumps = {(h, v): redi(PNDM, 10, v, neighbors=h) for h in (1, 2) for v in (40, 30, 20)}
    kriged = [redi(PNDM, 10, v, weights="kriging") for v in (40, 30, 20)]
    shorter = _jumps_of(_PNDM_SHORTER)
    keys = [redi(PNDM_KEYS, k, v, weights="kriging") for k, v in ((1, 5), (4, 8))]
    reported = dict(zip((each.label for each in plains), (0.274, 0.268, 0.262), strict=False))
    reported |= dict(
        zip((each.label for each in jumps.values()), (0.265, 0.264, 0.262, 0.255, 0.247, 0.252), strict=True)
    )
    reported[finest.label] = 0.255
    return Study(
        "table1",
        "Table 1: PNDM, 50 steps, key after 10",
        (*plains, *jumps.values(), *kriged, *shorter, *keys, finest),
        plains[-1],
        _no_worse(plains[2], jumps[2, 40], kriged[0], *shorter, plains[0]),
        reported,
    )


def table2() -> Study:
    """Table 2 of the paper: DPM-Solver with and without ReDi, H = 1 and 2. And its claim for a shorter schedule and for
    fewer steps alone."""
    plains = [plain("dpm", steps) for steps in (10, 12, 15, 17, 20)]
    jumps = {(h, v): redi(DPM, 5, v, neighbors=h) for h in (1, 2) for v in (15, 13, 10, 8)}
    kriged = [redi(DPM, 5, v, weights="kriging") for v in (15, 13, 10, 8)]
    shorter = _jumps_of(_DPM_SHORTER)
    reported = dict(zip((each.label for each in plains), (0.268, 0.265, 0.263, 0.258), strict=False))
    of_jumps = (0.265, 0.259, 0.256, 0.255, 0.261, 0.257, 0.253, 0.252)
    reported |= dict(zip((each.label for each in jumps.values()), of_jumps, strict=True))
    return Study(
        "table2",
        "Table 2: DPM-Solver++(2M), 20 steps, key after 5",
        (*plains, *jumps.values(), *kriged, *shorter),
        plains[-1],
        _no_worse(plains[3], jumps[2, 15], kriged[0], *shorter, plains[0]),
        reported,
    )


def table3() -> Study:
    """Table 3 of the paper: neighbours found by the trajectory, by the text and at random, at the same calls."""
    full = plain("dpm", 20)
    pairs = [[redi(DPM, 5, v, neighbors=2, key=key) for key in ("trajectory", "text", "random")] for v in (15, 10)]
    claims = [
        Claim(ours.label, text.label, measure)
        for ours, text, _ in pairs
        for measure in ("at_value", "faithfulness", "closeness", "frechet")
    ]
    samplings = (full, *(each for pair in pairs for each in pair))
    return Study(
        "table3",
        "Table 3: what finds the neighbours",
        samplings,
        full,
        tuple(claims),
        remark="The paper's table is of PNDM, CLIP's embedding of the text, 40 and 30 calls: x_v 9.03 and 8.53 apart "
        "with the text for a key, 7.95 and 7.28 with the trajectory; FID 0.2709 and 0.2784 against 0.2626 and 0.2643. "
        "Here it is DPM-Solver++, the pipeline's own text encoder, and 10 and 15 calls.",
        at_value=True,
    )


def rivals() -> Study:
    """What the paper left out: fast solvers with the same few calls, in several spacings, against ReDi on them."""
    full = plain("dpm", 20)
    plains = [
        plain(name, _STEPS.get(name, int)(calls), **settings) for name, settings, many in _ALONE for calls in many
    ]
    jumps = []
    for spacing in (_EVEN, _LOG_SNR):
        recording = Recording(Solver("dpm", 10, tuple(spacing.items())), (1, 2), (3, 5, 6, 7, 8))
        jumps += [redi(recording, 1, v, neighbors=4) for v in (3, 5, 6, 7, 8)]
    jumps += [redi(recording, 1, v, weights="kriging") for v in (3, 5)]
    for short, shortest in ((SHORT, SHORTEST), (SHORT_TRAILING, SHORTEST_TRAILING)):
        for key_step, value_steps in ((1, (4, 5, 6, 7, 8)), (2, (4, 6, 7, 8, 9)), (3, (5, 7, 8, 9))):
            jumps += [redi(short, key_step, v, weights="kriging") for v in value_steps]
        jumps += [redi(shortest, k, v, weights="kriging") for k, v in ((2, 3), (1, 3), (2, 4), (1, 4))]
    for recording in _SPACED:
        jumps += [redi(recording, k, v, weights="kriging") for k, v in ((2, 3), (2, 4), (2, 5), (2, 6), (1, 6))]
    for recording in (*_BETWEEN, _DPM_SHORTER, *_LONG):
        jumps += [redi(recording, recording.key_steps[0], v, weights="kriging") for v in recording.value_steps]
    rows = (full, *plains, *jumps)
    return Study("rivals", "Few calls: ReDi and solvers alone", rows, full, remark=_NOT_RUN, plot=True)


def keys() -> Study:
    """Where the best key lies, by DPM-Solver++: as a function of calls, and with no key at all."""
    return _by_key("keys", "DPM-Solver++(2M), 10 steps", plain("dpm", 20), SHORT, _SKIPPED)


def keys_pndm() -> Study:
    """Where the best key lies, by PNDM."""
    return _by_key("keys-pndm", "PNDM, 10 steps", plain("pndm", 20), _SHORT_PNDM, _SKIPPED_PNDM)


def chains() -> Study:
    """Several jumps instead of one: a call at every stop and nothing between, against solvers alone with as many."""
    full = plain("dpm", 20)
    alone = {
        3: [plain("dpm", 3), plain("dpm", 3, **_TRAILING), plain("deis", 3), plain("deis", 3, **_TRAILING)],
        4: [plain("dpm", 4), plain("dpm", 4, **_TRAILING), plain("deis", 4)],
    }
    trailing, even = {3: (0, 3, 6), 4: (0, 3, 5, 8)}, {3: (0, 2, 3), 4: (0, 1, 2, 3)}
    ours = {calls: [chained(SHORT_TRAILING, *trailing[calls]), chained(SHORTEST, *even[calls])] for calls in alone}
    fitted = {calls: chained(SHORT_TRAILING, *stops, neighbours=False) for calls, stops in trailing.items()}
    claims = [
        Claim(chain.label, rival.label, measure)
        for calls, chains in ours.items()
        for chain in chains
        for rival in alone[calls]
        for measure in COMPARED
    ]
    claims += [Claim(ours[calls][0].label, none.label, each) for calls, none in fitted.items() for each in COMPARED]
    later = chained(SHORT_TRAILING, 0, 4, 7)
    jumps = [redi(SHORT_TRAILING, 2, v, weights="kriging") for v in (9, 8)]
    rows = [each for calls in alone for each in (*alone[calls], *ours[calls], fitted[calls])]
    return Study("chains", _CHAINS, (full, *rows, later, *jumps), full, tuple(claims), remark=_CHAINED)


def variants() -> Study:
    """What else is done with a neighbour: its picture handed out, or noised again (SDEdit), a text key with nothing run
    before it (with NIRVANA's thresholds too), a random neighbour, and other weights: all of table 2's base, with the
    same 10 calls where any."""
    full = plain("dpm", 20)
    nirvana = redi(_NIRVANA, 0, 10, weights="nearest", key="text", thresholds=_THRESHOLDS)
    ours = redi(DPM, 5, 15, weights="kriging")
    others = [
        *(redi(DPM, 5, 15, weights=weights) for weights in ("least-squares", "affine", "nearest", Softmax())),
        redi(DPM, 5, 15, weights="nearest", key="text"),
        redi(DPM, 5, 15, weights="nearest", key="random"),
        redi(DPM, 5, 15, weights="nearest", value="picture"),
        redi(DPM, 0, 10, weights="nearest", key="text"),
        redi(DPM, 0, 10, weights="nearest", key="text", value="picture"),
        redi(DPM, 5, 20, weights="nearest", value="picture"),
        redi(DPM, 0, 20, weights="nearest", key="text", value="picture"),
        plain("dpm", 10),
    ]
    claims = [Claim(ours.label, each.label, measure) for each in others for measure in ("frechet", "faithfulness")]
    rows = (full, ours, *others, nirvana)
    return Study("variants", "What else is done with a neighbour", rows, full, tuple(claims), remark=_FIRST_THRESHOLD)


def smaller() -> Study:
    """What values of 8 and 4 bits cost: the paper's DPM-Solver jumps, from values as recorded and from smaller ones."""
    full = plain("dpm", 20)
    rows, claims = [], []
    for value_step in (15, 13, 10, 8):
        exact = redi(DPM, 5, value_step, neighbors=2)
        less = [redi(replace(DPM, values=codec), 5, value_step, neighbors=2) for codec in ("int8", "nf4")]
        rows += [exact, *less]
        claims += [Claim(each.label, exact.label, measure) for each in less for measure in COMPARED]
    return Study("smaller", "Values of fewer bits: DPM-Solver++(2M), 20 steps", tuple(rows), full, tuple(claims))


def _by_key(name: str, title: str, full: Sampling, recording: Recording, skipped: Sequence[int]) -> Study:
    """Return jumps that differ in their key alone, for each number of skipped steps: the latest against the earliest,
    and that against none, which is the prompt's embedding with nothing run before the jump."""
    rows, claims, shown = [], [], []
    for skip in skipped:
        steps = [key for key in recording.key_steps if key + skip in recording.value_steps]
        jumps = [redi(recording, key, key + skip, weights="kriging") for key in steps]
        pairs = [(jumps[-1], jumps[0])]
        # No step before the jump saves the calls of one, which are two of PNDM: it goes on a step earlier.
        value_step = skip + 1 - after(recording.solver, 1)
        if value_step in recording.value_steps:
            none = redi(recording, 0, value_step, weights="kriging", key="text")
            jumps = [none, *jumps]
            pairs.append((jumps[1], none))
        rows += jumps
        shown += [each.label for each in jumps if skip in _SHOWN]
        claims += [Claim(ours.label, rival.label, each) for ours, rival in pairs for each in COMPARED]
    return Study(name, title, (full, *rows), full, tuple(claims), kind="keys", shown=tuple(shown))


def _jumps_of(recording: Recording) -> tuple[Sampling, ...]:
    """Return the jump of a recording by the paper's two neighbours, by the library's weights of two, and of its own."""
    (key_step,), (value_step,) = recording.key_steps, recording.value_steps
    ways: tuple[dict[str, Any], ...] = (
        {"neighbors": 2},
        {"weights": "kriging", "neighbors": 2},
        {"weights": "kriging"},
    )
    return tuple(redi(recording, key_step, value_step, **way) for way in ways)


def _no_worse(rival: Sampling, *each: Sampling) -> tuple[Claim, ...]:
    return tuple(Claim(ours.label, rival.label, measure) for ours in each for measure in ("frechet", "faithfulness"))


STUDIES: Mapping[str, Study] = {
    each.name: each
    for each in (table1(), table2(), table3(), rivals(), keys(), keys_pndm(), chains(), variants(), smaller())
}
