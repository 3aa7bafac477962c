"""The GPU's kernels, interpreted, give what the two convolutions give; and they become valid Triton code."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.test_block import KEEP, REUSE, SKIP, drawn, expected

from adafuse_jax import compact_gpu
from adafuse_jax.errors import UserError
from adafuse_jax.kernels.pallas_pair import PairWeights, Tile, compact_pair, pack_pair

SMALL, MIXED = Tile(16, 16, 16), Tile(16, 32, 64)

run = functools.partial(quick_jit, static_argnums=(3, 4))(compact_pair)


def assert_near(found, wanted, dtype=jnp.float32):
    """bfloat16: y and the output are rounded, each by up to 2^-9 of it."""
    assert found.shape == wanted.shape and found.dtype == dtype
    atol = {jnp.float32: 1e-5, jnp.bfloat16: 2**-7}[dtype] * np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=0, atol=atol)


@settings(deadline=None, max_examples=7)
@given(st.data())
def test_a_pair_is_its_parts(data):
    """Of any sizes and policies, several clips at once."""
    draw = data.draw
    most = {"B": 3, "T": 3, "H": 9, "W": 9, "in": 40, "C": 80, "out": 40}
    *sizes, i, c, o = (draw(st.integers(1, n), label=name) for name, n in most.items())
    kernels = draw(st.tuples(*[st.sampled_from([1, 3])] * 2), label="kernels")
    strides = draw(st.tuples(*[st.integers(1, 2)] * 2), label="strides")
    tile = draw(st.sampled_from([SMALL, MIXED]), label="tile")
    x, actions, arrays = drawn(np.random.default_rng(draw(st.integers(0, 99))), sizes, (i, c, o), kernels)
    weights = pack_pair(*arrays)
    for policy in (actions, *(np.full_like(actions, action) for action in (SKIP, REUSE, KEEP))):
        found = run(jnp.asarray(x), weights, jnp.asarray(policy), strides, tile)
        assert_near(found, expected(x, policy, arrays, strides))
        if (policy == SKIP).all():
            np.testing.assert_array_equal(found, np.broadcast_to(arrays[-1], found.shape))
        if (policy == REUSE).all():  # zeros, also where another clip lies before
            np.testing.assert_array_equal(found[:, 0], np.broadcast_to(arrays[-1], found[:, 0].shape))


def test_bfloat16():
    x, actions, arrays = drawn(np.random.default_rng(0), (2, 3, 6, 7), (20, 50, 30), (3, 3))
    x, *kernels = (np.array(jnp.asarray(a, jnp.bfloat16), np.float32) for a in (x, arrays[0], arrays[2]))
    arrays = [kernels[0], arrays[1], kernels[1], arrays[3]]
    weights = pack_pair(*arrays, jnp.bfloat16)
    found = run(jnp.asarray(x, jnp.bfloat16), weights, jnp.asarray(actions), (1, 2), MIXED)
    assert_near(found, expected(x, actions, arrays, (1, 2)), jnp.bfloat16)


def test_nan_stays_in_its_frame_and_in_what_is_reused():
    x, _, arrays = drawn(np.random.default_rng(0), (1, 3, 4, 4), (3, 5, 4), (3, 3))
    x[0, 1, 2, 2] = np.nan
    for action, seen in ((KEEP, [1]), (REUSE, [2]), (SKIP, [])):
        actions = jnp.full((1, 3, 5), action, jnp.int8)
        found = run(jnp.asarray(x), pack_pair(*arrays), actions, (1, 1), MIXED)
        assert [t for t in range(3) if np.isnan(found[0, t]).any()] == seen


def triton_codes(*arguments):
    """Grid and code of each kernel that a GPU would be given."""
    from jaxlib.mlir import ir

    lowered = jax.jit(compact_pair, static_argnums=(3, 4)).trace(*arguments)
    lowered = lowered.lower(lowering_platforms=("cuda",))
    found = []

    def visit(op):
        if op.name == "stablehlo.custom_call":
            config = ir.DictAttr(op.attributes["mhlo.backend_config"])
            grid = [ir.IntegerAttr(config[f"grid_{axis}"]).value for axis in "xyz"]
            found.append((grid, ir.StringAttr(config["ir"]).value_bytes))
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return found


def verified(code):
    """Reads Triton's code as its compiler does, which rejects what isn't valid."""
    from jaxlib.mlir import ir
    from jaxlib.triton import dialect

    with ir.Context() as context:
        dialect.register_dialect(context)
        return ir.Module.parse(code).operation.verify()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tile", compact_gpu.TILES.values())
def test_it_is_valid_triton(tile, dtype):
    """Two launches for all frames of all clips; that the code is right, no GPU has shown."""
    if "lowering_platforms" not in inspect.signature(jax.stages.Traced.lower).parameters:
        pytest.skip("this jax lowers for its own device alone")
    shapes = ((2, 3, 14, 14, 48), dtype), ((70, 9, 48), dtype), ((70,), jnp.float32)
    shapes += ((9, 70, 40), dtype), ((40,), jnp.float32), ((2, 3, 70), jnp.int8)
    x, *weights, actions = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
    try:
        codes = triton_codes(x, PairWeights(*weights), actions, (1, 2), tile)
    except (ImportError, KeyError) as error:
        pytest.skip(f"this jaxlib keeps Triton's code elsewhere: {error!r}")
    assert [grid[2] for grid, _ in codes] == [6, 6]
    assert codes[1][0][:2] == [1, -(-49 // tile.pixels)]
    assert all(verified(code) for _, code in codes)


def test_mistakes():
    x, actions, arrays = drawn(np.random.default_rng(0), (1, 2, 4, 4), (3, 5, 4), (3, 3))
    with pytest.raises(UserError, match="x: expected bfloat16, float32 or bfloat16, found float32"):
        compact_pair(jnp.asarray(x), pack_pair(*arrays, jnp.bfloat16), jnp.asarray(actions))
    large = jax.ShapeDtypeStruct((1, 1, 2**16, 2**14, 3), jnp.float32)
    with pytest.raises(UserError, match=r"fewer than 2.31 values, found .65536, 16384, 3."):
        jax.eval_shape(compact_pair, large, pack_pair(*arrays), jnp.asarray(actions[:, :1]))
