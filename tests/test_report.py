"""What a person reads: numbers as they were found, bars as high as the shares."""

import cv2
import matplotlib.colors
import numpy as np
import pytest

from adafuse_jax.report import policies, summary

ACTIONS = ("skip", "reuse", "keep")
RESULT = {
    "clips": 600.0,
    "loss": 0.5,
    "top1": 0.9125,
    "top5": 1.0,
    "map": 0.93456,
    "gmacs_per_clip": 0.04312,
    "dense_gmacs_per_clip": 0.0616,
    "shares": {"skip": 0.25, "reuse": 0.3, "keep": 0.45},
    "sites": {
        "layer1.0": {"skip": 0.0, "reuse": 0.0, "keep": 1.0},
        "layer2.0": {"skip": 0.5, "reuse": 0.5, "keep": 0.0},
    },
    "unreadable": 0,
}


def test_the_summary_says_what_was_found():
    assert summary.evaluation(RESULT).splitlines() == [
        "clips    600",
        "top-1    91.25%   top-5 100.00%   mAP 93.46%",
        "cost     0.04312 GMACs per clip of 0.0616 dense (70.0%)",
        "actions  skip  25.0%  reuse  30.0%  keep  45.0%",
        "  layer1.0     skip   0.0%  reuse   0.0%  keep 100.0%",
        "  layer2.0     skip  50.0%  reuse  50.0%  keep   0.0%",
    ]


def test_unreadable_clips_are_told():
    assert summary.evaluation(RESULT | {"unreadable": 3}).startswith(
        "clips    600 (3 more could not be read)\n"
    )


def test_training_clips_left_out_are_told():
    last = summary.evaluation(RESULT | {"unreadable_train": 2}).splitlines()[-1]
    assert last == "training  2 clips could not be read and were left out"


def test_a_net_without_fusion_has_no_sites():
    assert len(summary.evaluation(RESULT | {"sites": {}}).splitlines()) == 4


def bars_of(path):
    """The shares of skip, reuse and keep in each bar of a figure, measured in its pixels."""
    picture = cv2.imread(str(path))[..., ::-1].astype(int)
    colours = np.array([matplotlib.colors.to_rgb(policies._COLOURS[name]) for name in ACTIONS]) * 255
    counts = (np.abs(picture[:, :, None] - colours).max(-1) < 3).sum(0)
    # The bars fill most of the height, the patches of the legend don't.
    columns = np.flatnonzero(counts.sum(-1) > picture.shape[0] / 2)
    bars = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    middles = counts[[bar[len(bar) // 2] for bar in bars]]
    return middles / middles.sum(-1, keepdims=True)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_the_bars_are_as_high_as_the_shares(tmp_path, count):
    values = np.random.default_rng(count).dirichlet((2, 2, 2), count)
    sites = {f"layer{i}.0": dict(zip(ACTIONS, row.tolist(), strict=True)) for i, row in enumerate(values)}
    policies.draw(sites, tmp_path / "policies.png", "a title")
    np.testing.assert_allclose(bars_of(tmp_path / "policies.png"), values, atol=0.02)


def test_an_action_that_a_net_lacks_has_no_bar(tmp_path):
    policies.draw({"layer1.0": {"reuse": 0.5, "keep": 0.5}}, tmp_path / "policies.png", "reuse and keep")
    np.testing.assert_allclose(bars_of(tmp_path / "policies.png"), [[0, 0.5, 0.5]], atol=0.02)
