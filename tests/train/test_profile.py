"""A trace holds the steps asked for, with their numbers, and no run is stopped or lost by it."""

import gzip
import json

import jax
import pytest

from adafuse_jax.errors import UserError
from adafuse_jax.train.profile import Profile, parse


def run(profile, steps):
    """Steps, the first of which has the number 101."""
    step = jax.jit(lambda x: x @ x)
    for number in range(101, 101 + steps):
        profile.before(number)
        profile.after(step(jax.numpy.ones((8, 8))))


def traced(folder):
    """Numbers of the steps in the trace."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert len(list(folder.glob("plugins/profile/*/*.xplane.pb"))) == 1
    return sorted(map(int, found))


def test_the_trace_holds_the_steps_asked_for(tmp_path):
    with Profile((2, 3), tmp_path, 5) as profile:
        run(profile, 5)
    assert traced(tmp_path) == [102, 103]


def test_a_run_that_ends_among_them_leaves_what_it_did(tmp_path):
    with pytest.raises(OSError, match="disk full"), Profile((1, 9), tmp_path, 10) as profile:
        run(profile, 1)
        profile.before(102)  # it ends while it waits for the second step's batch
        raise OSError("disk full")
    assert 101 in traced(tmp_path)


def test_nothing_is_traced_unasked(tmp_path):
    with Profile(None, tmp_path / "profile", 2) as profile:
        run(profile, 2)
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("text", ["", "3", ":", "2:1", "0:1", "a:b", "1:2:3", "-1:2"])
def test_what_is_no_range_of_steps(text):
    with pytest.raises(UserError, match=r"^--profile: expected FIRST:LAST, two steps of 1 or more, found "):
        parse(text)


def test_a_range_of_steps():
    assert parse("10:20") == (10, 20)
    assert parse("1:1") == (1, 1)


def test_steps_that_will_not_be_done(tmp_path):
    with pytest.raises(UserError, match="--profile: expected steps of the 4 to do, found 3:5"):
        Profile((3, 5), tmp_path, 4)
