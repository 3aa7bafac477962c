"""Whole models against what the published PyTorch implementation computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import adafuse_jax

CASES = {
    "tsn_r18_64": ("tsn_r18", {}),
    "tsm_r50_64": ("tsm_r50", {}),
    "ada_r18_tsn_64": ("adafuse_tsn_r18", {}),
    "ada_r50_tsn_64": ("adafuse_tsn_r50", {}),
    "ada_r18_reuseonly_64": ("adafuse_tsn_r18", {"actions": ("reuse", "keep")}),
    "thr_r18_keep50_64": ("threshold_r18", {"keep_share": 0.5}),
    "ada_inc_tsn_224": ("adafuse_tsn_inc", {}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, golden):
    """(meta, arrays, model, output) of a golden case."""
    name, options = CASES[request.param]
    meta, arrays = golden.load(request.param)
    model = adafuse_jax.create_model(name, num_classes=174, **options)
    adafuse_jax.weights.from_torch(model, golden.state_dict(request.param))
    clip = golden.clip(meta["H"], seed=meta["clip_seed"])
    graph, state = nnx.split(model)
    out = jax.jit(lambda s, c: nnx.merge(graph, s)(c))(state, jnp.asarray(clip.transpose(0, 1, 3, 4, 2)))
    return meta, arrays, model, out


def test_logits(case):
    _, arrays, _, out = case
    wanted = arrays["logits64"] if "logits64" in arrays else arrays["logits"]
    assert np.abs(out.logits - wanted).max() <= 1e-4 * np.abs(wanted).max()
    if "frame_logits" in arrays:
        frames = arrays["frame_logits"]
        assert np.abs(out.frame_logits - frames).max() <= 1e-4 * np.abs(frames).max()


def test_actions(case, golden):
    _, arrays, _, out = case
    assert len(out.policies) == sum(key.startswith("count_") for key in arrays)
    for i, (name, policy) in enumerate(out.policies.items()):
        wanted = golden.actions(arrays, i)
        assert policy.shape == wanted.shape, name
        gap = arrays.get(f"gap_{i:02d}", np.inf)  # a cut by size has none
        clear = np.broadcast_to(
            (gap > 1e-4).reshape(wanted.shape[:-1]) if np.ndim(gap) else True, wanted.shape[:-1]
        )
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(np.asarray(policy)[clear], wanted[clear], err_msg=name)


def test_costs(case):
    _, arrays, model, out = case
    count = adafuse_jax.flops.count
    published = count(model, out.policies, image_size=224, published=True)
    corrected = count(model, out.policies, image_size=224)
    frame = 1e9 * 8
    # Published sums are in float32. ResNets' MACs, multiples of large powers of 2, come through unrounded;
    # BN-Inception's 2052059200 rounds, term by term, to 2052059776.
    rounding = 3e-7 if "inc" in model.name else 1e-9
    assert published.dense / frame == pytest.approx(float(arrays["base_gflops"]), rel=rounding)
    if not out.policies:
        assert float(corrected.actual[0]) == corrected.dense == float(corrected.upper[0])
        return
    for cost, suffix in ((published, ""), (corrected, "_fixed")):
        assert float(cost.actual.mean()) / frame == pytest.approx(float(arrays["real" + suffix]), rel=1e-5)
        assert float(cost.upper.mean()) / frame == pytest.approx(float(arrays["upb" + suffix]), rel=1e-5)
    np.testing.assert_allclose(published.actual / frame, arrays["real_per_sample"], rtol=1e-5)


def test_parameters(case):
    meta, arrays, model, _ = case
    params = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert params == int(arrays["params"]) == meta["params"]
