"""The one rule of which optimizer trains what, and what it is worth."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from pro_core.runs.training import (
    MasterAdamW,
    OrderedTrainer,
    StopSignal,
    optimizer_for,
    training_arguments,
)

BF16, FP32 = torch.bfloat16, torch.float32


def parameters(*dtypes: torch.dtype) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([1.0, 1.5, 2.0]).to(dtype)) for dtype in dtypes]


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        ([[FP32]], torch.optim.AdamW),
        ([[FP32, FP32], [FP32]], torch.optim.AdamW),
        ([[BF16]], MasterAdamW),
        ([[BF16, FP32]], MasterAdamW),  # a value head in fp32 on a policy in bf16
        ([[FP32], [FP32, BF16]], MasterAdamW),
    ],
)
def test_bf16_parameters_get_master_copies(groups, kind):
    made = optimizer_for([{"params": parameters(*g), "lr": 0.25} for g in groups], 0.125)
    assert type(made) is kind
    assert [len(g["params"]) for g in made.param_groups] == [len(g) for g in groups]
    assert all((g["lr"], g["weight_decay"]) == (0.25, 0.125) for g in made.param_groups)


def test_frozen_parameters_do_not_choose_the_optimizer(tmp_path):
    """A LoRA in fp32 on a base in bf16, whose last parameter is frozen."""
    model = torch.nn.ModuleDict({"base": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)})
    model["last"] = torch.nn.Linear(2, 2)
    for name in ("base", "last"):
        model[name].to(BF16).requires_grad_(False)
    trainer = OrderedTrainer(model=model, args=training_arguments(tmp_path, 4, 2, 0.5, 0))
    trainer.fresh = ("head",)
    made = trainer.create_optimizer()
    assert type(made) is torch.optim.AdamW
    [group] = made.param_groups
    assert group["lr"] == 5.0 and [p.shape for p in group["params"]] == [(1, 2), (1,)]


def stepped(kind: type[torch.optim.AdamW], parameter: torch.nn.Parameter) -> torch.Tensor:
    optimizer = kind([{"params": [parameter]}], lr=1e-3, weight_decay=0.01)
    for step in range(50):
        optimizer.zero_grad()
        ((parameter * (step % 3 + 1)).sum() + (parameter**2).sum()).backward()
        optimizer.step()
    return parameter.detach()


def test_master_copies_of_fp32_parameters_are_adamw_to_the_bit():
    ours, theirs = (stepped(kind, *parameters(FP32)) for kind in (MasterAdamW, torch.optim.AdamW))
    assert torch.equal(ours, theirs)


def test_steps_too_small_for_bf16_add_up():
    """Of 0.001 each, where the nearest number of bf16 is 0.004 or more away."""
    [start], [exact] = parameters(BF16), parameters(FP32)
    alone = stepped(torch.optim.AdamW, *parameters(BF16))
    assert torch.equal(alone, start)
    ours, exact = stepped(MasterAdamW, *parameters(BF16)), stepped(torch.optim.AdamW, exact)
    assert (start - exact).min() > 0.03
    torch.testing.assert_close(ours.float(), exact, atol=0.008, rtol=0)


def test_a_signal_that_comes_after_the_last_checkpoint_is_delivered_when_training_ends():
    """Else a recipe of several arms would begin its next one, with no time left to save it."""
    delivered: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: delivered.append(number))
    try:
        with StopSignal() as stop:
            assert not stop.came()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.came() and not delivered
        assert delivered == [signal.SIGTERM]
        with pytest.raises(SystemExit), StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.leave(1)
        assert len(delivered) == 1  # it has ended as it was told to
    finally:
        signal.signal(signal.SIGTERM, before)
