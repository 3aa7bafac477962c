"""A result in a few lines of text."""

from collections.abc import Mapping
from typing import Any


def costs(actual: float, dense: float, per: str = "per clip") -> str:
    """GMACs beside the dense cost."""
    return f"{actual:.4g} GMACs {per} of {dense:.4g} dense ({actual / dense:.1%})"


def shares(values: Mapping[str, float]) -> str:
    """Shares of the actions in one line."""
    return "  ".join(f"{name} {share:6.1%}" for name, share in values.items())


def evaluation(result: Mapping[str, Any]) -> str:
    """What an evaluation found: accuracy, cost, and the shares of the actions, overall and per site."""
    lines = [
        f"clips    {result['clips']:.0f}"
        + (f" ({result['unreadable']} more could not be read)" if result["unreadable"] else ""),
        f"top-1    {result['top1']:.2%}   top-5 {result['top5']:.2%}   mAP {result['map']:.2%}",
        f"cost     {costs(result['gmacs_per_clip'], result['dense_gmacs_per_clip'])}",
        f"actions  {shares(result['shares'])}",
    ]
    lines += [f"  {name:<12} {shares(values)}" for name, values in result["sites"].items()]
    if result.get("unreadable_train"):
        lines.append(f"training  {result['unreadable_train']} clips could not be read and were left out")
    return "\n".join(lines)
