"""EfficientNet: parameters and costs of the paper, and what policies can save."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adafuse_jax import create_model, flops
from adafuse_jax.models.efficientnet import STAGES, scaled
from adafuse_jax.ops import conv

NAMES = ("b0", "b1", "b2", "b3")
NATIVE = dict(zip(NAMES, (224, 240, 260, 300), strict=True))  # pixels, Tan and Le, table of resolutions


@functools.cache
def shapes(name, **options):
    return nnx.eval_shape(lambda: create_model(name, **options))


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("backbone", "tsn", "published", "adafuse"),
    [
        ("b0", 4.230, 5.3, 9.26),
        ("b1", 6.736, 7.8, 12.42),
        ("b2", 7.946, 9.2, 13.83),
        ("b3", 10.964, 12.0, 16.62),
    ],
)
def test_parameters_of_the_paper(backbone, tsn, published, adafuse):
    """AdaFuse's are our policies' and, of the net with 1000 classes, the count that Tan and Le round to."""
    plain, fused = (parameters(shapes(f"{family}_{backbone}")) for family in ("tsn", "adafuse_tsn"))
    assert plain / 1e6 == pytest.approx(tsn, abs=5e-4)
    assert published + (fused - plain) / 1e6 == pytest.approx(adafuse, abs=5e-3)
    classes_1000 = plain + (1000 - 174) * (shapes(f"tsn_{backbone}").backbone.features + 1)
    assert classes_1000 / 1e6 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("backbone", NAMES)
def test_policies_are_as_wide_as_inferred_and_share_by_shape(backbone):
    sites = [b.fusion for b in shapes(f"adafuse_tsn_{backbone}").backbone.blocks if b.fusion is not None]
    assert all(site.hidden == 196608 // site.features == site.fc0.out_features for site in sites)
    for i, site in enumerate(sites):
        for other in sites[:i]:
            same = (site.in_features, site.features) == (other.in_features, other.features)
            assert (site.fc0 is other.fc0) is (site.fc1 is other.fc1) is same
            assert site.bn is not other.bn


def convolutions(model, size):
    """(output's shape, MACs) of all convolutions that a frame goes through, from the traced computation."""
    graph, state = nnx.split(model)
    clip = jax.ShapeDtypeStruct((1, 1, size, size, 3), np.float32)
    with pytest.MonkeyPatch.context() as patch:  # as on any platform but the CPU
        patch.setattr(conv, "_way", lambda *_, **__: None)
        traced = jax.make_jaxpr(lambda s, c: nnx.merge(graph, s)(c).logits)(state, clip)
    found = []
    for eqn in traced.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            found.append((out, math.prod(out) * math.prod(kernel[:-1])))
    return found


@pytest.mark.parametrize(
    ("backbone", "size", "options"),
    [
        ("b0", 224, {}),
        ("b0", 131, {"padding": "torch"}),
        ("b1", 129, {}),
        ("b2", 260, {}),
        ("b3", 300, {}),
    ],
)
def test_cost_is_that_of_what_is_computed(backbone, size, options):
    model = shapes(f"tsn_{backbone}", **options)
    wanted = 0
    for out, macs in convolutions(model, size):
        # Squeeze and excitation, of 1x1 pixels, has biases; all other convolutions have norms.
        wanted += macs + math.prod(out) * (1 if out[1:3] == (1, 1) else 2)
    side = math.ceil(size / 32)
    features = model.backbone.features
    assert model.count((size, size)).dense == wanted + features * (side * side + 1) + 2 * features * 174


@pytest.mark.parametrize(("backbone", "gmacs"), [("b0", 3.1), ("b1", 5.6), ("b2", 8.0), ("b3", 14.4)])
def test_cost_of_the_paper(backbone, gmacs):
    """The paper's are Tan and Le's, of convolutions and classifier alone, for the native size of images."""
    size, model = NATIVE[backbone], shapes(f"tsn_{backbone}")
    classifier = 1000 * model.backbone.features
    alone = sum(macs for _, macs in convolutions(model, size)) + classifier
    assert 8 * alone / 1e9 == pytest.approx(gmacs, rel=0.02)
    whole = model.count((size, size)).dense + 2 * (1000 - 174) * model.backbone.features
    assert gmacs < 8 * whole / 1e9 < 1.045 * gmacs


@pytest.mark.parametrize("width", [1.0, 1.1, 1.2, 1.4])
@pytest.mark.parametrize("features", [3, 16, 24, 40, 112, 1280])
def test_scaled_channels(features, width):
    found = scaled(features, width)
    assert found % 8 == 0
    assert found >= 0.9 * features * width
    # No other multiple of 8 that large enough is nearer.
    assert abs(found - features * width) <= 4 or found - 8 < 0.9 * features * width


def decided(model, action, frames=4):
    row = jnp.eye(3)[["skip", "reuse", "keep"].index(action)]
    return {
        name: jnp.tile(row, (2, frames, block.expanded, 1))
        for name, block in model.backbone.named_blocks()
        if block.fusion is not None
    }


def test_what_policies_can_save():
    """Skipping: the expanding and the depthwise convolution of every block with expansion, nothing else."""
    model = shapes("adafuse_tsn_b0")
    assert list(model.count((224, 224)).sites) == [f"blocks.{i}" for i in range(1, 16)]
    keep, reuse, skip = (flops.count(model, decided(model, a)) for a in ("keep", "reuse", "skip"))
    assert keep.actual == pytest.approx([keep.dense] * 2, rel=1e-7)
    before = after = 0
    side, inputs = 112, 32
    for stage in STAGES:
        for i in range(stage.repeats):
            out_side = side // stage.stride if i == 0 else side
            if stage.expansion != 1:
                block = 6 * inputs
                before += side * side * inputs * block
                after += out_side * out_side * stage.kernel**2 * block
            side, inputs = out_side, stage.features
    assert skip.actual == pytest.approx([skip.dense - 4 * (before + after)] * 2, rel=1e-6)
    assert skip.upper == pytest.approx([skip.dense - 4 * after] * 2, rel=1e-6)
    # Reused at every frame: only the last one's is not needed, neither by itself nor later.
    assert reuse.actual == pytest.approx([reuse.dense - before] * 2, rel=1e-6)
    assert 0.4 * skip.dense < skip.actual[0] < 0.6 * skip.dense
