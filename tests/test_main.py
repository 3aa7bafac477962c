"""The main job as a user runs it: `python main.py`, its words, its files, its exit status."""

import functools
import importlib.util
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from helpers import ROOT, start_main

SHAPES = "--config=configs/moving_shapes.py"
VIDEOS = "--config=configs/video_list.py"
# ml_collections loads a config file in an old way.
in_process = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
# Two steps of eight clips.
SMALL = (
    *("--config.model.fusion_stages=(3,)", "--config.data.image_size=16", "--config.data.num_frames=2"),
    *("--config.data.train_clips=16", "--config.data.val_clips=24", "--config.train.eval_batch_size=8"),
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`start_main`, compiling each thing once."""
    return functools.partial(start_main, compiled=tmp_path_factory.mktemp("compiled"))


def finish(process):
    """Exit status, output and errors; a process that hangs is an error too."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    """A workdir after a run of two steps, and what the run printed."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    status, out, err = finish(start(SHAPES, *SMALL, f"--workdir={workdir}", "--profile=2:2"))
    assert status == 0, err
    return workdir, out, err


def test_training_prints_the_result_and_where_things_lie(trained):
    workdir, out, err = trained
    *result, written = out.splitlines()
    assert result[0] == "clips    24"
    assert re.fullmatch(r"top-1    +[\d.]+%   top-5 +[\d.]+%   mAP +[\d.]+%", result[1])
    assert re.fullmatch(r"cost     [\d.]+ GMACs per clip of [\d.]+ dense \([\d.]+%\)", result[2])
    assert re.fullmatch(r"actions  skip +[\d.]+%  reuse +[\d.]+%  keep +[\d.]+%", result[3])
    assert [line.split()[0] for line in result[4:]] == ["layer3.0"]
    assert written == (
        f"written  {workdir}: checkpoints/  events/ (TensorBoard)  metrics.jsonl  run.json  "
        "policies.png  profile/ (TensorBoard)"
    )
    # What takes more than a second to compile is kept, too.
    assert {path.name for path in workdir.iterdir()} - {"compiled"} == {
        *("checkpoints", "events", "metrics.jsonl", "policies.png", "config.json", "run.json", "profile")
    }
    (started,) = json.loads((workdir / "run.json").read_text())
    command = shlex.split(started["command"])
    assert command[1:] == ["main.py", SHAPES, *SMALL, f"--workdir={workdir}", "--profile=2:2"]
    assert started["folder"] == str(ROOT)
    assert len(list(workdir.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"2"}
    assert (workdir / "policies.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^train: 16/16 .*, loss=[\d.]+, top-1=[\d.]+%, GMACs=[\d.]+", err, re.MULTILINE)
    assert "Traceback" not in err


def test_eval_mode_finds_what_the_last_evaluation_of_training_found(start, trained):
    workdir, out, _ = trained
    status, evaluated, err = finish(
        start(SHAPES, *SMALL, f"--workdir={workdir}", "--mode=eval", "--which=latest")
    )
    assert status == 0, err
    assert evaluated.splitlines() == out.splitlines()[:-1]
    assert err == ""


def test_an_interrupted_command_says_so(start, tmp_path):
    arguments = (SHAPES, *SMALL, f"--workdir={tmp_path}", "--config.train.epochs=400")
    process = start(*arguments, "--config.train.log_every_steps=1")
    while process.poll() is None and not list(tmp_path.glob("checkpoints/[0-9]*")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in err


def test_an_error_in_the_middle_ends_the_run(start, tmp_path):
    """With all that then runs in the background: readers, checkpoints, the bar."""
    garbage = tmp_path / "bad.mp4"
    garbage.write_bytes(b"no video")
    clips = tmp_path / "clips.txt"
    clips.write_text("bad.mp4 0\n" * 8)
    lists = (f"--config.data.train_list={clips}", f"--config.data.val_list={clips}")
    status, out, err = finish(
        start(
            VIDEOS,
            *lists,
            "--config.model.name=tsn_tiny",
            "--config.train.batch_size=8",
            *EIGHT,
            f"--workdir={tmp_path}/run",
        )
    )
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.fullmatch(rf"error: 1 of 8 clips can't be read, .*{garbage}: .*", errors[0])


EIGHT = ("--config.train.eval_batch_size=8", "--config.data.image_size=16", "--config.data.resize=16")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--config=configs/none.py",), "config file configs/none.py: expected a Python file"),
        (
            (SHAPES, "--config.train.batch_size=12"),
            "config.train.batch_size: expected a multiple of the 8 devices",
        ),
    ],
)
def test_an_error_is_all_that_is_printed(start, arguments, message):
    status, out, err = finish(start(*arguments))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.fixture
def main(monkeypatch):
    """`main.py` as a function of its arguments, run in this process from the root of the repository."""
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("main_job", ROOT / "main.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*arguments):
        argv = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks
        return module.guarded(lambda: module.run(module.Config.from_dict(module.read_flags(argv))))

    yield main
    own = {held.name for held in vars(module).values() if isinstance(held, flags.FlagHolder)}
    for name in [n for n in flags.FLAGS if n in own or n.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.fixture
def lists(tmp_path):
    """Lists of clips by name."""
    (tmp_path / "clip.mp4").write_bytes(b"")
    texts = {
        "good": "clip.mp4 0\n" * 8,
        "empty": "\n",
        "label": "clip.mp4 0\nclip.mp4 6\n",
        "gone": "none.mp4 0\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


@in_process
@pytest.mark.parametrize(
    "arguments, message",
    [
        # The command line.
        ((), "command line: expected --config=FILE and flags with '=', found nothing"),
        ((SHAPES, "train"), "command line: expected --config=FILE and flags with '=', found --config=conf"),
        ((SHAPES, "--wrkdir=x"), "command line: Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
        ((SHAPES, "--mode=test"), "command line: flag --mode=test: value should be one of <train|eval>"),
        (("--config=none.py", "--config.train.seed=1"), "config file none.py: expected a Python file"),
        ((SHAPES, "--checkpoint=x"), "--checkpoint: expected only with --mode=eval"),
        ((SHAPES, "--profile=5"), "--profile: expected FIRST:LAST, two steps of 1 or more, found '5'"),
        ((SHAPES, "--mode=eval", "--profile=1:2"), "--profile: expected only with --mode=train"),
        # Fields and values.
        (
            (SHAPES, "--config.train.sed=1"),
            "unknown config field 'train.sed' (did you mean 'train.seed'?); known",
        ),
        ((SHAPES, "--config.trian.seed=1"), "unknown config field 'trian.seed' (did you mean 'train.seed'?)"),
        ((SHAPES, "--config.model.tua=1"), "unknown config field 'model.tua' (did you mean 'model.tau'?)"),
        ((SHAPES, "--config.train.seed=one"), "command line: flag --config.train.seed=one: invalid literal"),
        ((SHAPES, "--config.train.precision=float16"), "unknown value of config.train.precision 'float16'"),
        (
            (SHAPES, "--config.data.mean=0.5"),
            "config.data.mean: expected 3 numbers, one a colour, found (0.5,)",
        ),
        ((SHAPES, "--config.model.name=adafuse_tsn_r19"), "unknown model 'adafuse_tsn_r19' (did you mean 'a"),
        (
            (SHAPES, "--config.model.actions=('keep','drop')"),
            "config.model: unknown action 'drop'; known: keep, reuse, skip",
        ),
        ((SHAPES, "--config.data.num_frames=0"), "config.data.num_frames: expected more than 0, found 0"),
        (
            (SHAPES, "--config.data.num_frames=1"),
            "config.data.num_frames: expected at least 2 with moving_shapes",
        ),
        ((SHAPES, "--config.data.num_classes=6"), "config.data.num_classes: moving_shapes has 12, found 6"),
        (
            (VIDEOS, "--config.data.resize=100"),
            "config.data.resize: expected at least image_size 112, found 100",
        ),
        (
            (SHAPES, "--config.train.batch_size=12"),
            "config.train.batch_size: expected a multiple of the 8 dev",
        ),
        # Lists.
        ((VIDEOS,), "config.data.train_list: expected a list of clips, found nothing"),
        (
            (VIDEOS, "{train}/none.txt"),
            "config.data.train_list: expected a file, found nothing at {lists}/none.txt",
        ),
        ((VIDEOS, "{train}/good.txt"), "config.data.val_list: expected a list of clips, found nothing"),
        (
            (VIDEOS, "{train}/empty.txt", "{val}/good.txt"),
            'list {lists}/empty.txt: expected "path label" or "folder frames label"',
        ),
        (
            (VIDEOS, "{train}/label.txt", "{val}/good.txt"),
            "{lists}/label.txt, line 2: expected a label in 0..5, found 6",
        ),
        (
            (VIDEOS, "{train}/gone.txt", "{val}/good.txt"),
            "list {lists}/gone.txt: 1 of 1 paths don't exist, the first is {lists}/no",
        ),
        (
            (VIDEOS, "{train}/good.txt", "{val}/none.txt"),
            "config.data.val_list: expected a file, found nothing at {lists}/none.txt",
        ),
        # Checkpoints.
        ((SHAPES, "--mode=eval"), "checkpoint {workdir}: expected a run's workdir or its checkpoints folder"),
    ],
)
def test_bad_input_is_one_line(main, lists, tmp_path, capfd, arguments, message):
    workdir = tmp_path / "run"
    quick = "--config.model.name=tsn_tiny --config.train.batch_size=8 --config.train.eval_batch_size=8"
    places = {
        "train": f"{quick} --config.data.train_list={lists}",
        "val": f"--config.data.val_list={lists}",
    }
    arguments = [part for argument in arguments for part in argument.format(**places).split()]
    assert main(*arguments, *([f"--workdir={workdir}"] if arguments else [])) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: " + message.format(lists=lists, workdir=workdir))
    assert printed.err.count("\n") == 1
    assert not workdir.exists()


@in_process
@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--config.train.seed=1",), "workdir {} holds a run with config.train.seed=0, this one has 1: give"),
        (
            ("--config.model.name=adafuse_tsm_tiny", "--mode=eval"),
            "checkpoint {}/checkpoints/2: expected model 'adafuse_tsm_tiny', found 'adafuse_tsn_tiny'",
        ),
        (
            ("--config.model.shift=online", "--mode=eval"),
            "checkpoint {}/checkpoints: expected config.model.shift=None, as it was trained",
        ),
        (
            ("--mode=eval", "--config.train.eval_batch_size=9"),
            "config.train.eval_batch_size: expected a multiple",
        ),
    ],
)
def test_a_workdir_of_another_run_is_one_line(main, trained, capfd, arguments, message):
    assert main(SHAPES, *SMALL, *arguments, f"--workdir={trained[0]}") == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: " + message.format(trained[0]))
    assert printed.err.count("\n") == 1
