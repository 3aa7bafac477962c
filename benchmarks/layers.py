"""What share of a matrix product's speed each layer reaches: python -m benchmarks.inference --layers.

Of a ResNet on a clip of 8 frames, and on one of one: the stem, and each convolution with its norm as XLA runs
it; then residual blocks, dense, compactly with all kept, and compactly by policies of given shares, where
only the MACs that those ask for count. Blocks like earlier ones are left out. The product is one of float32
matrices of 2048 x 2048, timed in the same turns.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adafuse_jax import bench, create_model
from adafuse_jax.compact import compacted
from adafuse_jax.models.resnet import ResidualBlock, ResNet, per_frame
from adafuse_jax.ops import costs
from adafuse_jax.ops.pooling import max_pool

SIDE = 2048
KEPT = "0,0,1"
Way = tuple[float, Callable[[], jax.Array]]  # MACs that are needed, and what to run


def measure(
    backbone: str, policies: Sequence[str], frames: int, size: int, turns: int, clock: Callable[[], float]
) -> None:
    """Prints a line a layer: the product's speed, and the share of it that ways to run the layer reach."""
    a, product = jnp.ones((SIDE, SIDE)), jax.jit(jnp.matmul)
    print(
        f"\n{backbone}, {frames} frames of {size} x {size}, {turns} turns; the product in GFLOP/s", flush=True
    )
    for name, ways in _layers(backbone, (KEPT, *policies), frames, size):
        runs = {way: run for way, (_, run) in ways.items()} | {"product": lambda: product(a, a)}
        times = bench.take_turns(runs, turns, clock=clock)
        peak = SIDE**3 / times["product"]
        shares = {way: np.median(macs / times[way] / peak) for way, (macs, _) in ways.items()}
        text = "".join(f"   {way} {share:4.0%}" for way, share in shares.items())
        print(f"  {name:<36}{np.median(2e-9 * peak):>4.0f}{text}", flush=True)


def _layers(
    backbone: str, policies: Sequence[str], frames: int, size: int
) -> Iterator[tuple[str, dict[str, Way]]]:
    """Names of the layers, and ways to run them."""
    nets, compact = {}, {}
    for text in policies:
        shares = tuple(float(share) for share in text.split(","))
        model = create_model(f"random_{backbone}", shares=shares)
        nets[text], fast = model.backbone, compacted(model)
        if fast is not None:
            compact[text] = dict(fast.backbone.named_blocks())
    net: ResNet = nets[policies[0]]
    out, stem = (costs.conv_out(size, net.stem.kernel, 2, net.stem.kernel // 2),) * 2, net.stem
    macs = frames * costs.conv_macs(3, stem.features, stem.kernel, out)
    yield f"stem, {stem.features}", {"dense": (macs, _run(net, _stem, _maps(frames, (size, size), 3)))}
    hw, seen = tuple(costs.conv_out(s, 3, 2, 1) for s in out) if stem.max_pool else out, set()
    for name, block in net.named_blocks():
        kind = (hw, block.in_features, block.geometry)
        if kind not in seen:
            seen.add(kind)
            x, total = _maps(frames, hw, block.in_features), 0
            for title, conv, bn, in_hw, out_hw in _convolutions(block, hw):
                macs = frames * costs.conv_macs(
                    conv.in_features, conv.out_features, conv.kernel_size[0], out_hw
                )
                total += macs
                run = _run(nnx.List([conv, bn]), _normed, _maps(frames, in_hw, conv.in_features))
                yield f"{name} {title}, {conv.out_features} x {out_hw[0]}x{out_hw[1]}", {"dense": (macs, run)}
            ways = {"dense": (total, _run(block, lambda b, x: b(x, None, False)[0], x))}
            for text, blocks in compact.items():
                run = _run(blocks[name], lambda b, x: b(x, None, False), x)
                _, site, _ = block.count(hw)
                saved = float(sum(costs.savings(run()[1], site))[0])
                title = "compact" + (", all kept" if text == KEPT else f" {text}")
                ways[title] = total - frames * saved, run
            yield name, ways
        hw = block.count(hw)[2]


def _convolutions(block: ResidualBlock, hw: tuple[int, int]) -> Iterator[tuple]:
    """Name, convolution, norm, size of what is read and of what is given."""
    before = hw
    for i, (kernel, stride) in enumerate(block.geometry, 1):
        after = tuple(costs.conv_out(s, kernel, stride, kernel // 2) for s in before)
        yield (
            f"conv{i} {kernel}x{kernel}",
            getattr(block, f"conv{i}"),
            getattr(block, f"bn{i}"),
            before,
            after,
        )
        before = after
    if block.downsample_conv is not None:
        yield "shortcut", block.downsample_conv, block.downsample_bn, hw, before


def _normed(pair: nnx.List, x: jax.Array) -> jax.Array:
    conv, bn = pair
    return bn(per_frame(conv, x))


def _stem(net: ResNet, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(net.bn1(per_frame(net.conv1, x)))
    return per_frame(lambda f: max_pool(f, padding=1, ceil=False), x) if net.stem.max_pool else x


def _run(module: nnx.Module, function: Callable, x: jax.Array) -> Callable:
    graph, weights = nnx.split(module)
    compiled = jax.jit(lambda weights, x: function(nnx.merge(graph, weights), x))
    return lambda: compiled(weights, x)


def _maps(frames: int, hw: tuple[int, int], channels: int) -> jax.Array:
    drawn = np.random.default_rng(0).standard_normal((1, frames, *hw, channels), np.float32)
    return jnp.asarray(np.maximum(drawn, 0))
