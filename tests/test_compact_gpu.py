"""On a GPU each block runs as was measured to be faster, and says what it says dense (interpreted here)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit
from test_compact import assert_same, clips, dense, made

from adafuse_jax import bench, compact, compact_gpu, create_model
from adafuse_jax.compact import Compact, compacted
from adafuse_jax.compact_gpu import DENSE, FOLDED, Choice
from adafuse_jax.kernels.pallas_pair import Tile
from adafuse_jax.report import bench as report
from adafuse_jax.streaming import Stream

SITES = "layer1.0", "layer2.0", "layer3.0"
TILES = {"16x16x16": Tile(16, 16, 16), "32x32x32": Tile(32, 32, 32)}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """As if there were one; what is compiled still runs on the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compact_gpu, "TILES", TILES)
    # What is told once a process may have been.
    monkeypatch.setattr(compact, "_tell", functools.cache(compact._tell.__wrapped__))
    monkeypatch.setattr(jax, "jit", quick_jit)


class Measured:
    """Says that `fastest` is so, in turn for each block."""

    def __init__(self, *fastest):
        self.fastest, self.blocks = fastest, []

    def __call__(self, runs):
        self.blocks.append(runs)
        fastest = self.fastest[(len(self.blocks) - 1) % len(self.fastest)]
        return {way: 1.0 + (way != fastest) for way in runs}


@pytest.mark.parametrize(
    ("name", "options", "ways"),
    [
        ("adafuse_tsm_tiny", {"actions": ("reuse", "keep")}, ["16x16x16", "32x32x32", "16x16x16"]),
        ("random_tiny", {"shares": (0.35, 0.25, 0.4)}, [DENSE, FOLDED, "16x16x16"]),
    ],
)
def test_whatever_is_chosen_gives_what_the_model_gives(name, options, ways):
    model, clip = made(name, options), clips((2, 3, 11, 13))
    compact = Compact(model, Measured(*ways))
    assert compact.native
    assert_same(compact(clip), dense(model, clip))
    choices = compact.choices(clip)
    assert [choice.way for choice in choices.values()] == ways and tuple(choices) == SITES
    assert [choice.compact for choice in choices.values()] == ["x" in way for way in ways]


def test_bfloat16():
    """As far from float32 as the dense model of bfloat16 is."""
    model = made("adafuse_tsn_tiny", {"dtype": "bfloat16"})
    for _, block in model.backbone.named_blocks():  # the same decisions, whatever the rounding
        block.fusion.fc1.kernel[...] *= 0
        block.fusion.fc1.bias[...] = 100 * jax.random.normal(jax.random.key(0), (3 * block.width,))
    exact = filled(lambda: create_model("adafuse_tsn_tiny", num_classes=4))
    nnx.update(exact, nnx.state(model))
    clip = jnp.asarray(clips((1, 2, 12, 13)), jnp.bfloat16)
    wanted = dense(exact, clip.astype(jnp.float32))
    error = np.abs(np.asarray(dense(model, clip).logits, np.float32) - wanted.logits).max()
    found = Compact(model, Measured("16x16x16"))(clip)
    np.testing.assert_allclose(np.asarray(found.logits, np.float32), wanted.logits, rtol=0, atol=2 * error)
    assert 0 < error < 0.05 * np.abs(wanted.logits).max()
    for site, policy in found.policies.items():
        np.testing.assert_array_equal(policy, wanted.policies[site])


def test_it_is_measured_once_a_shape():
    measured = Measured(DENSE)
    compact = Compact(made("adafuse_tsn_tiny"), measured)
    for clip, blocks in ((clips(), 3), (clips() + 1, 3), (clips((1, 2, 16, 16)), 6), (clips(), 6)):
        assert tuple(compact.choices(clip)) == SITES
        assert len(measured.blocks) == blocks


def test_what_is_timed_does_the_same_on_the_real_policies():
    """Each way gives one value of the block's output: from the same maps and policies, the same."""
    model, clip, measured = made("adafuse_tsn_tiny"), clips((1, 3, 11, 13)), Measured(DENSE)
    norm = model.backbone.layer2[0].bn2
    norm.scale[...] *= 0.05
    norm.bias[...] += 100  # the value isn't cut off by the last ReLU
    policies = Compact(model, measured)(clip).policies
    runs, policy = measured.blocks[1], policies["layer2.0"]
    values = [float(run()) for run in runs.values()]
    assert list(runs) == [DENSE, FOLDED, *TILES] and values[0] > 0
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    for run in runs.values():
        _, state, x = run.args
        assert x.shape == (1, 3, 6, 7, model.backbone.layer2[0].in_features)
        given = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == policy.shape]
        assert any((leaf == policy).all() for leaf in given)


def test_blocks_of_one_size_are_compiled_once():
    model = filled(lambda: create_model("random_r18", shares=(0.35, 0.25, 0.4)))
    blocks = model.backbone.layer2
    policy = jax.nn.one_hot(jnp.zeros((1, 2, 128), int), 3)
    first, second, other = (
        compact_gpu._ways(block, policy, (8, 8)) for block in (blocks[1], model.backbone.layer2[1], blocks[0])
    )
    for way in first:
        assert first[way].args[0] == second[way].args[0] and first[way].args[0] != other[way].args[0]
        assert hash(first[way].args[0]) == hash(second[way].args[0])


def test_times_are_medians_by_turns(monkeypatch):
    """By a clock that only the runs turn."""
    now, order = [0.0], []
    monkeypatch.setattr(compact_gpu.time, "perf_counter", lambda: now[0])

    def run(name, took):
        def go():
            order.append(name)
            now[0] += took(order.count(name))

        return go

    compiles = run("a", lambda call: 100.0 if call == 1 else 2.0)
    disturbed = run("b", lambda call: 50.0 if call == 3 else 1.0)
    found = compact_gpu.seconds({"a": compiles, "b": disturbed})
    assert found == {"a": 2.0 / compact_gpu._REPEATS, "b": 1.0 / compact_gpu._REPEATS}
    assert "".join(order) == "ab" * (compact_gpu._TURNS + 1)


def test_what_cannot_run_takes_forever():
    def fails():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory")

    assert compact_gpu.seconds({DENSE: lambda: None, "128x128x64": fails})["128x128x64"] == np.inf
    with pytest.raises(jax.errors.JaxRuntimeError, match="shared memory"):
        compact_gpu.seconds({DENSE: fails})


def test_of_equals_dense():
    assert Choice({"16x16x16": 1.0, FOLDED: 1.0, DENSE: 1.0}).way == DENSE
    assert Choice({DENSE: 2.0, FOLDED: 1.0, "16x16x16": 3.0}).compact is False
    assert Choice({DENSE: 2.0, FOLDED: 1.0, "16x16x16": 0.5}).compact is True


def test_streams_are_dense_and_say_so(monkeypatch, caplog):
    model = made("adafuse_tsn_tiny")
    assert Stream(model, "compact").execution == "dense"
    (record,) = caplog.records
    assert "compact execution of streams: for the CPU alone, found gpu" in record.getMessage()
    monkeypatch.setattr(bench.runs, "Compact", functools.partial(Compact, measure=Measured("16x16x16")))
    runs = bench.prepare(model, jnp.asarray(clips()))
    assert list(runs.named()) == [("clip", "dense"), ("clip", "compact"), ("stream", "dense")]
    assert runs.missing == ["compact execution of streams: none on gpu"]
    assert tuple(runs.choices) == SITES
    rows = report.table(runs.choices)
    assert rows[0].split() == ["runs", DENSE, FOLDED, *TILES]
    assert rows[1].split() == ["layer1.0", "compact", "2000.000", "2000.000", "1000.000", "2000.000"]


def test_a_model_for_predictions(monkeypatch):
    monkeypatch.setattr(compact_gpu, "seconds", Measured("16x16x16", DENSE))
    copy = compacted(made("adafuse_tsn_tiny"), clips((1, 2, 8, 8)))
    assert [block.paired is not None for _, block in copy.backbone.named_blocks()] == [True, False, True]
