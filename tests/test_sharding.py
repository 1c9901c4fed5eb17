"""PPO with every parameter on two processes: each holds its share, and the result is that of whole parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import TINY_RUN, in_two_processes, panel_of_functions, tiny_llama
from transformers import AutoModelForCausalLM

from pro_core.data.schema import read_jsonl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

SAME = """
import copy, sys
import torch
from torch import distributed, nn
from transformers import AutoModelForCausalLM
from pro_core.policies.rl.ppo import ValuePolicy
from pro_core.policies.rl.sharding import gathered, own_share, share_out, whole_state
from pro_core.system.processes import main_process, processes

here = processes()
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
whole = ValuePolicy(model).eval()
shared = copy.deepcopy(whole)
share_out(shared)
share = sum(own_share(p).numel() for p in shared.parameters())
assert share < 0.6 * sum(p.numel() for p in whole.parameters()), share
optimizers = [torch.optim.SGD(policy.parameters(), lr=0.1) for policy in (whole, shared)]
ids = torch.randint(10, 60, (4, 9), generator=torch.Generator().manual_seed(here.process_index))
attention = torch.ones_like(ids)
for _ in range(2):
    prompts = ids[:, : 3 + here.process_index]  # processes write as long as they like
    settings = {"max_new_tokens": 3 + 4 * here.process_index, "do_sample": False}
    with torch.no_grad(), gathered(shared):
        written = shared.generate(input_ids=prompts, **settings)
    assert torch.equal(written, whole.generate(input_ids=prompts, **settings))
    losses = []
    for policy in (whole, shared):
        for rows in (slice(0, 2), slice(2, 4)):  # a batch in two parts
            logp, values, entropy = policy(ids[rows], attention[rows], 5, 1.0)
            loss = (logp + values**2 + entropy).mean()
            loss.backward()
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) < 1e-5, losses
    for parameter in whole.parameters():
        distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    norms = [nn.utils.clip_grad_norm_(policy.parameters(), 1.0) for policy in (whole, shared)]
    assert abs(norms[0] - norms[1].full_tensor()) < 1e-4, norms
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
state = whole_state(shared)
if main_process():
    expected = whole.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.allclose(state[n], t, atol=1e-6) for n, t in expected.items())
    print("the same")
"""
CUT = """
import os, sys
from pro_core.policies.rl.methods import train_morlhf
from pro_core.policies.rl.ppo import PpoLoop
from pro_core.policies.rl.recipe import MorlhfRecipe
from pro_core.system.processes import join_processes

join_processes()
original = PpoLoop._update
def update(loop, batch):
    if len(loop.log) == 3:
        os._exit(9)  # after the checkpoint of step 2, in the middle of step 4
    return original(loop, batch)
PpoLoop._update = update
train_morlhf(MorlhfRecipe.read(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def test_shared_parameters_write_and_learn_as_whole_ones(tmp_path, llama):
    script = tmp_path / "same.py"
    script.write_text(SAME)
    assert "the same" in in_two_processes(str(script), llama).stdout


def test_a_shared_run_ends_in_a_whole_policy_and_goes_on_after_a_kill(tmp_path, llama):
    rows = [{"prompt": f"tell me of {i}", "response": "no", "split": "train"} for i in range(8)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(name: str) -> str:
        settings = TINY_RUN | {
            **{"model": llama, "panel": str(tmp_path / "panel"), "weights": "uniform"},
            **{"data": [{"path": str(tmp_path / "own.jsonl")}], "max_length": 64},
            **{"algorithm": "ppo", "lora": None, "steps": 4, "checkpoint_every": 2},
            **{"rows_per_device": 1, "method": "PPO", "output": str(tmp_path / name)},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    panel_of_functions(tmp_path, ["hello there.", "it rained", "why, and when?"])

    in_two_processes("train/morlhf.py", recipe("whole"))
    policy = tmp_path / "whole" / "ppo" / "seed0"
    AutoModelForCausalLM.from_pretrained(policy)
    trained = load_file(policy / "model.safetensors")
    assert trained.keys() == load_file(Path(llama) / "model.safetensors").keys()

    script = tmp_path / "cut.py"
    script.write_text(CUT)
    with pytest.raises(AssertionError):
        in_two_processes(str(script), recipe("cut"))
    (checkpoint,) = (tmp_path / "cut").rglob("checkpoint-2")
    shares = [load_file(checkpoint / f"trained-{rank}.safetensors") for rank in range(2)]
    one_share = sum(t.numel() for t in shares[0].values())
    assert one_share < 0.6 * sum(t.numel() for t in trained.values())
    done = in_two_processes("train/morlhf.py", recipe("cut"))
    assert "resuming from" in done.stdout
    resumed = load_file(tmp_path / "cut" / "ppo" / "seed0" / "model.safetensors")
    assert all(torch.equal(resumed[name], trained[name]) for name in trained)
    logs = [read_jsonl(next((tmp_path / name).rglob("log.jsonl"))) for name in ("whole", "cut")]
    assert logs[0] == logs[1] and [entry["step"] for entry in logs[0]] == [1, 2, 3, 4]
