"""The FLOPs estimator: MACs per clip, dense and under policies, traced and differentiable (Eqs. 4 and 5)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adafuse_jax.errors import UserError
from adafuse_jax.models.arnet import ARNet
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.ops import costs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cost:
    """MACs per clip.

    Attributes:
        dense: everything computed, policy networks included.
        actual: Eq. 5: without the channels that conv1 need not compute and conv2 need not read, (B,).
            AR-Net: of the chosen resolutions.
        upper: only conv2's savings counted, an upper bound of `actual`, (B,). AR-Net: `actual`.
    """

    dense: float = dataclasses.field(metadata={"static": True})
    actual: Float[Array, " b"]
    upper: Float[Array, " b"]


def count(
    model: Recognizer | ARNet,
    policies: Mapping[str, Float[Array, "b t c actions"]],
    *,
    image_size: int | tuple[int, int] = 224,
    num_frames: int = 8,
    published: bool = False,
) -> Cost:
    """Counts a clip's MACs as the published counter does (reference.md, section 3, "Cost counter").

    Args:
        model: from `create_model`.
        policies: `out.policies`; empty for a model without fusion.
        image_size: pixels, the side of a square or (height, width).
        num_frames: T of a model without fusion (policies bring their own).
        published: reproduce the published slip at the last frame, and the constants that the published code
            takes for the dense cost of CGNet; AR-Net: its average of the policy network's runs.

    Returns:
        The cost; `actual` and `upper` have one entry a clip, or a single one without policies.

    Raises:
        UserError: where the policies aren't those of this model's sites.
    """
    hw = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    frame = model.count(hw)
    if set(policies) != set(frame.sites):
        raise UserError(
            f"policies: expected the sites {list(frame.sites)} of {model.name!r}, found {list(policies)}"
        )
    saved_before = saved_after = jnp.zeros(1)
    for name, site in frame.sites.items():
        policy = policies[name]
        wanted = (site.channels, len(model.actions))
        if policy.ndim != 4 or policy.shape[2:] != wanted:
            raise UserError(
                f"policies: expected (B, T, {wanted[0]}, {wanted[1]}) at {name} of {model.name!r}, "
                f"found {policy.shape}"
            )
        num_frames = policy.shape[1]
        before, after = costs.savings(policy, site, model.actions, published)
        saved_before, saved_after = saved_before + before, saved_after + after
    dense = frame.published if published and frame.published else frame.dense
    upper = float(dense) - saved_after
    return Cost(
        dense=float(dense * num_frames),
        actual=(upper - saved_before) * num_frames,
        upper=upper * num_frames,
    )
