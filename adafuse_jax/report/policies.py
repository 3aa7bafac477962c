"""The figure of the policies per residual block (after the paper's Figure 4)."""

from collections.abc import Mapping
from pathlib import Path

_COLOURS = {"skip": "#d9d9d9", "reuse": "#fdae6b", "keep": "#3182bd"}


def draw(sites: Mapping[str, Mapping[str, float]], path: Path, title: str) -> None:
    """Writes a PNG of the share of each action at each site, from the first block to the last.

    Args:
        sites: {site: {action: share}}.
        path: of the PNG.
        title: above the bars.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(max(5.0, 0.5 * len(sites) + 3.0), 3.6), layout="constrained")
    axes = figure.subplots()
    names = list(sites)
    bottom = [0.0] * len(names)
    for action, colour in _COLOURS.items():
        heights = [sites[name].get(action, 0.0) for name in names]
        axes.bar(names, heights, 0.8, bottom, color=colour, label=action)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of channels and frames")
    axes.set_xlabel("residual block")
    axes.tick_params(axis="x", rotation=45 if len(names) > 6 else 0)
    axes.set_title(title)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)
