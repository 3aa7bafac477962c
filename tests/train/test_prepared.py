"""Training from what `data.prepare` wrote."""

import jax
import owner_files

from adafuse_jax.config import Config
from adafuse_jax.train import loop
from data import prepare


def test_two_steps(tmp_path):
    owner_files.something_something_v1(tmp_path)
    options = ["--manual_dir", tmp_path, "--data_dir", tmp_path / "prepared", "--workers", 1]
    assert prepare.main(["something_something_v1", *map(str, options)]) == 0
    directory = tmp_path / "prepared" / "something_something_v1" / "1.0.0"
    data = {"name": "prepared", "prepared_dir": str(directory), "num_classes": 3}
    config = Config.from_dict(
        {
            "model": {"name": "adafuse_tsn_tiny"},
            "data": {**data, "num_frames": 3, "image_size": 16, "resize": 16},
            "train": {"epochs": 1.0, "batch_size": 2, "eval_batch_size": 2, "log_every_steps": 1},
        }
    )
    result = loop.train(config, tmp_path / "run", jax.devices()[:1])
    assert result["step"] == 2
    assert result["unreadable"] == 0
