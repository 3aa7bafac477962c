"""Trains or evaluates a config.

python main.py --config=configs/moving_shapes.py
python main.py --config=configs/moving_shapes.py --mode=eval
"""

import re
import sys
import traceback
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from adafuse_jax.cli import guarded
from adafuse_jax.config import Config, base
from adafuse_jax.errors import UserError, unknown
from adafuse_jax.report import policies, summary

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; fields as --config.train.seed=1."
)
WORKDIR = flags.DEFINE_string("workdir", None, "All that the run writes; default runs/NAME OF THE CONFIG.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train (and evaluate), or evaluate a checkpoint."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "eval: the workdir of a run; default: --workdir.")
WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "eval: which checkpoint of it.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Several processes: HOST:PORT of the first, or 'auto' (SLURM, Open MPI, TPU pods, GKE).",
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many there are.")
PROCESS = flags.DEFINE_integer("process_id", None, "Several processes: which this is, from 0.")
PROFILE = flags.DEFINE_string(
    "profile", None, "train: trace steps FIRST:LAST, counted from where the command begins, to profile/."
)


def run(config: Config) -> None:
    """Does what the flags say."""
    from adafuse_jax import memory
    from adafuse_jax.train import compiled, hosts, loop, profile
    from adafuse_jax.train import run as runs

    memory.keep_freed()
    hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(WORKDIR.value or Path("runs") / name)
    if MODE.value == "train" or workdir.is_dir():
        compiled.keep(workdir)
    if MODE.value == "train":
        for flag in ("checkpoint", "which"):
            if flags.FLAGS[flag].present:
                raise UserError(f"--{flag}: expected only with --mode=eval; training goes on from --workdir")
        steps = None if PROFILE.value is None else profile.parse(PROFILE.value)
        result = loop.train(config, workdir, profile=steps)
    else:
        if PROFILE.present:
            raise UserError("--profile: expected only with --mode=train")
        result = runs.evaluate_checkpoint(config, Path(CHECKPOINT.value or workdir), WHICH.value)
    if not hosts.writes():
        return
    print(summary.evaluation(result))
    if MODE.value == "train":
        written = "checkpoints/  events/ (TensorBoard)  metrics.jsonl  run.json"
        if result["sites"]:
            policies.draw(result["sites"], workdir / "policies.png", f"{config.model.name} on {name}")
            written += "  policies.png"
        if (workdir / profile.FOLDER).exists():
            written += "  profile/ (TensorBoard)"
        print(f"written  {workdir}: {written}")


def read_flags(argv: list[str]) -> dict:
    """The config's values; a file, field or value that can't be is a user's mistake like any other."""
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)[1:]
        values = None if CONFIG.value is None else CONFIG.value.to_dict()
    except (AttributeError, KeyError) as error:
        raise unknown_field(argv, error) from error
    except OSError as error:
        file = re.search(r"-config[= ](.*?)( -|$)", " ".join(argv))[1]
        raise UserError(f"config file {file}: expected a Python file as in configs/, found none") from error
    except (TypeError, ValueError, SyntaxError, flags.Error) as error:
        raise UserError(f"command line: {' '.join(str(error).split())}") from error
    if rest or values is None:
        found = " ".join(argv[1:]) or "nothing"
        raise UserError(f"command line: expected --config=FILE and flags with '=', found {found}")
    return values


def unknown_field(argv: list[str], error: Exception) -> UserError:
    """The error for a `--config.` flag that no config has; ml_collections names only its last part."""
    known = [f"{section}.{field}" for section, fields in base().items() for field in fields]
    given = [a.lstrip("-").split("=")[0].removeprefix("config.") for a in argv if "-config." in a]
    for name in given:
        if name not in known:
            section = [field for field in known if field.startswith(name.split(".")[0] + ".")]
            return unknown("config field", name, section or known)
    return UserError(f"command line: {error}")


def main() -> int:
    """The exit status of the command line."""
    again = "stopped; the same command goes on from the last checkpoint"
    try:
        status = guarded(lambda: run(Config.from_dict(read_flags(sys.argv))), again)
    except Exception:
        traceback.print_exc()
        status = 1
    if status and "jax" in sys.modules:
        from adafuse_jax.train import hosts

        hosts.leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
