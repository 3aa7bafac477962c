"""One step of training and one of evaluation, as pure functions compiled for a mesh."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from adafuse_jax import flops
from adafuse_jax.config import Config, Data
from adafuse_jax.models.recognizer import Output, Recognizer
from adafuse_jax.train import losses, mesh
from adafuse_jax.train.metrics import Metrics
from adafuse_jax.train.state import State, Tree, averaged, put_together, running_statistics

Batch = dict[str, jax.Array]


def normalize(clip: UInt8[Array, "b t h w 3"], data: Data) -> Float[Array, "b t h w 3"]:
    """(clip / 255 * max_value - mean) / std per colour, in the model's order of them, on the device."""
    colours = clip[..., ::-1] if data.channel_order == "bgr" else clip
    return (colours / (255.0 / data.max_value) - jnp.asarray(data.mean)) / jnp.asarray(data.std)


def cost_of(model: Recognizer, out: Output, config: Config) -> flops.Cost:
    """The cost of the output's clips at the config's image size."""
    data = config.data
    return flops.count(model, out.policies, image_size=data.image_size, num_frames=data.num_frames)


def measure(model: Recognizer, out: Output, cost: flops.Cost, batch: Batch) -> Metrics:
    """The metrics of a batch."""
    macs = jnp.broadcast_to(cost.actual, batch["label"].shape)
    stages = [model.stage_of(site) for site in out.policies]
    return Metrics.of(out.logits, batch["label"], batch["weight"], macs, out.policies, model.actions, stages)


def over_views(out: Output, cost: flops.Cost, clips: int) -> tuple[Output, flops.Cost]:
    """What V views of each clip say and cost together.

    Args:
        out: of B * V views, those of a clip one after the other.
        cost: of the same.
        clips: B.

    Returns:
        Logits as their mean, decisions and frame logits of V * T frames, MACs as their sum: all V were
        computed.
    """
    views = len(out.logits) // clips

    def summed(macs):
        return jnp.broadcast_to(macs, len(out.logits)).reshape(clips, views).sum(1)

    def joined(of_frames):
        return of_frames.reshape(clips, -1, *of_frames.shape[2:])

    return (
        dataclasses.replace(
            out,
            logits=out.logits.reshape(clips, views, -1).mean(1),
            frame_logits=joined(out.frame_logits),
            policies=type(out.policies)((site, joined(p)) for site, p in out.policies.items()),
        ),
        dataclasses.replace(
            cost, dense=cost.dense * views, actual=summed(cost.actual), upper=summed(cost.upper)
        ),
    )


def make_train_step(
    graph: nnx.GraphDef,
    config: Config,
    optimizer: optax.GradientTransformation,
    total_steps: int,
    devices: Mesh,
) -> Callable[[State, Batch, jax.Array], tuple[State, Metrics]]:
    """The compiled step (state, batch, key of the run) -> (state, metrics); the state is donated.

    Its randomness is `fold_in(key, step)`, whatever the number of devices. BatchNorm's statistics are
    those of the whole batch, over all devices, or of groups of `config.train.norm_clips`.

    With `config.train.accumulate` = n the batch goes through the model in n parts, part m of the clips m,
    m + n, m + 2n ...: each has its own BatchNorm statistics and random key (`fold_in` with m), and the step
    takes the mean of their gradients, weighted by their clips: 1/n of the memory.

    A step whose loss or gradient isn't finite changes nothing but its number, and its metrics count nothing
    but one `skipped`.
    """
    parts = config.train.accumulate

    def loss_of(params: Tree, stats: Tree, batch: Batch, key: jax.Array, step: jax.Array):
        model = put_together(graph, params, stats)
        out = model(normalize(batch["clip"], config.data), key, train=True)
        cost = cost_of(model, out, config)
        macs = cost.actual if config.loss.flops_loss == "real" else cost.upper
        gmacs_per_frame = jnp.broadcast_to(macs, batch["label"].shape) / (1e9 * config.data.num_frames)
        weight = losses.flops_weight_at(step, total_steps, config.loss.flops_weight, config.loss.flops_warmup)
        parts = losses.parts(model, out, batch, gmacs_per_frame, weight, config.loss)
        metrics = measure(model, out, cost, batch).with_loss_parts(parts)
        return sum(parts.values()), (running_statistics(model), metrics)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def accumulated(params: Tree, stats: Tree, batch: Batch, key: jax.Array, step: jax.Array):
        clips = jnp.maximum(batch["weight"].sum(), 1)

        def part(carry, m_and_batch):
            (loss, stats, grads), (m, batch) = carry, m_and_batch
            (its_loss, (stats, metrics)), its_grads = gradient(
                params, stats, batch, jax.random.fold_in(key, m), step
            )
            share = batch["weight"].sum() / clips
            grads = jax.tree.map(lambda total, g: total + share * g, grads, its_grads)
            return (loss + share * its_loss, stats, grads), metrics

        # Clip by clip in turn, so that each device has a share of every part.
        split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
        start = (jnp.zeros(()), stats, jax.tree.map(jnp.zeros_like, params))
        (loss, stats, grads), metrics = jax.lax.scan(part, start, (jnp.arange(parts), split))
        return (loss, (stats, jax.tree.map(lambda a: a.sum(0), metrics))), grads

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state.step)
        differentiate = gradient if parts == 1 else accumulated
        (loss, (stats, metrics)), grads = differentiate(state.params, state.stats, batch, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema and averaged(state.ema, (params, stats), state.step, config.train.ema_decay)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        after = State(state.step, params, stats, opt_state, ema)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return dataclasses.replace(after, step=state.step + 1), metrics.unless_skipped(finite)

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(mesh.replicated(devices), mesh.by_clip(devices), mesh.replicated(devices)),
        out_shardings=mesh.replicated(devices),
    )


def make_eval_step(
    graph: nnx.GraphDef, config: Config, devices: Mesh
) -> Callable[[Tree, Tree, Batch, jax.Array | None], tuple[Metrics, tuple[Array, Array, Array]]]:
    """The compiled (params, stats, batch, key) -> (metrics, (logits, labels, weights)).

    Without a key the likeliest actions. Clips may be (B, V, T, H, W, 3): see `over_views`. What is returned
    is of the clips of all processes.
    """

    def step(params: Tree, stats: Tree, batch: Batch, key: jax.Array | None):
        model = put_together(graph, params, stats)
        views = batch["clip"].reshape(-1, *batch["clip"].shape[-4:])
        out = model(normalize(views, config.data), key)
        out, cost = over_views(out, cost_of(model, out, config), len(batch["label"]))
        return measure(model, out, cost, batch), (out.logits, batch["label"], batch["weight"])

    shared = mesh.replicated(devices)
    return jax.jit(step, in_shardings=(shared, shared, mesh.by_clip(devices), shared), out_shardings=shared)
