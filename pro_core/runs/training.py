"""How every model here is trained: transformers' Trainer, rows in a fixed order, checkpoints that resume exactly."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import (
    WAIT,
    from_main,
    main_process,
    processes,
    return_freed_memory,
    wait_for_all,
)
from pro_core.system.storage import explained_disk, write_config


class MasterAdamW(torch.optim.AdamW):
    """AdamW for a model held in bf16: it steps fp32 copies of the parameters and writes them back.

    A pure bf16 model trains two to three times faster on a CPU than bf16 autocast, but its parameters are
    too coarse to take small steps; the fp32 copies do.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings):
        self.parameters = [p for group in groups for p in group["params"]]
        masters = {p: p.detach().float().clone().requires_grad_() for p in self.parameters}
        self.masters = [masters[p] for p in self.parameters]
        held = [group | {"params": [masters[p] for p in group["params"]]} for group in groups]
        super().__init__(held, **settings)

    def step(self, closure=None):
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        super().step(closure)
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                parameter.copy_(master)

    def zero_grad(self, set_to_none: bool = True):
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self):
        return super().state_dict() | {"masters": [m.detach().clone() for m in self.masters]}

    def load_state_dict(self, state):
        state = dict(state)
        with torch.no_grad():
            for master, saved in zip(self.masters, state.pop("masters"), strict=True):
                master.copy_(saved)
        super().load_state_dict(state)


def optimizer_for(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of every training run: :class:`MasterAdamW` if a trained parameter is bf16, else AdamW.

    Args:
        groups: as AdamW takes them, ``{"params": [...], "lr": rate}``, with trained parameters only.
    """
    bf16 = any(p.dtype == torch.bfloat16 for group in groups for p in group["params"])
    return (MasterAdamW if bf16 else torch.optim.AdamW)(groups, weight_decay=weight_decay)


class OrderedTrainer(Trainer):
    """A Trainer that reads its rows in the order of the dataset, which is fixed for all epochs.

    A run that is killed and resumed then sees exactly the rows it would have seen. The optimizer is
    :func:`optimizer_for`'s; parameters whose names start with ``fresh`` (new heads) learn at ten times the rate.
    """

    fresh: tuple[str, ...] = ()

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            assert self.model is not None
            rate = self.args.learning_rate
            groups: dict[bool, list] = {False: [], True: []}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups[name.startswith(self.fresh)].append(parameter)
            rates = {False: rate, True: 10 * rate}
            self.optimizer = optimizer_for(
                [{"params": group, "lr": rates[new]} for new, group in groups.items() if group],
                self.args.weight_decay,
            )
        return self.optimizer

    def _save_checkpoint(self, *args, **kwargs):
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with whole_checkpoint(folder):
            super()._save_checkpoint(*args, **kwargs)
        return_freed_memory()

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]


def bootstrap_weights(prompts: int, members: int, seed: int) -> NDArray[np.float32]:
    """How much each prompt counts for each member (P, M): the Bayesian bootstrap, Exp(1); ones for a single member.

    Drawing prompts with replacement would leave a third of them out of each member. These weights have the same mean
    and variance and leave none out, which small sets need.
    """
    if members == 1:
        return np.ones((prompts, 1), np.float32)
    return np.random.default_rng(seed).exponential(1, (prompts, members)).astype(np.float32)


class Progress(TrainerCallback):
    """Prints one line every few steps."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "loss" in logs:
            print(f"step {state.global_step}/{state.max_steps} loss {logs['loss']}", flush=True)


def training_arguments(
    output: str | Path,
    rows: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    *,
    weight_decay: float = 0.01,
    warmup: float = 0.06,
    checkpoint_every: int = 200,
    accumulation: int = 1,
    kind: type[TrainingArguments] = TrainingArguments,
    **overrides: Any,
) -> TrainingArguments:
    """Arguments for one pass over ``rows`` rows: linear schedule, clip 1.0, bf16 where it is safe.

    ``batch_size`` counts the rows of one step, over all processes and all ``accumulation`` forward passes, so the
    number of processes does not change the steps. ``kind`` is the trainer's own class of arguments.
    """
    world = processes().num_processes
    if batch_size % (world * accumulation):
        raise ConfigError(
            f"batch_size {batch_size} cannot be shared evenly by {world} processes "
            f"of {accumulation} forward passes"
        )
    steps = max(1, -(-rows // batch_size))
    cuda = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": batch_size // (world * accumulation),
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup_steps": int(warmup * steps),
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "seed": seed,
        "use_cpu": not cuda,
        "bf16": cuda,  # autocast; on a CPU see `cast_for_training`
        "save_steps": checkpoint_every,
        "save_total_limit": 2,
        "logging_steps": max(1, min(50, steps // 10)),
        "logging_first_step": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "label_names": [],
        "ddp_backend": "gloo" if world > 1 and not cuda else None,
        "ddp_timeout": WAIT,
        "ddp_find_unused_parameters": False,
    }
    return kind(**(settings | overrides))


def train_resuming(trainer: Trainer, between: int = 1) -> None:
    """Train from the last whole checkpoint in the output folder, or from the start.

    Args:
        between: steps after which a checkpoint can be resumed, if not after each one.

    Raises:
        SystemExit: SIGTERM came. A checkpoint was saved first, see :class:`StopSignal`.
    """
    last = last_whole_checkpoint(Path(str(trainer.args.output_dir)))
    with StopSignal() as stop:
        trainer.add_callback(_StopAtSignal(stop, between))
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trainer.state.global_step < trainer.state.max_steps:
            stop.leave(trainer.state.global_step)


class StopSignal:
    """A context in which SIGTERM waits for the next checkpoint, instead of ending the process.

    Batch systems send SIGTERM some time before they kill. Outside of training every moment is a good one to end, since
    killed work resumes.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> StopSignal:
        self._before = None
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            if (
                self._came and kind is None
            ):  # it came too late for a checkpoint: what was to be trained is trained
                signal.raise_signal(signal.SIGTERM)

    def _note(self, *_: object) -> None:
        self._came = True

    def came(self) -> bool:
        """Whether the main process was told to stop; every process asks at the same step."""
        return from_main(self._came)

    def leave(self, step: int) -> NoReturn:
        """End this process, with the exit status of one that SIGTERM ended."""
        if main_process():
            print(f"told to stop: step {step} is saved; run the same command again", flush=True)
        raise SystemExit(128 + signal.SIGTERM)


class _StopAtSignal(TrainerCallback):
    """Saves a checkpoint and ends the training, after a step that is a multiple of ``between``."""

    def __init__(self, stop: StopSignal, between: int):
        self.stop, self.between = stop, between

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.between == 0 and self.stop.came():
            control.should_save = control.should_training_stop = True


SIZES = "sizes.json"
"""The size in bytes of each file of a checkpoint; written beside them, as the last file."""


@contextlib.contextmanager
def whole_checkpoint(folder: Path):
    """All processes write the checkpoint ``folder`` inside this block; when it ends, the checkpoint is marked as whole.
    A failed write leaves nothing behind.

    Raises:
        StorageError: the disk is full or read-only.
    """
    with explained_disk(folder, folder, lambda: shutil.rmtree(folder, ignore_errors=True)):
        yield
        wait_for_all()
        if main_process():
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
            write_config(folder, SIZES, sizes)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files all exist in full size, the same for every process; None if there is none.

    A kill or a full disk can leave half a checkpoint. Such newer ones are deleted, and a line says so.
    """
    return from_main(_last_whole(folder) if main_process() else None)


def _last_whole(folder: Path) -> Path | None:
    numbered = {}
    for checkpoint in folder.glob("checkpoint-*"):
        number = checkpoint.name.rpartition("-")[2]
        if number.isdigit():
            numbered[int(number)] = checkpoint
    for _, checkpoint in sorted(numbered.items(), reverse=True):
        reason = _broken(checkpoint)
        if reason is None:
            print(f"resuming from {checkpoint}", flush=True)
            return checkpoint
        print(f"{checkpoint}: {reason}; it is deleted", flush=True)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _broken(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is."""
    try:
        sizes = json.loads((checkpoint / SIZES).read_text())
    except (OSError, ValueError):
        return "not completely written"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def cast_for_training(model: torch.nn.Module) -> torch.nn.Module:
    """The model as it is trained: in bf16 on a CPU (see :class:`MasterAdamW`), unchanged on a GPU."""
    if torch.cuda.is_available():
        return model
    return_freed_memory()  # of an earlier model
    return model.to(torch.bfloat16)
