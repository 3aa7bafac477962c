"""What policies save in theory, and what is measured, one beside the other."""

import numpy as np
from jaxtyping import Array, ArrayLike, Float

from adafuse_jax.models.arnet import ARNet
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.ops import costs
from adafuse_jax.report import summary


def times(compact: ArrayLike | None, dense: ArrayLike | None, per: str = "per clip") -> str:
    """Seconds of compact execution beside those of everything computed.

    Args:
        compact: as measured, once or by turns; None: not measured.
        dense: the same, of the same turns.
        per: what they are of.

    Returns:
        Medians in ms, and the median of the ratios of one turn, with its quartiles if there were several.
    """
    if compact is None and dense is None:
        return "not measured"
    if compact is None or dense is None:
        how, seconds = ("dense", dense) if compact is None else ("compact", compact)
        return f"{1e3 * np.median(seconds):.1f} ms {per}, {how}"
    ratios = np.atleast_1d(np.asarray(compact) / np.asarray(dense))
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    spread = f"; {low:.1%} to {high:.1%}" if len(ratios) > 1 else ""
    of = f"{1e3 * np.median(dense):.1f} dense ({middle:.1%}{spread})"
    return f"{1e3 * np.median(compact):.1f} ms {per} of {of}"


def side_by_side(
    gmacs: float,
    dense_gmacs: float,
    compact: ArrayLike | None = None,
    dense: ArrayLike | None = None,
    per: str = "per clip",
) -> list[str]:
    """Two lines, theory and what was measured: `summary.costs` and `times`."""
    return [f"cost     {summary.costs(gmacs, dense_gmacs, per)}", f"time     {times(compact, dense, per)}"]


def by_stage(
    model: Recognizer | ARNet,
    policies: dict[str, Float[Array, "b t c actions"]],
    *,
    image_size: int | tuple[int, int] = 224,
    num_frames: int = 8,
) -> dict[str, tuple[float, float]]:
    """GMACs per clip, on average over the clips: {stage: (dense, saved)}, adding up to `flops.count`'s.

    Of a stage, the convolutions that its policies decide on; of "all else" the rest of the model.

    Args:
        model: of the zoo.
        policies: what it decided.
        image_size: pixels, the side of a square or (height, width).
        num_frames: T, of a model without policies.
    """
    frame = model.count((image_size, image_size) if isinstance(image_size, int) else tuple(image_size))
    stages: dict[str, tuple[float, float]] = {}
    for name, site in frame.sites.items():
        num_frames = policies[name].shape[1]
        saved = float(np.mean(sum(costs.savings(policies[name], site, model.actions))))
        dense, before = stages.get(model.stage_of(name), (0.0, 0.0))
        stages[model.stage_of(name)] = (dense + _decided(site), before + saved)
    stages["all else"] = (frame.dense - sum(dense for dense, _ in stages.values()), 0.0)
    factor = num_frames / 1e9
    return {stage: (factor * dense, factor * saved) for stage, (dense, saved) in stages.items()}


def _decided(site: costs.SiteCost | costs.ChoiceCost) -> float:
    if isinstance(site, costs.ChoiceCost):
        return site.spent[0] + site.policy
    return sum(macs for _, macs in site.before) + site.after


def table(stages: dict[str, tuple[float, float]]) -> str:
    """`by_stage` as text."""
    everything = tuple(np.sum(list(stages.values()), axis=0))
    lines = [f"{'GMACs per clip':<16}{'dense':>10}{'saved':>10}{'share':>8}"]
    for stage, (dense, saved) in [*stages.items(), ("all", everything)]:
        lines.append(f"{stage:<16}{dense:>10.4f}{saved:>10.4f}{saved / dense if dense else 0:>8.1%}")
    return "\n".join(lines)
