"""Parameters sharded over processes by PyTorch's FSDP, for the loop of :mod:`pro_core.policies.rl.ppo`.

Each process holds its share of every parameter, of its gradient and of the optimizer's states: 16 bytes per parameter,
divided by the number of processes. A block of the model is gathered while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from pro_core.system.processes import processes


def share_out(policy: nn.Module) -> None:
    """Shard a policy's parameters over all processes. Each block of its ``model``, and its ``value`` head, is gathered
    by itself. On a GPU they are gathered in bf16, and gradients are summed in fp32.

    Args:
        policy: with ``model``, one of transformers', ``value``, and a method ``generate``.
    """
    device = processes().device.type
    mesh = init_device_mesh(device, (processes().num_processes,))
    precision = MixedPrecisionPolicy()
    if device == "cuda":
        precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    blocks = set(policy.model._no_split_modules or ())  # type: ignore[arg-type, union-attr]
    for module in policy.modules():
        if type(module).__name__ in blocks or module is policy.value:
            fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    register_fsdp_forward_method(policy, "generate")


@contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """Inside the block, gathered parameters stay, so writing a token gathers nothing; afterwards only shares remain."""
    shared = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for module in shared:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shared:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole_state(policy: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters of the policy's ``model`` on the CPU, in the main process; nothing in the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(policy, options=options)
    if not state:
        return {}
    whole = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    first: dict[int, str] = {}
    for name, parameter in policy.model.named_parameters(remove_duplicate=False):  # type: ignore[union-attr]
        whole[name] = whole[first.setdefault(id(parameter), name)]  # tied parameters are one
    return whole


def own_share(state: Any) -> Any:
    """This process's share of a state of parameters or of an optimizer."""
    return tree_map(lambda t: t.to_local() if isinstance(t, DTensor) else t, state)


def load_share(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's :func:`own_share`, which the same number of processes saved."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def as_shared(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        if not isinstance(parameter, DTensor) or not tensor.dim():
            return tensor
        return DTensor.from_local(
            tensor.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    kept = {
        i: {name: as_shared(t, parameters[i]) for name, t in of_one.items()}
        for i, of_one in state["state"].items()
    }
    if "masters" in state:
        masters = [as_shared(t, p) for t, p in zip(state["masters"], parameters, strict=True)]
        state = state | {"masters": masters}
    optimizer.load_state_dict(state | {"state": kept})
