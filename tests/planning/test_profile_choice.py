"""Which profile `auto` takes, from a machine's memory and what other programs hold of it."""

import pytest
import torch

from engine.errors import EnvironmentProblem
from engine.planning.hardware import GIB, Hardware, auto_profile, detect, host_memory, profile_for, usable_cores


def card(total, free=None):
    held = None if free is None else int(free * GIB)
    return Hardware("cuda", "a card", int(total * GIB), 8, "bf16", held)


@pytest.mark.parametrize(
    ("total", "free", "profile"),
    [
        (7.62, 7.62, "8gb"),  # sold as 8 GB
        (8.0, 7.45, "8gb"),
        (11.6, None, "12gb"),
        (10.0, 9.8, "8gb"),
        (23.6, 23.5, "24gb"),
        (140.0, 139.0, "24gb"),
        (4.0, 3.9, "4gb"),
    ],
)
def test_the_nearest_profile_below_the_free_memory(total, free, profile):
    assert profile_for(card(total, free)) == (profile, None)


def test_memory_that_other_programs_hold_is_not_planned_with_and_it_is_said():
    profile, note = profile_for(card(8.0, 6.2))
    assert profile == "6gb"
    assert note.startswith("other programs hold 1.8 of the 8.0 GiB of a card: profile 6gb instead of 8gb")


def test_a_card_that_is_full_or_too_small():
    with pytest.raises(EnvironmentProblem, match=r"other programs hold 7\.0 of the 8\.0 GiB.*Close them"):
        profile_for(card(8.0, 1.0))
    with pytest.raises(EnvironmentProblem, match=r"has 2\.0 GiB; the smallest profile is 4gb"):
        profile_for(card(2.0, 2.0))


def test_without_a_gpu_the_processor_is_planned_with():
    hardware = detect("cpu")
    assert (hardware.device, auto_profile("cpu")) == ("cpu", "cpu")
    assert hardware.memory_bytes == host_memory() > 0
    assert hardware.cores == usable_cores() >= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_free_memory_of_a_gpu_is_measured():
    hardware = detect("cuda")
    assert 0 < hardware.free_bytes <= hardware.memory_bytes
