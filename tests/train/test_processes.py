"""Two processes of four devices train as one of eight; what a process finds of its fellows."""

import json
import shutil
import socket

import jax
import numpy as np
import pytest
from helpers import start_main
from runs import logged, state_of

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.train import hosts, loop, mesh

# Ten steps of eight clips, evaluated after 5 and 10 on twelve clips, saved after 6 too.
RUN = (
    *(
        "--config=configs/moving_shapes.py",
        "--config.model.fusion_stages=(3,)",
        "--config.data.image_size=16",
    ),
    *("--config.data.num_frames=2", "--config.data.train_clips=40", "--config.data.val_clips=12"),
    *("--config.train.batch_size=8", "--config.train.eval_batch_size=8", "--config.train.epochs=2"),
    *("--config.train.log_every_steps=1", "--config.train.eval_every_epochs=1"),
    *("--config.train.checkpoint_every_steps=6", "--config.optimizer.name=sgd"),
    *("--config.optimizer.learning_rate=0.02", "--config.train.ema_decay=0.9", "--config.train.norm_clips=4"),
)


def start(workdir, index, count, port):
    where = (f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}")
    return start_main(*RUN, f"--workdir={workdir}", *where, devices=8 // count)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The workdir of two processes, their config and what they printed."""
    workdir, port = tmp_path_factory.mktemp("processes") / "run", free_port()
    processes = [start(workdir, index, 2, port) for index in range(2)]
    try:
        printed = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    return workdir, Config.from_dict(json.loads((workdir / "config.json").read_text())), printed


@pytest.fixture(scope="module")
def alone(together, tmp_path_factory):
    """The same run in this process."""
    workdir = tmp_path_factory.mktemp("alone")
    loop.train(together[1], workdir)
    return workdir


def assert_alike(found, expected, values):
    """Logs to 1e-5, decisions exactly; arrays to 1e-5 of their largest entry."""
    lines = [logged(found), logged(expected)]
    for line, other in zip(*lines, strict=True):
        flat, others = (dict(_flat(one)) for one in (line, other))
        assert flat.keys() == others.keys()
        for name, value in flat.items():
            assert value == (value if isinstance(value, str) else pytest.approx(others[name], rel=1e-5)), name
    states = [state_of(workdir, values) for workdir in (found, expected)]
    assert states[0][1:] == states[1][1:]
    for a, b in zip(*(jax.tree.leaves(state[0]) for state in states), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 + 1e-5 * np.abs(b).max(initial=0))


def _flat(line, prefix=""):
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_two_processes_train_as_one(together, alone):
    workdir, values, _ = together
    assert_alike(workdir, alone, values)
    evaluated = [line for line in logged(workdir) if line["split"] == "val"]
    assert [(line["step"], line["clips"]) for line in evaluated] == [(5, 12), (10, 12)]


def test_one_of_them_writes_and_prints(together):
    workdir, _, printed = together
    assert {path.name for path in workdir.iterdir()} >= {"config.json", "metrics.jsonl", "policies.png"}
    assert len(list((workdir / "events").iterdir())) == 1
    # The library that connects the processes has its say on stdout, too, at times in two pieces.
    out = [[line for line in of[0].splitlines() if line and "peer ranks" not in line] for of in printed]
    assert out[0][0] == "clips    12"
    assert out[1] == []
    assert ["train: 80/80" in of[1] for of in printed] == [True, False]


@pytest.mark.parametrize("devices", [8, 2])
def test_their_run_goes_on_in_one(together, alone, tmp_path, devices):
    workdir = shutil.copytree(together[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "10")
    loop.train(together[1], workdir, jax.devices()[:devices])
    assert_alike(workdir, alone, together[1])


@pytest.mark.parametrize(
    "given, message",
    [
        ((None, 2, 0), r"--coordinator \(or JAX_COORDINATOR_ADDRESS\): expected with the others of"),
        (("host:1", None, 0), r"--num_processes \(or JAX_NUM_PROCESSES\): expected with the others of"),
        (("auto", 2, None), "--process_id .* expected with the others of"),
        (
            ("host", 2, 0),
            "expected --coordinator=HOST:PORT and 0 <= --process_id < --num_processes, found host",
        ),
        (("host:port", 2, 0), "found host:port, -1 and -1"),
        (("host:1", 2, 2), "found host:1, 2 and 2"),
    ],
)
def test_a_job_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        hosts.join(*given)


def test_a_number_of_processes_from_the_environment(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="--coordinator"):
        hosts.join()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    monkeypatch.setenv("JAX_PROCESS_ID", "second")
    with pytest.raises(UserError, match="found host:1, -1 and -1"):
        hosts.join()


@pytest.mark.parametrize(
    "environment, joins",
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, False),  # a shell in an allocation, not a task of srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_what_the_environment_says(monkeypatch, environment, joins):
    asked = []
    monkeypatch.setattr(hosts.os, "environ", environment)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: asked.append(args))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    hosts.join()
    assert asked == ([(None, None, None)] if joins else [])


def test_agreement_of_one_is_at_once():
    agreed = hosts.Agreement(mesh.make())
    assert [agreed(number) for number in (0, 15, 2)] == [0, 15, 2]
    assert hosts.union({7, 3}, 9) == [3, 7]
