"""The convolutions of the models: where native code computes them, and that all ways give the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import NAMES, SAME, assert_close, drawn, expected, module_gradients, problem, xla
from helpers import quick_jit

from adafuse_jax.kernels import build, conv
from adafuse_jax.train import mesh


# Through the module that calls `conv`.
@pytest.mark.parametrize(
    ("channels", "options", "dtype", "used"),
    [
        ((64, 80), {"padding": ((1, 1), (1, 1))}, jnp.float32, "filtered"),
        ((80, 64), {"padding": "SAME"}, jnp.float32, "filtered"),
        ((64, 80), {"padding": "VALID"}, jnp.float32, "convolved"),
        ((64, 80), {"padding": "SAME", "strides": 2}, jnp.float32, "convolved"),
        ((3, 64), {"padding": "SAME", "strides": 2, "kernel_size": (7, 7)}, jnp.float32, "convolved"),
        ((64, 64), {"padding": "SAME"}, jnp.bfloat16, None),
        ((64, 64), {"padding": "SAME", "kernel_dilation": 2}, jnp.float32, None),
        ((128, 128), {"padding": "SAME", "feature_group_count": 2}, jnp.float32, None),
        ((64, 64), {"padding": ((3, 3), (1, 1))}, jnp.float32, None),
        ((64, 65), {"padding": "SAME"}, jnp.float32, None),
        ((64, 16), {"padding": "SAME"}, jnp.float32, None),
        ((64, 64), {"padding": "SAME", "kernel_size": (1, 1)}, jnp.float32, None),
    ],
)
def test_modules_compute_the_same(native, channels, options, dtype, used, monkeypatch):
    options = {"kernel_size": (3, 3), **options}
    x = drawn(1, (4, 8, 8, channels[0]))[0].astype(dtype)
    taken = []
    for module, name in ((conv.winograd, "filtered"), (conv.direct, "convolved")):
        way = getattr(module, name)

        def noted(*arguments, way=way, name=name, **rest):
            taken.append(name)
            return way(*arguments, **rest)

        monkeypatch.setattr(module, name, noted)
    ways = (conv.conv, jax.lax.conv_general_dilated)
    results = [module_gradients(way, x, channels, dtype=dtype, **options) for way in ways]
    assert set(taken) == ({used} if used else set())
    assert_close(*([np.asarray(a, np.float32) for a in r] for r in results), atol=1e-5)


@pytest.mark.parametrize(("strides", "pads"), [((1, 1), SAME), ((2, 2), SAME)])
def test_several_devices_share_the_images(native, strides, pads):
    grid = mesh.make()
    n, side = 2 * grid.size, 8 // strides[0]
    x, kernel, dy = drawn(0, (n, 8, 8, 64), (3, 3, 64, 64), (n, side, side, 64))

    def run(kernel, x, dy):
        y, gradients = jax.vjp(lambda x, kernel: conv.convolution(x, kernel, strides, pads), x, kernel)
        return y, *gradients(dy)

    shardings = mesh.replicated(grid), mesh.by_clip(grid), mesh.by_clip(grid)
    arguments = [jax.device_put(a, s) for a, s in zip((kernel, x, dy), shardings, strict=True)]
    compiled = quick_jit(run, in_shardings=shardings).lower(*arguments).compile()
    y, dx, dkernel = compiled(*arguments)
    assert y.sharding.is_equivalent_to(mesh.by_clip(grid), 4)
    assert dx.sharding.is_equivalent_to(mesh.by_clip(grid), 4)
    assert "all-gather" not in compiled.as_text()
    assert_close((y, dx, dkernel), expected(x, kernel, dy, strides, pads))


def test_without_gradients_it_is_xlas_and_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(build, "load", None)
    x, kernel = drawn(2, (4, 8, 8, 64), (3, 3, 64, 64))
    found = conv.conv(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES)
    np.testing.assert_array_equal(found, xla(x, kernel))


def test_without_native_code_it_is_xlas(monkeypatch):
    monkeypatch.setattr(build, "load", lambda: False)
    x, kernel, dy = problem(0, 4, 8, 8, 64, 64)
    y, gradients = jax.vjp(lambda x, kernel: conv.convolution(x, kernel, (1, 1), SAME), x, kernel)
    assert_close((y, *gradients(dy)), expected(x, kernel, dy), atol=1e-6)
