"""What share of a matrix product's speed each layer reaches: python -m benchmarks.inference --layers.

Of a ResNet on a clip of 8 frames, and of one: the stem, and of each block that differs from those before it
the first two convolutions with their norms (dense; compact with all kept; compact by policies of given
shares, where only the MACs that they ask for count), the third and the shortcut's (dense). The product is
one of float32 matrices of 2048 x 2048, timed in the same turns.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adafuse_jax import bench, create_model
from adafuse_jax.compact import folded
from adafuse_jax.kernels import build
from adafuse_jax.kernels.pair import codes, compact_pair, pack
from adafuse_jax.models.resnet import ResidualBlock, ResNet, per_frame
from adafuse_jax.ops import costs
from adafuse_jax.ops.pooling import max_pool

SIDE = 2048


def measure(
    backbone: str, policies: Sequence[str], frames: int, size: int, turns: int, clock: Callable[[], float]
) -> None:
    """Prints a line a layer, and what runs of it reach."""
    net = create_model(f"tsn_{backbone}").backbone
    a = jnp.ones((SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    print(
        f"\n{backbone}, {frames} frames of {size} x {size}, {turns} turns, shares of the product's speed",
        flush=True,
    )
    for name, ways in _layers(net, policies if build.load() else None, frames, size):
        runs = {way: run for way, (_, run) in ways.items()} | {"product": lambda: product(a, a)}
        times = bench.take_turns(runs, turns, clock=clock)
        peak = SIDE**3 / times["product"]
        shares = {way: np.median(macs / times[way] / peak) for way, (macs, _) in ways.items()}
        text = "".join(f"   {way} {share:4.0%}" for way, share in shares.items())
        print(f"  {name:<64}{np.median(2e-9 * peak):4.0f} GFLOP/s{text}", flush=True)


Ways = dict[str, tuple[float, Callable[[], jax.Array]]]  # needed MACs, and what to run


def _layers(
    net: ResNet, policies: Sequence[str] | None, frames: int, size: int
) -> Iterator[tuple[str, Ways]]:
    """Names of the layers, and ways to run them."""
    conv = net.conv1
    out = (costs.conv_out(size, net.stem.kernel, 2, net.stem.kernel // 2),) * 2
    macs = frames * costs.conv_macs(3, net.stem.features, net.stem.kernel, out)
    yield "stem", {"dense": (macs, _run(net, _stem, _maps(frames, (size, size), 3)))}
    hw, seen = tuple(costs.conv_out(s, 3, 2, 1) for s in out) if net.stem.max_pool else out, set()
    for name, block in net.named_blocks():
        kind = (hw, block.in_features, block.geometry)
        after = block.count(hw)[2]
        if kind not in seen:
            seen.add(kind)
            x = _maps(frames, hw, block.in_features)
            yield _named(f"{name} first two", block.conv1, block.conv2, hw), _pair(block, x, policies)
            for title, conv, bn in (
                ("third", getattr(block, "conv3", None), getattr(block, "bn3", None)),
                ("shortcut", block.downsample_conv, block.downsample_bn),
            ):
                if conv is not None:
                    of = x if title == "shortcut" else _maps(frames, after, block.width)
                    macs = frames * costs.conv_macs(conv.in_features, conv.out_features, 1, after)
                    run = _run(nnx.List([conv, bn]), lambda pair, x: pair[1](per_frame(pair[0], x)), of)
                    yield _named(f"{name} {title}", conv, None, of.shape[2:4]), {"dense": (macs, run)}
        hw = after


def _pair(block: ResidualBlock, x: jax.Array, policies: Sequence[str] | None) -> Ways:
    sizes, site = [x.shape[2:4]], []
    for conv, (kernel, stride) in zip((block.conv1, block.conv2), block.geometry, strict=False):
        sizes.append(tuple(costs.conv_out(s, kernel, stride, kernel // 2) for s in sizes[-1]))
        site.append(costs.conv_macs(conv.in_features, conv.out_features, kernel, sizes[-1]))
    ways = {"dense": (x.shape[1] * sum(site), _run(block, lambda b, x: b.fused_pair(x, None, False)[0], x))}
    if policies is None:
        return ways
    weights = pack(*folded(block.conv1, block.bn1), *folded(block.conv2, block.bn2))
    strides = tuple(stride for _, stride in block.geometry[:2])
    compact = jax.jit(lambda x, w, codes: compact_pair(x, w, codes, block.conv2.out_features, strides))
    for text in ("0,0,1", *policies):
        shares = np.array([float(share) for share in text.split(",")])
        drawn = np.random.default_rng(0).choice(3, (1, x.shape[1], block.width), p=shares / shares.sum())
        policy = jax.nn.one_hot(drawn, 3)
        saved = sum(costs.savings(policy, costs.SiteCost(((block.width, site[0]),), site[1])))
        macs, actions = x.shape[1] * (sum(site) - float(saved[0])), codes(policy)
        way = "compact, all kept" if text == "0,0,1" else f"{text}"
        ways[way] = macs, lambda actions=actions: compact(x, weights, actions)
    return ways


def _stem(net: ResNet, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(net.bn1(per_frame(net.conv1, x)))
    return per_frame(lambda f: max_pool(f, padding=1, ceil=False), x) if net.stem.max_pool else x


def _run(module: nnx.Module, function: Callable, x: jax.Array) -> Callable[[], jax.Array]:
    graph, weights = nnx.split(module)
    compiled = jax.jit(lambda weights, x: function(nnx.merge(graph, weights), x))
    return lambda: compiled(weights, x)


def _maps(frames: int, hw: tuple[int, int], channels: int) -> jax.Array:
    drawn = np.random.default_rng(0).standard_normal((1, frames, *hw, channels), np.float32)
    return jnp.asarray(np.maximum(drawn, 0))


def _named(name: str, first: nnx.Conv, second: nnx.Conv | None, hw: tuple[int, int]) -> str:
    text = f"{name}: {first.in_features}"
    for conv in filter(None, (first, second)):
        text += f" -{conv.kernel_size[0]}x{conv.kernel_size[1]}-> {conv.out_features}"
    return f"{text}, {hw[0]}x{hw[1]}"
