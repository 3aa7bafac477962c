"""Figures of the policies: their shares per site (after the paper's Figure 4), and a clip's own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

_COLOURS = {"skip": "#d9d9d9", "reuse": "#fdae6b", "keep": "#3182bd"}


def _colours(actions: Iterable[str]) -> dict[str, Any]:
    """Fixed colours for skip, reuse and keep, and for a net's other actions some from dark to light."""
    from matplotlib import colormaps

    actions = list(actions)
    shades = colormaps["viridis"](np.linspace(0, 1, len(actions)))
    return {name: _COLOURS.get(name, tuple(shade)) for name, shade in zip(actions, shades, strict=True)}


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
    actions = dict.fromkeys(action for shares in sites.values() for action in shares)
    for action, colour in _colours(actions).items():
        heights = [sites[name].get(action, 0.0) for name in names]
        axes.bar(names, heights, 0.8, bottom, color=colour, label=action)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of decisions")
    axes.set_xlabel("site")
    axes.tick_params(axis="x", rotation=45 if len(names) > 6 else 0)
    axes.set_title(title)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)


def draw_clip(
    clip: UInt8[np.ndarray, "t h w 3"],
    policies: Mapping[str, Float[np.ndarray, "t c actions"]],
    actions: tuple[str, ...],
    path: Path,
    title: str,
) -> None:
    """Writes a PNG of a clip's frames and, below each, what every channel of every site does there.

    The channels of a site are ordered by how often they are kept, then reused.

    Args:
        clip: the frames.
        policies: {site: one-hot}, of this clip alone.
        actions: names of the policies' last axis (`model.actions`).
        path: of the PNG.
        title: above the frames.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colour_of = _colours(actions)
    colours = ListedColormap([colour_of[a] for a in actions])
    figure = Figure(figsize=(0.9 * len(clip) + 0.7, 1.6 + 1.1 * len(policies)), layout="constrained")
    heights = [1.0] + [1.1] * len(policies)
    figure.get_layout_engine().set(hspace=0.04, h_pad=0.02)
    frames, *grids = figure.subplots(1 + len(policies), height_ratios=heights, squeeze=False)[:, 0]
    margin = ((0, 0), (0, 0), (1, 1), (0, 0))
    frames.imshow(
        np.concatenate(np.pad(clip, margin, constant_values=255), axis=1),
        aspect="auto",
        interpolation="nearest",
    )
    frames.set_title(title, fontsize=10)
    frames.set_axis_off()
    for axes, (site, policy) in zip(grids, policies.items(), strict=True):
        often = policy.mean(0)  # (c, actions); the columns rank from skip to keep
        order = np.lexsort(often.T)[::-1]
        axes.pcolormesh(policy.argmax(-1).T[order][::-1], cmap=colours, vmin=-0.5, vmax=len(actions) - 0.5)
        axes.vlines(range(1, len(clip)), 0, len(order), color="white", linewidth=2)
        axes.set_ylabel(f"{site}\n{len(order)} channels" if len(order) > 1 else site, fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    handles = [Patch(color=colour_of[a], label=a) for a in reversed(actions)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
