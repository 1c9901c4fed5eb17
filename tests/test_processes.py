"""Which process of how many, what an import leaves alone, and what a script asks of its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tiny import ROOT, in_two_processes

from pro_core.system.processes import (
    from_main,
    join_processes,
    main_process,
    process_device,
    processes,
    wait_for_all,
)

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="it does nothing beside a GPU")


def in_a_process(code: str) -> str:
    """What a fresh Python prints that runs the code, in an environment that no import changed; fails when it does."""
    named = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = named | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ---------------------------------------------------------------- which process, of how many


def test_one_process_is_the_main_one_and_waits_for_nobody():
    join_processes()
    assert (processes().process_index, processes().num_processes) == (0, 1)
    assert main_process()
    assert process_device() in ("cpu", "cuda:0")
    wait_for_all()
    value = object()
    assert from_main(value) is value
    assert not torch.distributed.is_initialized()


TOLD = """
import os, sys
from pathlib import Path
from pro_core.system.processes import from_main, main_process, processes, wait_for_all
from pro_core.runs.training import training_arguments

rank, world = processes().process_index, processes().num_processes
folder = Path(sys.argv[1])
waits, late = folder / "waits", folder / "late"
if main_process():
    waits.touch()
else:  # writes when the main one waits already, or goes on without waiting
    while not waits.exists():
        os.sched_yield()
    for number in range(1000):
        late.write_text(f"{number}, {rank} of {world}")
wait_for_all()
seen = from_main([rank, late.read_text() if late.exists() else ""] if main_process() else None)
share = training_arguments(folder / "run", 8, 4, 1e-3, 0).per_device_train_batch_size
again = processes().process_index, processes().num_processes  # also after a trainer's arguments
print(f"{rank} of {world}, {again}, {seen}, {share} rows\\n", end="")
"""


@pytest.mark.slow
def test_two_processes_know_each_other_and_wait(tmp_path):
    """The first question joins them."""
    script = tmp_path / "told.py"
    script.write_text(TOLD)
    done = in_two_processes(str(script), str(tmp_path))
    told = sorted(line for line in done.stdout.splitlines() if " of 2, " in line)
    assert told == [f"{i} of 2, ({i}, 2), [0, '999, 1 of 2'], 2 rows" for i in (0, 1)]


# ---------------------------------------------------------------- imports

IMPORTED = """
import ctypes, importlib, os, pkgutil
import sklearn, torch, trl.trainer.utils  # scikit-learn sets a variable of OpenMP's

def state():
    return (
        dict(os.environ),
        (torch.get_num_threads(), torch.get_num_interop_threads()),
        (torch.is_grad_enabled(), torch.get_default_dtype(), torch.distributed.is_initialized()),
        {name: id(part) for name, part in vars(trl.trainer.utils).items()},
    )

before, calls = state(), []
load = ctypes.CDLL.__init__
def init(self, name, *arguments, **named):
    calls.append(name)
    load(self, name, *arguments, **named)
ctypes.CDLL.__init__ = init
import pro_core
modules = [m.name for m in pkgutil.walk_packages(pro_core.__path__, "pro_core.")]
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert len(modules) > 80 and "pro_core.policies.sft" in modules, modules
for was, now in zip(before, state(), strict=True):
    parts = (was, now) if isinstance(was, tuple) else (was.items() ^ now.items(), set())
    assert parts[0] == parts[1], parts
assert "libc.so.6" not in calls, calls
"""


@pytest.mark.slow
def test_no_import_changes_the_process():
    """Not its environment, its threads, its memory, nor another library."""
    in_a_process(IMPORTED)


# ---------------------------------------------------------------- memory of training

FAULTS = """
import resource
import torch
from pro_core.system.processes import keep_freed_memory
from pro_core.runs.training import cast_for_training

torch.set_num_threads(1)
def faults(steps=8, megabytes=64):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(megabytes * 2**18)  # freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
cast = cast_for_training(torch.nn.Linear(2, 2)).weight.dtype
faults()
by_itself = faults()
keep_freed_memory()
faults()
print(cast, by_itself, faults())
"""


@pytest.mark.slow
@no_gpu
@pytest.mark.skipif(sys.platform != "linux", reason="it is about glibc")
def test_freed_memory_is_kept_where_a_script_asks_for_it_and_only_there():
    """Counted in page faults: of eight tensors of 64 MB, one after the other, in pages of 4 kB or 2 MB."""
    cast, by_itself, kept = in_a_process(FAULTS).split()
    assert cast == "torch.bfloat16"
    assert int(by_itself) >= 8 * 32 and int(kept) < 32
