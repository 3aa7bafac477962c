"""Named models: the sizes of reference.md, what a call does, and what can't be asked for."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import create_model, list_models
from adafuse_jax.errors import UserError
from adafuse_jax.models.resnet import ResidualBlock
from adafuse_jax.ops.shift import temporal_shift

# Parameters in millions and GMACs per frame of 224x224 with 174 classes: reference.md, section 3.
SIZES = [
    ("tsn_r18", {}, 11.266, 1.8187),
    ("adafuse_tsn_r18", {"actions": ("reuse", "keep")}, 14.624, 1.8257),
    ("adafuse_tsn_r18", {"actions": ("skip", "keep")}, 13.903, 1.8242),
    ("adafuse_tsn_r18", {}, 15.576, 1.8277),
    ("tsn_inc", {}, 10.449, 2.0440),
    ("adafuse_tsn_inc", {}, 14.499, 2.0521),
    ("tsn_r50", {}, 23.865, 4.1102),
    ("tsm_r50", {}, 23.865, 4.1102),
    ("adafuse_tsn_r50", {}, 37.687, 4.1723),
    ("adafuse_tsm_r50", {}, 37.687, 4.1723),
    ("adafuse_tsm_last_r50", {}, 39.083, 4.1406),
    ("adafuse_tsm_last_r50", {"hidden": 2048}, 54.296, 4.1710),
    ("adafuse_tsm_last_r50", {"hidden": 4096}, 84.723, 4.2318),
]


@pytest.mark.parametrize(("name", "options", "parameters", "gmacs"), SIZES)
def test_sizes_of_the_reference(name, options, parameters, gmacs):
    model = nnx.eval_shape(lambda: create_model(name, **options))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count / 1e6 == pytest.approx(parameters, abs=6e-4)
    assert model.count((224, 224)).dense / 1e9 == pytest.approx(gmacs, abs=6e-5)


# AR-Net has no backbone alone: tests/test_arnet.py.
@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("arnet")])
def test_every_name_makes_its_model(name):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=5))
    blocks = dict(model.backbone.named_blocks())
    family, _, backbone = name.rpartition("_")
    resnets = {"r18": 8, "r34": 16, "r50": 16, "r101": 33, "tiny": 3}
    wanted = resnets | {"inc": 10, "b0": 16, "b1": 23, "b2": 23, "b3": 26}
    assert len(blocks) == wanted[backbone]
    fused = [site for site, block in blocks.items() if block.fusion is not None]
    if family in ("tsn", "tsm", "lstm", "trn", "cgnet"):
        assert fused == []
    elif "_last_" in name:
        last = f"layer{model.backbone.num_stages}"
        assert fused == [site for site in blocks if site.startswith(last)]
    else:
        # In an EfficientNet only blocks with an expansion have what a site is between.
        assert fused == [site for site, block in blocks.items() if getattr(block, "expansion", None) != 1]
    # Plain TSM of ResNet-101 shifts before every second block of a stage.
    every = 2 if name == "tsm_r101" else 1
    shifted = [site for site, block in blocks.items() if getattr(block, "shift", None) == "tsm"]
    assert shifted == [s for s in blocks if "tsm" in name and int(s.partition(".")[2]) % every == 0]
    assert list(model.count((224, 224)).sites) == (list(blocks) if family == "cgnet" else fused)
    outputs = 256 if family == "trn" else 5
    assert model.fc.kernel.shape == (512 if family == "lstm" else model.backbone.features, outputs)


def test_the_published_names_are_there():
    families = ("tsn", "tsm", "adafuse_tsn", "adafuse_tsm", "adafuse_tsm_last")
    assert {f"{f}_{b}" for f in families for b in ("r18", "r34", "r50", "r101")} <= set(list_models())
    backbones = ("b0", "b1", "b2", "b3")
    assert {f"{f}_{b}" for f in ("tsn", "adafuse_tsn") for b in backbones} <= set(list_models())


def test_stride_in_1x1_moves_the_stride_to_the_cheaper_place():
    """v1 runs the first 1x1 of stages 2 to 4 on a quarter of the pixels; nothing else changes."""
    v1, v15 = (
        nnx.eval_shape(lambda v1=v1: create_model("tsn_r50", stride_in_1x1=v1)).count((224, 224)).dense
        for v1 in (True, False)
    )
    saved = 0
    for i_in, width, side in ((256, 128, 56), (512, 256, 28), (1024, 512, 14)):
        saved += (side * side - side * side // 4) * width * (i_in + 2)  # convolution, and norm at 2
    assert v15 - v1 == saved


@functools.cache
def tiny(name="adafuse_tsn_tiny", **options):
    return filled(lambda: create_model(name, num_classes=4, **options))


@functools.cache
def run(*arguments, **options):
    """`tiny(*arguments, **options)`, compiled."""
    return quick_jit(tiny(*arguments, **options).__call__, static_argnums=2)


def clip(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 3, 16, 16, 3)).astype(np.float32)


def block(stride, shift_shortcut):
    """A TSM block whose residual branch gives nothing, so that the shortcut comes out alone."""
    made = filled(
        lambda: ResidualBlock(
            16,
            16,
            stride,
            bottleneck=False,
            stride_in_1x1=False,
            shift="tsm",
            shift_shortcut=shift_shortcut,
            dtype=None,
            rngs=nnx.Rngs(0),
        )
    )
    made.bn2.scale[...] = jnp.zeros(16)
    made.bn2.bias[...] = jnp.zeros(16)
    return made


@pytest.mark.parametrize("shift_shortcut", [False, True])
def test_which_x_the_shortcut_reads(shift_shortcut):
    """A downsampling shortcut reads the shifted x in AdaFuse+TSM, the unshifted in TSM; an identity never."""
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4, 16)).astype(np.float32)
    out, _ = block(1, shift_shortcut)(x, None, False)
    np.testing.assert_array_equal(out, np.maximum(x, 0))

    made = block(2, shift_shortcut)
    read = np.asarray(temporal_shift(x) if shift_shortcut else x)[:, :, ::2, ::2]
    wanted = made.downsample_bn(read @ made.downsample_conv.kernel[0, 0])
    out, _ = made(x, None, False)
    np.testing.assert_allclose(out, np.maximum(wanted, 0), rtol=1e-4, atol=1e-4)


def test_the_policy_sees_the_shifted_x():
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4, 16)).astype(np.float32)
    made = tiny("adafuse_tsm_tiny").backbone.layer1[0]
    _, policy = made(x, None, False)
    log_probs, unshifted = (made.fusion.log_policy(seen) for seen in (temporal_shift(x), x))
    np.testing.assert_array_equal(policy.argmax(-1), log_probs.argmax(-1))
    assert (log_probs.argmax(-1) != unshifted.argmax(-1)).any()


@pytest.mark.parametrize(
    ("name", "wanted"), [("tsm_tiny", False), ("adafuse_tsm_tiny", True), ("adafuse_tsm_last_tiny", True)]
)
def test_which_models_shift_the_shortcut(name, wanted):
    blocks = [b for _, b in tiny(name).backbone.named_blocks()]
    assert {b.shift_shortcut for b in blocks} == {wanted}


def test_output():
    out = run()(clip(), jax.random.key(0))
    assert out.logits.shape == (2, 4)
    np.testing.assert_allclose(out.logits, out.frame_logits.mean(1), rtol=1e-6)
    assert {name: p.shape for name, p in out.policies.items()} == {
        "layer1.0": (2, 3, 16, 3),
        "layer2.0": (2, 3, 32, 3),
        "layer3.0": (2, 3, 64, 3),
    }


def test_randomness_is_the_key_s():
    sampled, again, other = (run()(clip(), jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(sampled, again)
    draws = [np.asarray(policy) for policy in sampled.policies.values()]
    for draw, policy in zip(draws, other.policies.values(), strict=True):
        assert (draw != policy).any()
    # Each frame and each site draws for itself.
    draws = [draw[:, t, :16] for draw in draws for t in range(3)]
    assert all((a != b).any() for i, a in enumerate(draws) for b in draws[:i])


def test_training_updates_all_statistics():
    """Nothing else does: `run` would refuse to compile a call that changes its model."""
    graph, state = nnx.split(tiny())

    @quick_jit
    def train(state, clip):
        model = nnx.merge(graph, state)
        model(clip, jax.random.key(0), train=True)
        return nnx.state(model, nnx.BatchStat)

    before, after = nnx.state(tiny(), nnx.BatchStat), train(state, clip())
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).all()), before, after)
    assert all(jax.tree.leaves(changed))


def test_dropout_keeps_the_mean():
    """With one feature map for all, logits under dropout scatter around the logits without."""
    x = np.broadcast_to(clip()[:1, :1], (512, 1, 16, 16, 3))

    def frame_logits(dropout):
        graph, state = nnx.split(tiny("tsn_tiny", dropout=dropout))
        forward = quick_jit(lambda s: nnx.merge(graph, s)(x, jax.random.key(0), train=True).frame_logits)
        return np.asarray(forward(state)[:, 0])

    dropped, plain = frame_logits(0.25), frame_logits(0.0)
    np.testing.assert_allclose(plain, plain[:1].repeat(512, 0), rtol=1e-4, atol=1e-4)
    error = dropped.std(0) / np.sqrt(512)
    assert (error > 0).all()
    assert (np.abs(dropped.mean(0) - plain[0]) < 5 * error).all()


@pytest.mark.parametrize(("shift", "causal"), [(None, True), ("online", True), ("tsm", False)])
def test_only_the_bidirectional_shift_looks_ahead(shift, causal):
    x, changed = clip(), clip()
    changed[:, 2] += 1
    ours, theirs = (np.asarray(run(shift=shift)(c).frame_logits) for c in (x, changed))
    assert bool((ours[:, :2] == theirs[:, :2]).all()) is causal
    assert (ours[:, 2] != theirs[:, 2]).any()


def test_bfloat16_computes_near_float32():
    x = clip()
    full, half = (run("tsn_tiny", dtype=dtype)(x).logits for dtype in (None, "bfloat16"))
    assert half.dtype == jnp.float32
    assert np.abs(full - half).max() < 0.05 * np.abs(full).max()
    assert (full != half).any()
    params = nnx.state(tiny("tsn_tiny", dtype="bfloat16"), nnx.Param)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_same_seed_same_weights():
    first, again, other = (
        create_model("tsn_tiny", num_classes=4, seed=seed).fc.kernel[...] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_options_given_as_lists():
    graph, _ = nnx.split(tiny_with_lists())
    assert hash(graph) == hash(nnx.split(tiny_with_lists())[0])


def tiny_with_lists():
    return nnx.eval_shape(
        lambda: create_model("adafuse_tsn_tiny", actions=["reuse", "keep"], fusion_stages=[1, 3])
    )


def test_unknown_model_names_the_nearest_and_all():
    with pytest.raises(UserError) as error:
        create_model("adafuse_tsn_r19")
    message = str(error.value)
    assert message.startswith("unknown model 'adafuse_tsn_r19' (did you mean 'adafuse_tsn_r18'?)")
    assert all(name in message for name in list_models())
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adafuse_tsn_tiny", {"action": 1}, "unknown option of 'adafuse_tsn_tiny' 'action' (did you mean"),
        ("tsn_tiny", {"actions": ("skip", "keep")}, "unknown option of 'tsn_tiny' 'actions'"),
        ("tsn_tiny", {"num_classes": 0}, "num_classes: expected at least 1, found 0"),
        ("tsn_tiny", {"shift": "left"}, "shift: expected one of"),
        ("tsn_tiny", {"dtype": "int8"}, "dtype: expected None, 'float32' or 'bfloat16', found 'int8'"),
        ("tsn_tiny", {"dropout": 1.0}, "dropout: expected a rate in [0, 1), found 1.0"),
        ("tsn_b0", {"drop_path": 1.0}, "drop_path: expected a rate in [0, 1), found 1.0"),
        ("tsn_b0", {"padding": "valid"}, "padding: expected one of ['same', 'torch'], found 'valid'"),
        ("tsn_b0", {"bn_epsilon": 0}, "bn_epsilon: expected more than 0, found 0"),
        ("tsn_tiny", {"drop_path": 0.1}, "unknown option of 'tsn_tiny' 'drop_path'"),
        ("adafuse_tsn_b0", {"fusion_stages": (1,)}, "fusion_stages: expected stages of 2..7"),
        ("adafuse_tsn_tiny", {"tau": 0}, "tau: expected more than 0, found 0"),
        ("adafuse_tsn_tiny", {"hidden": -1}, "hidden: expected more than 0, found -1"),
        ("adafuse_tsn_tiny", {"fusion_stages": (4,)}, "fusion_stages: expected stages of 1..3"),
        ("adafuse_tsn_inc", {"fusion_stages": (2, 3)}, "fusion_stages: expected stages of 3..5"),
        ("adafuse_tsn_tiny", {"actions": ("keep", "keep")}, "actions: expected some of"),
        ("adafuse_tsn_tiny", {"group_size": 3}, "group_size: expected a divisor of the 16 channels, found 3"),
        ("adafuse_tsn_tiny", {"prior": (0.5, 0.5)}, "prior: expected one share per action"),
    ],
)
def test_what_cannot_be_made(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        nnx.eval_shape(lambda: create_model(name, **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, blocks",
    [
        ("adafuse_tsn_tiny", {1: 1, 2: 1, 3: 1}),
        ("adafuse_tsm_last_r50", {4: 3}),
        ("cgnet_r18", {1: 2, 2: 2, 3: 2, 4: 2}),
        ("adafuse_tsn_inc", {3: 3, 4: 5, 5: 2}),
        ("adafuse_tsn_b1", {2: 3, 3: 3, 4: 4, 5: 4, 6: 5, 7: 2}),
    ],
)
def test_stages_hold_the_blocks_of_the_published_nets(name, blocks):
    """He et al. 2016, table 1; Ioffe and Szegedy 2015, figure 5; Tan and Le 2019, table 1, with depth 1.1."""
    model = nnx.eval_shape(lambda: create_model(name))
    stages = [model.stage_of(site) for site in model.count((224, 224)).sites]
    assert stages == [f"stage{stage}" for stage, count in blocks.items() for _ in range(count)]


@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (2, 0, 16, 16, 3), (2, 3, 16, 16, 1), (2, 3, 3, 16, 16)])
def test_clip_of_another_shape(shape):
    with pytest.raises(
        UserError, match=re.escape(f"clip: expected (B, T, H, W, 3), none of them 0, found {shape}")
    ):
        tiny()(jnp.zeros(shape))


def test_clip_of_bytes():
    with pytest.raises(UserError, match="clip: expected normalised floats, found uint8"):
        tiny()(jnp.zeros((2, 3, 16, 16, 3), jnp.uint8))


def test_training_without_a_key():
    with pytest.raises(UserError, match="train=True: expected a key"):
        tiny()(clip(), train=True)
