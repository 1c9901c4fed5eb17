"""This process, and the others that `accelerate launch` started beside it.

The index and number of processes come from accelerate, and only through this module. Importing the library changes
nothing in a process. A script requests what training needs at the top of its ``main``, as those in ``train/`` do:

- :func:`send_no_telemetry`: keep the hub's client from reporting what runs here
  (:func:`pro_core.runs.scripts.run_script` calls it);
- :func:`join_processes`: connect the processes before the first long piece of work;
- :func:`keep_freed_memory`: on a CPU, save a training step its page faults;
- :func:`pro_core.policies.sft.score_only_labelled_tokens`: on a CPU, keep TRL from scoring the prompt's tokens.

Without the last two, training gives the same result but takes longer.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from huggingface_hub import constants

T = TypeVar("T")
WAIT = 7200
"""Seconds that processes wait for one another: the main process scores while the others wait."""

# ---------------------------------------------------------------- which process, of how many


def processes() -> PartialState:
    """accelerate's record of this process: ``process_index`` of ``num_processes``, ``local_process_index``.

    The first call joins the processes: it returns when all of them have called it.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=WAIT))
    if state.num_processes > 1:
        _leave_at_exit()
    return state


@cache
def _leave_at_exit() -> None:
    """Leave the group when Python exits: gloo's threads, if they outlive it, sometimes abort a finished process."""

    def leave() -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def join_processes() -> None:
    """Connect the processes now, instead of when one of them first asks for its index."""
    processes()


def main_process() -> bool:
    """Whether this process is the one that writes files and prints tables."""
    return processes().is_main_process


def process_device() -> str:
    """The GPU that `accelerate launch` assigned to this process, or the CPU."""
    cuda = torch.cuda.is_available()
    return f"cuda:{processes().local_process_index}" if cuda else "cpu"


def wait_for_all() -> None:
    """Return when every process has called this."""
    processes().wait_for_everyone()


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    values = [value]
    if processes().num_processes > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def send_no_telemetry() -> None:
    """Turn off the telemetry of the hub's client, which TRL uses.

    If the environment sets HF_HUB_DISABLE_TELEMETRY, that decides.
    """
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # for the processes that this one starts
        constants.HF_HUB_DISABLE_TELEMETRY = (
            True  # the client read the variable when it was imported
        )


# ---------------------------------------------------------------- memory of training on a CPU


def keep_freed_memory() -> None:
    """On a CPU, make glibc keep freed memory for the next step, for the rest of this process.

    By default glibc returns every large tensor to the system, and page faults take most of a training step. Batches of
    many lengths leave gaps in the kept memory, though: see :func:`return_freed_memory`. Does nothing on a GPU or with
    another C library.
    """
    if torch.cuda.is_available():
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's end is kept
        libc.mallopt(-2, 256 * 2**20)  # M_TOP_PAD: and grows in large steps


def return_freed_memory() -> None:
    """Return the memory that glibc keeps to the system: at every checkpoint, and before another model is loaded."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
