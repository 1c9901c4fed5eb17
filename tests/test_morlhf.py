"""train/morlhf.py on tiny models: invariants between methods, kills, and what can go wrong."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
import yaml
from safetensors.torch import load_file
from tiny import (
    TINY_RUN,
    in_two_processes,
    panel_of_functions,
    tiny_encoder,
    tiny_llama,
    vivid_adapter,
)

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.schema import read_jsonl
from pro_core.data.texts import TextSource
from pro_core.generation import GenerationSettings, LocalGenerator, Request
from pro_core.policies.rl import grpo
from pro_core.policies.rl.grpo import group_trainer
from pro_core.policies.rl.methods import train_morlhf
from pro_core.policies.rl.online_dpo import best_and_worst
from pro_core.policies.rl.ppo import PpoLoop
from pro_core.policies.rl.ppo_loss import advantages_by_gae, ppo_loss, whitened
from pro_core.policies.rl.recipe import MorlhfRecipe, PpoSettings
from pro_core.policies.rl.reward import CompositeReward
from pro_core.policies.rl.run import Run
from pro_core.policies.rl.task import PromptReader, load_kinds
from pro_core.policies.rl.weighted import PanelPrompts, weighted_task
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.functions import reading_ease
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError, folder_name
from pro_core.system.storage import StorageError
from tests.servers.rewards import RewardServer, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("long", "plain")
ASKED = ("the capital", "rain on Sunday", "a joke", "France", "why not", "Paris")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny Llama, a panel of two functions, an adapter, and eight prompts of three kinds: a recipe's settings."""
    folder = tmp_path_factory.mktemp("parts")
    texts = ["hello there.", "it rained on Sunday and we stayed in", "why", "Paris is it, no?"]
    panel_of_functions(folder, texts)
    vivid_adapter(tiny_encoder(folder / "encoder"), NAMES).save_pretrained(folder / "adapter")
    rows = [
        {"prompt": f"tell me {what}", "response": "no", "labels": {}, "prompt_unsafe": i % 2}
        for i, what in enumerate(ASKED)
    ]
    rows += [{"prompt": "tell me of the test", "response": "no", "labels": {}, "split": "test"}]
    pairs = [
        {"prompt": f"Human: hello {i}", "chosen": "a", "rejected": "b", "objective": "plain"}
        for i in range(2)
    ]
    for name, lines in (("own", rows), ("pairs", pairs)):
        lines = [{"split": "train"} | line for line in lines]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": tiny_llama(folder / "llama"),
        "panel": str(folder / "panel"),
        "adapter": str(folder / "adapter"),
        "data": [{"path": str(folder / f"{name}.jsonl")} for name in ("own", "pairs")],
        "max_length": 64,
        **TINY_RUN,
    }


def trained(output: Path, method: str = "pro-morlhf"):
    """(LoRA, log, record) of a finished run."""
    folder = output / method / "seed0"
    record = json.loads((folder / "run.json").read_text())
    log = read_jsonl(output / record["stages"][-1]["stage"] / "log.jsonl")
    return load_file(folder / "adapter_model.safetensors"), log, record


def train(path: str) -> None:
    train_morlhf(MorlhfRecipe.read(path))


def run_of(path: str, seed: int = 0) -> Run:
    """The run of a recipe without arms."""
    recipe = MorlhfRecipe.read(path)
    return Run(recipe, weighted_task(recipe, PanelPrompts.load(recipe), seed), seed)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------- one loop, many sources


def test_arms_differ_in_their_weights_alone(recipe, tmp_path, capsys):
    arms = {
        "PRO-MORLHF": {},
        "MORLHF uniform": {"weights": "uniform"},
        "long alone": {"weights": {"long": 1.0}},
        "RLOO": {"algorithm": "rloo", "aggregation": "normalize_then_sum"},
    }
    path = recipe("arms", arms=arms)
    train(path)
    output = tmp_path / "arms"
    found = {name: trained(output, folder_name(name)) for name in arms}
    loras = [lora for lora, _, _ in found.values()]
    assert not any(same(loras[0], other) for other in loras[1:])
    # Every LoRA pair has moved: B starts at 0.
    assert all(lora[name].abs().sum() > 0 for lora in loras for name in lora if "lora_B" in name)

    _, log, record = found["PRO-MORLHF"]
    assert [entry["step"] for entry in log] == [1, 2]
    assert record["spent"]["completions"] == 12 and record["spent"]["skipped"] == 0
    stage = output / record["stages"][0]["stage"]
    prompts = read_jsonl(stage / "prompts.jsonl")
    assert "of the test" not in json.dumps(prompts)
    predicted = PreferenceAdapter.from_pretrained(record["settings"]["adapter"]).predict(
        [row["prompt"] for row in prompts]
    )
    given = [[row["weights"][name] for name in NAMES] for row in prompts]
    np.testing.assert_allclose(given, predicted, atol=1e-6)
    # The weights of each kind of prompt are logged through training, as they were given.
    for step, entry in enumerate(log):
        kinds = {key.split("/", 1)[1].rsplit("/", 1)[0] for key in entry if "weights/" in key}
        here = prompts[2 * step : 2 * step + 2]
        assert kinds == {row["kind"] for row in here}
        assert kinds <= {"own/safe", "own/unsafe", "pairs/plain"}
        for kind in kinds:
            mean = np.mean([row["weights"]["long"] for row in here if row["kind"] == kind])
            assert entry[f"weights/{kind}/long"] == pytest.approx(mean, abs=1e-5)
        assert all(np.isfinite(entry[f"objectives/{name}"]) for name in NAMES)
    _, log, _ = found["long alone"]
    assert log[0]["reward"] == pytest.approx(log[0]["objectives/long"], abs=1e-5)

    # The app can write with it, and it reads the prompt alone.
    policy = output / "pro-morlhf" / "seed0"
    config = PolicyConfig.read(policy)
    assert config and not config.reads and config.training["method"] == "PRO-MORLHF"
    assert config.panel == RewardPanel.from_pretrained(record["settings"]["panel"]).fingerprint()
    generator = LocalGenerator(policy, device="cpu")
    generator.generate(
        [Request([{"role": "user", "content": "hello"}])] * 2, GenerationSettings(4, seed=0)
    )
    # What is finished is not done again.
    capsys.readouterr()
    train(path)
    assert "step 1/" not in capsys.readouterr().out


def uniform_adapter(path: str, folder: Path) -> str:
    """The adapter with a last layer of zeros: it answers 1/K whatever the prompt."""
    adapter = PreferenceAdapter.from_pretrained(path)
    with torch.no_grad():
        for head in adapter.heads:
            for parameter in head[-1].parameters():
                parameter.zero_()
    adapter.save_pretrained(folder)
    return str(folder)


FIXED = {"adapter": None, "weights": "uniform", "method": "MORLHF uniform"}


@pytest.fixture(scope="module")
def fixed(parts, tmp_path_factory) -> Path:
    """The output of MORLHF under uniform weights."""
    output = tmp_path_factory.mktemp("fixed")
    (output / "recipe.yaml").write_text(yaml.safe_dump(parts | FIXED | {"output": str(output)}))
    train(str(output / "recipe.yaml"))
    return output


def test_an_adapter_that_answers_uniform_gives_the_run_of_morlhf(recipe, parts, fixed, tmp_path):
    blank = uniform_adapter(parts["adapter"], tmp_path / "blank")
    train(recipe("pro", adapter=blank))
    lora, log, _ = trained(tmp_path / "pro")
    other, other_log, _ = trained(fixed, "morlhf-uniform")
    assert same(lora, other) and log == other_log
    # The stages have one name: in one output folder the second run would find itself done.
    outputs = tmp_path / "pro", fixed
    stages = [[p.name for p in (output / "policies").glob("[!.]*")] for output in outputs]
    assert stages[0] == stages[1]


def test_a_hosted_reward_model_gives_the_run_of_the_same_one_here(recipe, parts, fixed, tmp_path):
    config = json.loads((Path(parts["panel"]) / "panel.json").read_text())
    with serving(RewardServer("openrlhf", lambda text: [reading_ease(text)])) as server:
        here = {"name": "long", "function": "length"}
        there = {"name": "plain", "endpoint": server.url, "dialect": "openrlhf"}
        models = [here, there | {"input_format": "{completion}"}]
        (tmp_path / "hosted.yaml").write_text(yaml.safe_dump({"models": models}))
        panel = RewardPanel.from_pretrained(tmp_path / "hosted.yaml")
        panel.stats = RewardStats.from_dict(config["stats"])
        panel.save_pretrained(tmp_path / "hosted_panel")
        asked = len(server.asked)
        train(recipe("hosted", panel=str(tmp_path / "hosted_panel"), **FIXED))
        assert len(server.asked) > asked
    runs = [trained(output, "morlhf-uniform") for output in (tmp_path / "hosted", fixed)]
    assert runs[0][1] == runs[1][1]
    assert same(runs[0][0], runs[1][0])


def test_one_objective_gives_plain_rlhf(recipe, tmp_path):
    """Against TRL's own trainer with the panel's one score as its reward function."""
    path = recipe("one", objectives=["plain"], weights="uniform", adapter=None)
    train(path)
    run = run_of(path)
    panel = run.task.reward.panel

    def plain(prompts, completions, **columns):
        texts = [completion[0]["content"] for completion in completions]
        return panel.standardized(prompts, texts)[:, 1].tolist()

    plain.aggregation = "sum_then_normalize"
    trainer = group_trainer(replace(run, task=replace(run.task, reward=plain)), tmp_path / "plain")
    trainer.train()
    lora, log, _ = trained(tmp_path / "one")
    trained_plainly = {
        name.replace(".default", ""): parameter.detach()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    assert same(lora, trained_plainly)
    assert [e["reward"] for e in log] == [
        e["reward"] for e in trainer.state.log_history if "reward" in e
    ]


def test_normalized_objectives_equal_those_of_trl_where_weights_are_one_for_all(recipe, tmp_path):
    """Our groups, and TRL's normalize_then_sum with K reward functions: the same advantages."""
    path = recipe("gdpo", aggregation="normalize_then_sum", weights={"long": 0.3, "plain": 0.7})
    run = run_of(path)
    panel = run.task.reward.panel
    ours = group_trainer(run, tmp_path / "ours")
    ours.train()

    def objective(k):
        def score(prompts, completions, **columns):
            texts = [completion[0]["content"] for completion in completions]
            return panel.standardized(prompts, texts)[:, k].tolist()

        score.__name__ = NAMES[k]
        return score

    class Several(list):
        aggregation = "sum_then_normalize"

    of_trl = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [0.3, 0.7]}
    theirs = group_trainer(
        Run(
            run.recipe.model_copy(update={"trainer": of_trl}),
            replace(run.task, reward=Several([objective(0), objective(1)])),
            0,
        ),
        tmp_path / "theirs",
    )
    theirs.train()
    for one, two in zip(ours._logs["advantages"], theirs._logs["advantages"], strict=True):
        assert one == pytest.approx(two, abs=2e-3)
    assert max(map(abs, ours._logs["advantages"])) > 0.5


def test_only_a_policy_is_replaced(recipe, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="something else than a policy is there"):
        train(recipe("mine", policy=str(tmp_path / "mine")))
    assert "step 1/" not in capsys.readouterr().out  # said before anything is trained
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_whole_model_is_trained_without_a_lora(recipe, tmp_path):
    train(recipe("whole", lora=None, steps=1, learning_rate=0.001))
    config = PolicyConfig.read(tmp_path / "whole" / "pro-morlhf" / "seed0")
    assert config and config.base == ""


def test_online_dpo_learns_from_the_best_and_the_worst_against_the_base(recipe, tmp_path, capsys):
    changes = {"algorithm": "online_dpo", "round_steps": 1}
    train(recipe("dpo", **changes))
    lora, _, record = trained(tmp_path / "dpo")
    assert all(lora[name].abs().sum() > 0 for name in lora if "lora_B" in name)
    assert not any("ref" in name for name in lora)
    stages = [tmp_path / "dpo" / stage["stage"] for stage in record["stages"]]
    assert [stage.parent.name for stage in stages] == ["rollouts", "policies"] * 2
    assert record["spent"]["completions"] == 12 and record["spent"]["steps"] == 2
    first, second = (read_jsonl(stages[n] / "log.jsonl")[0] for n in (1, 3))
    # A round starts from the last one's policy, and its reference stays the base: the log-ratios are 0 but once.
    assert first["rewards/chosen"] == 0 and abs(second["rewards/chosen"]) > 1e-4
    lines = read_jsonl(stages[0] / "scored.jsonl")
    pairs, _ = best_and_worst(lines)
    for pair in pairs:
        totals = {line["text"]: line["total"] for line in lines if line["row"] == pair["row"]}
        assert totals[pair["chosen"]] == max(totals.values())
        assert totals[pair["rejected"]] == min(totals.values())
    capsys.readouterr()
    shutil.rmtree(stages[3])
    train(recipe("dpo", **changes))
    assert "round 1" not in capsys.readouterr().out
    assert same(trained(tmp_path / "dpo")[0], lora)


def test_pairs_come_from_completions_that_have_a_reward():
    lines = [
        {"prompt": p, "row": 5 + p, "text": text, "total": total}
        for p, group in enumerate(([1.0, None, 3.0, 2.0], [None, 1.0], [2.0, 2.0], [None, None]))
        for text, total in zip("abcd", group, strict=False)
    ]
    assert best_and_worst(lines) == ([{"row": 5, "chosen": "c", "rejected": "a"}], 3)


def test_a_round_without_a_pair_is_an_error(recipe, monkeypatch):
    equal = lambda self, prompts, completions, *a, **k: np.ones((len(prompts), 2), np.float32)  # noqa: E731
    monkeypatch.setattr(RewardPanel, "score", equal)
    with pytest.raises(ConfigError) as caught:
        train(recipe("equal", algorithm="online_dpo", round_steps=1))
    assert caught.value.fields == ("generations", "sampling_temperature")


def test_advantages_match_their_definition():
    """With lambda 1 they are the future rewards minus the value, with lambda 0 only one step of that."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([[0.5, 1.0, 3.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])  # three tokens: the fourth reward is of nothing
    whole = advantages_by_gae(rewards, values, mask, 1.0)
    assert whole.tolist() == [[7 - 0.5, 6 - 1.0, 4 - 3.0, 0]]
    step = advantages_by_gae(rewards, values, mask, 0.0)
    assert step.tolist() == [[1 + 1 - 0.5, 2 + 3 - 1.0, 4 - 3.0, 0]]
    between = advantages_by_gae(rewards, values, mask, 0.5)
    assert between[0, 1] == 4 + 0.5 * 1


def test_ppos_clipped_loss_matches_that_by_hand():
    one = torch.ones(1, 3)
    batch = {"logp": 0 * one, "values": 0 * one, "returns": 0 * one, "mask": one}
    batch["advantages"] = torch.tensor([[1.0, 1.0, -1.0]])
    ratio = torch.tensor(
        [[1.1, 2.0, 0.5]]
    )  # within, above with a gain, below with a loss: both cut
    settings = PpoSettings(value_weight=0.0)
    loss = ppo_loss(batch, ratio.log(), 0 * one, 0 * one, torch.tensor(3.0), settings)
    assert loss.item() == pytest.approx(-(1.1 + 1.2 - 0.8) / 3)
    # A value may move 0.2 before the larger of the two errors counts; the entropy is taken off.
    values = torch.tensor([[0.1, 1.0, 0.0]])
    settings = PpoSettings(value_weight=1.0, entropy=0.5)
    batch["advantages"] = 0 * one
    loss = ppo_loss(batch, 0 * one, values, one, torch.tensor(3.0), settings)
    assert loss.item() == pytest.approx((0.5 * (0.01 + 1.0) - 0.5 * 3) / 3)


def test_two_halves_are_whitened_as_the_whole():
    """As two processes do it: each its own rows, of unequal lengths, and the sums of both."""
    torch.manual_seed(0)
    values, mask = torch.randn(5, 7), (torch.arange(7) < torch.tensor([[7], [2], [5], [1], [4]]))
    halves, mask = (slice(0, 2), slice(2, 5)), mask.float()
    count, sum_ = mask.sum(), (values * mask).sum()
    square = ((values - sum_ / count) ** 2 * mask).sum()
    expected = whitened(values, mask)
    for half in halves:
        sums = iter((count, sum_, square))  # what a reduction over processes answers, in order
        own = whitened(values[half], mask[half], lambda _, sums=sums: next(sums))
        torch.testing.assert_close(own, expected[half])
        assert not torch.allclose(own, whitened(values[half], mask[half]), atol=1e-2)


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_ppo_gives_a_token_the_policys_own_probability(recipe, tmp_path, lora):
    """Padded prompts, logits of the last tokens only: against the model asked for one sequence alone."""
    loop = PpoLoop(run_of(recipe("own", algorithm="ppo", lora=lora)), tmp_path / "work")
    loop.policy.float()
    _, batch = loop._roll_out(0)
    T = batch["mask"].shape[1]
    for ids, attention, logp, mask in zip(
        *(batch[name] for name in ("ids", "attention", "logp", "mask")), strict=True
    ):
        alone = ids[attention.bool()][None]
        with torch.no_grad():
            log = loop.policy.model(input_ids=alone).logits[0, :-1].log_softmax(-1)
        expected = log.gather(-1, alone[0, 1:, None])[:, 0][-int(mask.sum()) :]
        torch.testing.assert_close(logp[:T][mask.bool()], expected, atol=1e-4, rtol=1e-3)
    # Before the first update the policy is its reference: no penalty yet, and the ratio is 1.
    reference = loop._reference_logp(batch["ids"], batch["attention"], T)
    if lora:
        torch.testing.assert_close(batch["logp"], reference)


def test_the_reward_comes_with_the_last_token_of_a_completion(recipe, tmp_path, monkeypatch):
    """With lambda 1 and without a penalty, the return of every token is the reward."""
    original, rewards = PpoLoop._rewards, []

    def spy(self, written):
        found = original(self, written)
        rewards.extend(found[0].tolist())
        return found

    monkeypatch.setattr(PpoLoop, "_rewards", spy)
    settings = {"algorithm": "ppo", "kl": 0.0, "trainer": {"lam": 1.0}}
    loop = PpoLoop(run_of(recipe("last", **settings)), tmp_path / "work")
    _, batch = loop._roll_out(0)
    lengths = batch["mask"].sum(-1).tolist()
    assert len(rewards) == 6 and max(lengths) > 1
    for reward, returns, mask in zip(rewards, batch["returns"], batch["mask"], strict=True):
        there = returns[mask.bool()]
        torch.testing.assert_close(there, torch.full_like(there, reward), atol=1e-4, rtol=1e-4)


def test_ppo_killed_goes_on_to_the_same_parameters(recipe, tmp_path, monkeypatch, capsys):
    changes = {"algorithm": "ppo", "steps": 4, "iterations": 2, "checkpoint_every": 2}
    changes |= {"rows_per_device": 4, "trainer": {"entropy": 0.01}}
    train(recipe("whole", **changes))
    lora, log, record = trained(tmp_path / "whole")
    assert all(lora[name].abs().sum() > 0 for name in lora if "lora_B" in name)
    assert record["spent"]["completions"] == 12 and [e["step"] for e in log] == [1, 2, 3, 4]
    assert ["reward" in entry for entry in log] == [True, False, True, False]
    assert abs(log[0]["kl"]) < 1e-6 < abs(log[2]["kl"])
    path, original, calls = recipe("cut", **changes), CompositeReward.__call__, []

    def stopped(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the second batch, unscored: nothing of it is on the disk
        return original(self, *arguments, **named)

    monkeypatch.setattr(CompositeReward, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(path)
    monkeypatch.undo()
    capsys.readouterr()
    train(path)
    assert "resuming from" in capsys.readouterr().out
    other, other_log, _ = trained(tmp_path / "cut")
    assert same(lora, other) and log == other_log


# ---------------------------------------------------------------- two processes, kills, and a full disk


SEVERAL = """
import runpy, sys
for line in open(sys.argv[1]):
    sys.argv = line.split()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""One launch for several scripts: it takes longer to start two processes than to train here."""


def test_two_processes_share_each_step(recipe, parts, tmp_path):
    """Each with its own prompts: every algorithm trains all of the LoRA, and logs the weights of both halves. Also
    those on pairs (`train/preference.py`)."""
    arms = {
        "PRO-MORLHF": {},
        "RLOO": {"algorithm": "rloo", "aggregation": "normalize_then_sum"},
        "PPO": {"algorithm": "ppo"},
        "DPO": {"algorithm": "online_dpo", "round_steps": 2},
    }
    on_pairs = {"KTO": {"algorithm": "kto"}, "ADPO": {"algorithm": "adpo"}}
    settings = {key: parts[key] for key in ("model", "lora", "max_length", "max_new_tokens")}
    settings |= {"data": parts["data"][1:], "output": str(tmp_path / "pairs"), "arms": on_pairs}
    settings |= {"batch_size": 4, "steps": 2, "sft_steps": 1}
    settings |= {"trials": [{"learning_rate": 0.01, "beta": 0.1}]}
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "several.py").write_text(SEVERAL)
    (tmp_path / "commands").write_text(
        f"train/morlhf.py {recipe('two', arms=arms)}\ntrain/preference.py {tmp_path / 'pairs.yaml'}\n"
    )
    done = in_two_processes(str(tmp_path / "several.py"), str(tmp_path / "commands"))
    for name in on_pairs:
        lora, log, record = trained(tmp_path / "pairs", folder_name(name))
        assert all(lora[key].abs().sum() > 0 for key in lora if "lora_B" in key)
        assert [entry["step"] for entry in log] == [1, 2] and record["spent"]["steps"] == 3
        # Before the first step the policy is its reference, in both processes.
        assert abs(log[0]["rewards/margins"]) < 0.05 < abs(log[0]["logps/chosen"])
    assert done.stdout.count("finished, 12 completions") == len(arms)
    for name in arms:
        lora, log, record = trained(tmp_path / "two", folder_name(name))
        assert all(lora[key].abs().sum() > 0 for key in lora if "lora_B" in key)
        assert record["spent"]["completions"] == 12
        if name == "DPO":
            continue
        prompts = read_jsonl(tmp_path / "two" / record["stages"][0]["stage"] / "prompts.jsonl")
        for step, entry in enumerate(log):
            here = prompts[2 * step : 2 * step + 2]
            for kind in {row["kind"] for row in here}:
                mean = np.mean([row["weights"]["long"] for row in here if row["kind"] == kind])
                assert entry[f"weights/{kind}/long"] == pytest.approx(mean, abs=1e-5)


def run_killed(path: str, place: str) -> None:
    """In a process of its own: the script, killed in the second step's rollout or inside its first checkpoint."""
    calls = []

    def killer(original):
        def call(*arguments, **named):
            calls.append(arguments)
            if len(calls) == (2 if place == "rollout" else 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    if place == "rollout":  # the completions are there, and not yet scored
        CompositeReward.__call__ = killer(CompositeReward.__call__)
    else:
        trainer = grpo.OrderedGRPOTrainer
        trainer._save_optimizer_and_scheduler = killer(trainer._save_optimizer_and_scheduler)
    train(path)


def test_killed_anywhere_it_goes_on_to_the_same_parameters(recipe, tmp_path, capsys):
    changes = {"steps": 3, "rows_per_device": 2}
    train(recipe("whole", **changes))
    path, processes = recipe("cut", **changes), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pro_core.policies.rl.methods"])
    for place in ("checkpoint", "rollout"):
        process = processes.Process(target=run_killed, args=(path, place))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "cut" / "pro-morlhf").exists()
    capsys.readouterr()
    train(path)
    assert "checkpoint-1" in capsys.readouterr().out  # resumed from there
    lora, log, record = trained(tmp_path / "whole")
    other, other_log, other_record = trained(tmp_path / "cut")
    assert same(lora, other)
    assert log == other_log and record["spent"] == other_record["spent"]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_told_to_stop_it_saves_between_two_batches_first(
    recipe, tmp_path, monkeypatch, capsys, algorithm
):
    """A batch system's SIGTERM, in the first batch: both updates on it are made, saved, and not made again."""
    changes = {"algorithm": algorithm, "steps": 4, "iterations": 2, "checkpoint_every": 4}
    changes |= {"rows_per_device": 2, "keep_every": 2}
    train(recipe("whole", **changes))
    path, original, calls = recipe("cut", **changes), CompositeReward.__call__, []

    def told(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **named)

    monkeypatch.setattr(CompositeReward, "__call__", told)
    with pytest.raises(SystemExit) as stopped:
        train(path)
    assert stopped.value.code == 128 + signal.SIGTERM and len(calls) == 1
    assert "step 2 is saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(path)
    assert len(calls) == 2 and "resuming from" in capsys.readouterr().out
    lora, log, _ = trained(tmp_path / "whole")
    other, other_log, _ = trained(tmp_path / "cut")
    assert same(lora, other) and log == other_log
    kept = [tmp_path / run / "pro-morlhf" / "seed0" / "steps" for run in ("whole", "cut")]
    assert [[p.name for p in folder.iterdir()] for folder in kept] == [["2"], ["2"]]
    half, other_half = (load_file(f / "2" / "adapter_model.safetensors") for f in kept)
    assert same(half, other_half) and not same(half, lora)
    whole = PolicyConfig.read(kept[0].parent)
    assert whole and PolicyConfig.read(kept[0] / "2") == replace(whole, training={})


def test_a_full_disk_at_a_checkpoint_is_explained_and_resumed(
    recipe, tmp_path, monkeypatch, capsys
):
    train(recipe("whole"))
    path, original = recipe("full"), torch.save

    def full(content, where, *arguments, **named):
        if "checkpoint-2" in str(where):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(content, where, *arguments, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="the disk is full"):
        train(path)
    monkeypatch.undo()
    capsys.readouterr()
    train(path)
    assert "resuming from" in capsys.readouterr().out
    assert same(trained(tmp_path / "whole")[0], trained(tmp_path / "full")[0])


def test_a_server_that_goes_away_is_explained_and_the_run_resumes(recipe, tmp_path, monkeypatch):
    """TRL's client has tried again by then."""
    path, original = recipe("away"), grpo.OrderedGRPOTrainer._generate_single_turn

    def gone(self, *arguments, **named):
        if self.state.global_step == 1:
            raise requests.exceptions.ConnectionError("refused")
        return original(self, *arguments, **named)

    monkeypatch.setattr(grpo.OrderedGRPOTrainer, "_generate_single_turn", gone)
    with pytest.raises(ConfigError, match=r"the vLLM server does not answer \(refused\). Run the"):
        train(path)
    monkeypatch.undo()
    train(path)
    assert len(trained(tmp_path / "away")[1]) == 2


# ---------------------------------------------------------------- rewards and prompts that are odd


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo"])
def test_missing_and_equal_rewards_teach_nothing(recipe, tmp_path, monkeypatch, algorithm):
    """All equal: no signal. Missing: skipped and counted. All of a batch missing: the step does nothing but hold on."""
    original, steps = RewardPanel.score, []

    def odd(self, prompts, completions, on_progress=None, allow_missing=False):
        steps.append(len(completions))
        completions = ["", *completions[1:]]
        rewards = original(self, prompts, completions, on_progress, allow_missing)
        if len(steps) == 1:
            rewards[:3] = 1.0  # one group
            rewards[4] = np.nan
        elif len(steps) == 2:
            rewards[:] = np.nan
        return rewards

    monkeypatch.setattr(RewardPanel, "score", odd)
    train(recipe("odd", algorithm=algorithm, kl=0.0))
    lora, log, record = trained(tmp_path / "odd")
    assert all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert record["spent"]["skipped"] == 1 + 6
    assert [entry["skipped"] for entry in log] == pytest.approx([1 / 6, 1])
    assert log[1].get("reward") is None and log[1]["grad_norm"] == 0
    assert log[0]["grad_norm"] > 0  # of the other group


def test_a_prompt_that_is_too_long_is_left_out(recipe, parts, tmp_path, capsys):
    turns = "Human: hello {}\n\nAssistant: " + "no " * 40 + "\n\nHuman: why not?"
    rows = [{"prompt": "tell me why " * 60}, {"prompt": turns}, {"prompt": "hello <|im_end|>"}]
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows))
    path = recipe("long", data=[{"path": str(file)}], steps=1)
    train(path)
    assert "2 prompts (1 too long)" in capsys.readouterr().out
    assert trained(tmp_path / "long")[2]["spent"]["left_out"] == 1
    read = MorlhfRecipe.read(path)
    reader = PromptReader(read.model, read.max_prompt)
    fitted = [reader.fitted(prompt) for prompt in PanelPrompts.load(read).prompts]
    assert fitted[0] is None
    assert fitted[1] == [{"role": "user", "content": "why not?"}]
    assert fitted[2] == [{"role": "user", "content": "hello < |im_end|>"}]


def test_the_real_files_give_five_kinds(data_dir):
    entries = [
        {"path": "hh_pairs.jsonl.gz"},
        {"path": "xstest_responses.jsonl.gz"},
        {"path": "truthfulqa_responses.jsonl.gz"},
    ]
    prompts, kinds = load_kinds([TextSource(**entry) for entry in entries], data_dir)
    assert len(prompts) == len(kinds)
    assert set(kinds) == {
        *("hh_pairs/helpful", "hh_pairs/harmless", "xstest_responses/safe"),
        *("xstest_responses/unsafe", "truthfulqa_responses"),
    }


WRONG = [
    ({"objectives": ["long", "kind"]}, ["objectives"]),
    ({"adapter": None}, ["weights", "adapter"]),
    ({"weights": "user"}, None),
    ({"weights": {"kind": 1.0}}, ["weights", "floors"]),
    ({"weights": {"long": 0.3}}, ["weights", "floors"]),
    ({"floors": "kind=1"}, ["weights", "floors"]),
    ({"algorithm": "dpo"}, ["algorithm"]),
    ({"algorithm": "online_dpo", "round_steps": 3}, ["steps", "round_steps"]),
    ({"algorithm": "online_dpo", "round_steps": 1, "iterations": 2}, ["iterations"]),
    (
        {"algorithm": "online_dpo", "round_steps": 1, "aggregation": "normalize_then_sum"},
        ["aggregation"],
    ),
    ({"model": "/absent/model"}, ["model"]),
    ({"generations": 1}, ["generations"]),
    ({"generations": 1, "algorithm": "ppo", "aggregation": "normalize_then_sum"}, ["generations"]),
    ({"learning_rate": "fast"}, ["learning_rate"]),
    ({"iterations": 2, "steps": 3}, ["steps", "iterations"]),
    ({"iterations": 2, "steps": 4}, ["checkpoint_every", "iterations"]),
    ({"trainer": {"beta": 1}}, ["trainer"]),
    ({"trainer": {"absent": 1}}, ["trainer"]),
    ({"algorithm": "ppo", "trainer": {"vllm": 1}}, ["trainer.vllm"]),
    ({"arms": {"A": {"model": "other"}}}, ["arms.A.model"]),
    ({"arms": {"A": {"algorithm": "ppo", "trainer": {"lam": 2.0}}}}, ["arms.A.trainer.lam"]),
    ({"max_new_tokens": 60}, ["max_new_tokens"]),
]


@pytest.mark.parametrize(("changes", "fields"), WRONG)
def test_wrong_recipes_are_refused(recipe, changes, fields):
    with pytest.raises(ConfigError) as refused:
        train(recipe("wrong", **changes))
    if fields is None:  # one field for each of the forms that it may have
        assert {field.split(".")[0] for field in refused.value.fields} == {"weights"}
    else:
        assert list(refused.value.fields) == fields


@pytest.mark.parametrize("name", ["demo_morlhf", "morlhf_small", "gpu/morlhf", "gpu/ppo_overall"])
def test_the_recipes_that_ship_are_read(name):
    assert MorlhfRecipe.read(ROOT / "recipes" / f"{name}.yaml").methods()


def test_a_panel_without_statistics_or_a_model_without_a_template_is_refused(
    recipe, parts, tmp_path
):
    bare = Path(parts["panel"]).parent / "panel.yaml"
    with pytest.raises(ConfigError, match=r"it has no statistics.*score_rewards\.py"):
        train(recipe("bare", panel=str(bare)))
    model = tiny_llama(tmp_path / "base", template=False)
    with pytest.raises(ConfigError, match="no chat template"):
        train(recipe("base", model=model))


@pytest.mark.parametrize("name", ["morlhf_small", "gpu/morlhf"])
def test_the_projects_recipes_run_at_tiny_size(recipe, parts, tmp_path, name):
    """The first arm of each, with everything large made small."""
    given = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    small = ("model", "panel", "adapter", "data", "max_length", "max_new_tokens", "generations")
    run_name = name.replace("/", "-")
    changes = given | {key: parts[key] for key in small if key in given}
    changes |= {"steps": 1, "prompts_per_step": 2, "rows_per_device": None, "objectives": None}
    changes |= {"seeds": [0], "lora": {"r": 2}}
    changes["trainer"] = {k: v for k, v in given.get("trainer", {}).items() if "vllm" not in k}
    arms = {
        k: v for k, v in given["arms"].items() if not isinstance((v or {}).get("weights"), dict)
    }
    read = MorlhfRecipe.read(ROOT / "recipes" / f"{name}.yaml")
    assert read.methods().keys() == given["arms"].keys()
    changes |= {"output": str(tmp_path / run_name), "arms": dict(list(arms.items())[:1])}
    train(recipe(run_name, **changes))
