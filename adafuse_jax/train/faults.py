"""What goes wrong with devices and disks, as one line to the user."""

import contextlib
from collections.abc import Iterator

import jax

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError


def reason(error: BaseException) -> str:
    """The kind of an error and its first line, without its middle where it is long."""
    line = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
    return f"{type(error).__name__}: {line if len(line) < 240 else f'{line[:120]} ... {line[-120:]}'}"


@contextlib.contextmanager
def told(config: Config) -> Iterator[None]:
    """Tells of a device out of memory, and of lost processes, by a UserError; for all that runs the model."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
            raise UserError(_out_of_memory(config, error)) from error
        if jax.process_count() > 1:
            raise UserError(
                f"process {jax.process_index()} of {jax.process_count()}: expected the others to go on, "
                f"found {reason(error)}"
            ) from error
        raise


def _out_of_memory(config: Config, error: Exception) -> str:
    train, devices = config.train, jax.device_count()
    at_once = train.batch_size // devices // train.accumulate
    hints = [f"config.train.accumulate={2 * train.accumulate}"] if at_once > 1 else []
    hints += ["config.train.precision=bfloat16"] if train.precision == "float32" else []
    hints += [f"config.train.eval_batch_size={devices}"] if train.eval_batch_size > devices else []
    return (
        f"out of memory with config.train.batch_size {train.batch_size}: {at_once} clips at once on each of "
        f"{devices} devices; try {', '.join([*hints, 'a smaller batch, or smaller images'])} "
        f"({reason(error)})"
    )
