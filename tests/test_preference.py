"""train/preference.py on tiny models: every loss by hand, invariants between methods, resuming, and bad input."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import panel_of_functions, tiny_encoder, tiny_llama, tiny_qwen, vivid_adapter

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.schema import DataError, read_jsonl
from pro_core.policies.preference import run as runs
from pro_core.policies.preference.choice import choose, judged_answers
from pro_core.policies.preference.data import PairData, TokenPair, pair_rows, single_rows
from pro_core.policies.preference.labels import PanelScores, margins, relabel
from pro_core.policies.preference.log_probs import write_log_probs
from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.preference.run import PreferenceRun, train_preference
from pro_core.policies.preference.trainers import ActiveTrainer, change_sides, make_trainer
from pro_core.policies.sft import load_to_train
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError, folder_name
from pro_core.system.artefacts import Artefact

pytestmark = pytest.mark.slow

NAMES = ("long", "plain")
SAID = ("no", "it rained on Sunday and we stayed in", "Paris.", "why not, hello there")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny Llama, a panel of two functions, an adapter, and 12 pairs of two objectives: a recipe's settings."""
    folder = tmp_path_factory.mktemp("parts")
    panel = panel_of_functions(folder, SAID)
    panel.stats.mean[:] += 1  # another panel than the one that labels
    panel.save_pretrained(folder / "judge")
    vivid_adapter(tiny_encoder(folder / "encoder"), NAMES).save_pretrained(folder / "adapter")
    rows = [
        {"prompt": f"tell me {i} of it", "chosen": SAID[i % 4], "rejected": SAID[(i + 1 + i // 4) % 4]}
        | {"objective": NAMES[i % 2], "split": "train" if i < 8 else "validation"}
        for i in range(12)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": tiny_llama(folder / "llama"),
        "data": [{"path": str(folder / "pairs.jsonl")}],
        "panel": str(folder / "panel"),
        "adapter": str(folder / "adapter"),
        "lora": {"r": 4},
        "max_length": 64,
        "max_new_tokens": 24,
        "batch_size": 4,
        "steps": 2,
        "sft_steps": 1,
        "sft_learning_rate": 0.01,
        "trials": [{"learning_rate": 0.01, "beta": 0.5}],
        "checkpoint_every": 1,
    }


@pytest.fixture
def recipe(parts, tmp_path):
    """recipe(name, **changes): a recipe without arms, unless changed, whose output is a folder of the test."""

    def recipe(name: str, **changes) -> PreferenceRecipe:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(parts | {"output": str(tmp_path / name)} | changes))
        return PreferenceRecipe.read(path)

    return recipe


def trained(output: Path, method: str = "DPO"):
    """(LoRA, record) of a finished run."""
    folder = output / folder_name(method) / "seed0"
    record = json.loads((folder / "run.json").read_text())
    return load_file(folder / "adapter_model.safetensors"), record


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------- losses


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(model, prompt: list[int], completion: list[int]) -> tuple[float, float]:
    """log pi(completion given prompt), and WPO's mean of log pi(y_t) - log sum_v pi(v)^2, from whole logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[
            0, len(prompt) - 1 : -1
        ]
    log = logits.double().log_softmax(-1)
    own = log.gather(-1, torch.tensor(completion)[:, None])[:, 0]
    square = (2 * log).logsumexp(-1)
    return own.sum().item(), (own - square).mean().item()


@pytest.mark.parametrize("algorithm", ["dpo", "ipo", "simpo", "wpo", "adpo", "modpo", "kto"])
def test_each_loss_is_that_of_its_paper(recipe, tmp_path, algorithm):
    """Of a batch of four pairs, against a reference that is not the policy."""
    beta, gamma = 0.7, 1.1
    weights = {"long": 0.25, "plain": 0.75}
    changes = {"weights": weights, "pairs_of": "plain"} if algorithm == "modpo" else {}
    changes |= {"gamma": gamma, "gamma_beta_ratio": gamma / beta}
    one = recipe(algorithm, algorithm=algorithm, lora=None, start="a", **changes)
    data = PairData.load(one)
    scores = PanelScores.load(one, data) if algorithm == "modpo" else None
    run = PreferenceRun(one, 0, data, scores)
    plan = run.plan(one.trials[0].model_copy(update={"beta": beta}))
    order, tokens = plan.order[:4], data.tokens
    reference = np.linspace(-60, -10, 2 * len(tokens)).reshape(-1, 2)
    if algorithm == "kto":
        rows = single_rows(tokens, reference, order, 4, one.max_length)
        for n, row in enumerate(rows):
            row["ref_KL_logps"] = -20.0 - n
    else:
        shift = 0 if plan.shift is None else plan.shift
        rows = pair_rows(tokens, shift + (0 if algorithm == "simpo" else reference), order)
    trainer = make_trainer(
        one, rows, None, plan.beta, 0.01, 0, tmp_path / "work"
    )  # no start: the model
    model = trainer.model.float()
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader()))).item()

    losses, flags = [], set()
    if algorithm == "kto":
        logps = [by_hand(model, row["prompt_ids"], row["completion_ids"])[0] for row in rows]
        others = [by_hand(model, row["prompt_ids"], row["KL_completion_ids"])[0] for row in rows]
        kl = max(
            0.0, np.mean([o - row["ref_KL_logps"] for o, row in zip(others, rows, strict=True)])
        )
        for logp, row in zip(logps, rows, strict=True):
            side = 1 if row["label"] else -1
            losses.append(1 - sigmoid(beta * side * (logp - row["ref_logps"] - kl)))
    for i in order if algorithm != "kto" else ():
        pair = tokens[i]
        (won, won_mean), (lost, lost_mean) = (
            by_hand(model, pair.prompt, ids) for ids in (pair.chosen, pair.rejected)
        )
        delta = won - lost - (reference[i, 0] - reference[i, 1])
        if algorithm == "ipo":
            by_token = (won - reference[i, 0]) / len(pair.chosen)
            by_token -= (lost - reference[i, 1]) / len(pair.rejected)
            losses.append((by_token - 1 / (2 * beta)) ** 2)
        elif algorithm == "simpo":
            margin = beta * won / len(pair.chosen) - beta * lost / len(pair.rejected) - gamma
            losses.append(-math.log(sigmoid(margin)))
        elif algorithm == "modpo":
            raw = scores.raw_N2K[i]
            assert data.pairs[i].objective == "plain"
            other = 0.25 * (raw[0, 0] - raw[1, 0])
            losses.append(-math.log(sigmoid((beta * delta - other) / 0.75)))
        else:
            flag = np.sign(beta * delta + gamma) if algorithm == "adpo" else 1
            flags.add(int(flag))
            weight = math.exp(won_mean + lost_mean) if algorithm == "wpo" else 1
            losses.append(-math.log(sigmoid(beta * flag * delta)) * weight)
    assert len(losses) == (8 if algorithm == "kto" else 4)
    assert algorithm != "adpo" or flags == {-1, 1}
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_what_changes_sides_takes_its_reference_along():
    inputs = {
        "input_ids": torch.tensor([[1], [2], [3], [4]]),  # chosen 1, 2; rejected 3, 4
        "ref_chosen_logps": torch.tensor([-1.0, -2.0]),
        "ref_rejected_logps": torch.tensor([-3.0, -4.0]),
    }
    moved = change_sides(inputs, torch.tensor([False, True]))
    assert moved["input_ids"].tolist() == [[1], [4], [3], [2]]
    assert moved["ref_chosen_logps"].tolist() == [-1.0, -4.0]
    assert moved["ref_rejected_logps"].tolist() == [-3.0, -2.0]


def test_kto_reads_a_prompt_with_completions_of_other_prompts():
    """Also where a pair comes twice in a row, as between two passes."""
    tokens = [TokenPair([1, i], [2, i], [3, i]) for i in range(3)]
    for order in ([0, 1], [0, 0, 1], [2, 0, 1, 1], [0, 1, 1, 0]):
        rows = single_rows(tokens, np.zeros((3, 2)), order, 4, 64)
        assert [row["label"] for row in rows] == [True] * len(order) + [False] * len(order)
        assert all(row["KL_completion_ids"][1] != row["prompt_ids"][1] for row in rows)
    rows = single_rows(tokens, np.zeros((3, 2)), [0, 0], 4, 64)  # there is no other prompt
    assert len(rows) == 4


def test_log_probabilities_that_are_not_numbers_are_refused(parts, tmp_path):
    model, tokenizer = load_to_train(parts["model"], None, None, 64)
    with torch.no_grad():
        next(model.parameters())[7] = math.nan  # of one token, which one completion has
    sequences = [([5, 6], [8, 9]), ([5, 6], [8, 7, 9])]
    with pytest.raises(ConfigError) as refused:
        write_log_probs(lambda: (model, tokenizer), sequences, tmp_path, 1, "the policy")
    assert "model" in refused.value.fields and not (tmp_path / "log_probs.npy").exists()


# ---------------------------------------------------------------- the choice among trials


def test_an_answer_that_could_not_be_written_counts_as_the_worst():
    def trial(*scores: float | None) -> Artefact:
        told = [score for score in scores if score is not None]
        record = {"answers": len(scores), "failed": len(scores) - len(told), "error": "?"}
        record |= {
            "judge_score": np.mean(told) if told else None,
            "lowest": min(told, default=None),
        }
        return Artefact(Path("judged"), "", "", record)

    assert choose([trial(3, None, None), trial(1, -1, 3)]) == 1  # 3, -1, -1 against 1, -1, 3
    assert choose([trial(8, None, 7), trial(1, -1, 3)]) == 0
    assert choose([trial(None, None), trial(-1, -1)]) == 1
    with pytest.raises(ConfigError):
        choose([trial(None, None), trial(None, None)])


def test_an_answer_that_could_not_be_written_is_not_judged(recipe, parts, tmp_path):
    """Not even by a judge that likes an empty text best."""
    (tmp_path / "checkpoint").symlink_to(parts["model"])
    policy = Artefact(tmp_path, "a policy", "a", {})
    judge = RewardPanel.from_pretrained(Path(parts["panel"]).with_name("judge"))
    judge.stats.std[:] *= -1  # shorter is better
    prompts = [[{"role": "user", "content": text}] for text in ("tell me", "x" * 999)]
    record = judged_answers(recipe("fails"), policy, prompts, judge).record
    assert record["answers"] == 2 and record["failed"] == 1 and record["error"]
    assert record["judge_score"] == record["lowest"]  # of the other answer


def test_a_judge_with_other_statistics_judges_again(recipe, parts, tmp_path):
    (tmp_path / "checkpoint").symlink_to(parts["model"])
    policy = Artefact(tmp_path, "a policy", "a", {})
    judge = RewardPanel.from_pretrained(Path(parts["panel"]).with_name("judge"))
    one, prompts = recipe("judged", max_new_tokens=4), [[{"role": "user", "content": "tell me"}]]
    before = judged_answers(one, policy, prompts, judge)
    judge.stats.mean[:] += 1
    after = judged_answers(one, policy, prompts, judge)
    assert after.record["judge_score"] != before.record["judge_score"]


# ---------------------------------------------------------------- from a recipe to policies


def test_arms_share_their_start_and_the_judge_chooses_the_trial(recipe, parts, tmp_path, capsys):
    trials = [{"learning_rate": rate, "beta": 0.5} for rate in (0.05, 1e-9)]
    arms = {"SFT": {"algorithm": "sft"}, "DPO": {"trials": trials}}
    one = recipe(
        "arms", arms=arms, judge=str(Path(parts["panel"]).with_name("judge")), validation_prompts=3
    )
    train_preference(one)
    output = tmp_path / "arms"
    (sft, sft_record), (dpo, record) = (trained(output, name) for name in ("SFT", "DPO"))
    assert not same(sft, dpo) and record["stages"][0] == sft_record["stages"][0]
    choice = record["settings"]["choice"]
    scores = [trial["judge_score"] for trial in choice["trials"]]
    assert choice["chosen"] == int(np.argmax(scores))
    assert [trial["answers"] for trial in choice["trials"]] == [3, 3]
    # A policy that does not move from its start has no margin: the reference is the start, computed beforehand.
    stages = {s["stage"]: s for s in record["stages"]}
    logs = [
        read_jsonl(output / name / "log.jsonl")
        for name in stages
        if (output / name / "log.jsonl").is_file()
    ]
    still = next(log for log in logs if log[0]["learning_rate"] < 1e-8)
    assert all(abs(entry["rewards/margins"]) < 0.05 for entry in still)
    assert all(abs(entry["logps/chosen"]) > 5 for entry in still)
    config = PolicyConfig.read(output / "dpo" / "seed0")
    assert config and not config.reads and config.base == parts["model"]
    capsys.readouterr()
    train_preference(one)
    assert "step 1/" not in capsys.readouterr().out  # what is finished is not done again


def test_an_adapter_that_answers_uniform_gives_the_uniform_run(recipe, parts, tmp_path):
    """They learn the same rows by the same loss, and so are one stage."""
    adapter = PreferenceAdapter.from_pretrained(parts["adapter"])
    with torch.no_grad():
        for head in adapter.heads:
            for parameter in head[-1].parameters():
                parameter.zero_()
    adapter.save_pretrained(tmp_path / "blank")
    arms = {"PRO-DPO": {}, "uniform": {"weights": "uniform"}}
    changes = {"algorithm": "pro_dpo", "arms": arms, "adapter": str(tmp_path / "blank"), "steps": 1}
    one = recipe("both", start=parts["model"], **changes)
    train_preference(one)
    output = tmp_path / "both"
    (lora, record), (other, other_record) = (trained(output, name) for name in arms)
    assert same(lora, other)
    assert [s["stage"] for s in record["stages"]] == [s["stage"] for s in other_record["stages"]]
    data = PairData.load(one)
    scores = PanelScores.load(one, data)
    runs_of = [PreferenceRun(method, 0, data, scores) for method in one.methods().values()]
    rows = [run._rows(run.plan(one.trials[0]), run.recipe) for run in runs_of]
    assert rows[0] == rows[1]


def test_one_objective_gives_plain_dpo_on_its_labels(recipe, parts, tmp_path):
    """The same stage as DPO on a file whose pairs the panel has put in order."""
    one = {"objectives": ["long"], "weights": "uniform", "start": parts["model"]}
    weighed = recipe("one", algorithm="pro_dpo", **one)
    data = PairData.load(weighed)
    labels = relabel(weighed, data, PanelScores.load(weighed, data), 0)
    assert 0 < labels.swapped.sum() < len(data.pairs) and labels.kept == list(
        range(len(data.pairs))
    )
    for pair, swapped in zip(data.pairs, labels.swapped, strict=True):
        assert swapped == (len(pair.chosen) < len(pair.rejected))
    run = PreferenceRun(weighed, 0, data, PanelScores.load(weighed, data))
    rows = run._rows(run.plan(weighed.trials[0]), weighed)
    sorted_pairs = [
        {"prompt": p.prompt, "chosen": max(p.chosen, p.rejected, key=len), "objective": "long"}
        | {"rejected": min(p.chosen, p.rejected, key=len), "split": "train"}
        for p in data.pairs
    ]  # fmt: skip
    path = tmp_path / "sorted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sorted_pairs))
    plain = recipe("plain", data=[{"path": str(path)}], start=parts["model"])
    other = PreferenceRun(plain, 0, PairData.load(plain))
    for row, same_row in zip(rows, other._rows(other.plan(plain.trials[0]), plain), strict=True):
        assert {k: np.asarray(v).tolist() for k, v in row.items()} == same_row


def test_labels_follow_the_weights_of_each_prompt(recipe, tmp_path):
    found = {}
    for name, changes in {
        "adapter": {},
        "shuffled": {"weights": "shuffled"},
        "long": {"weights": {"long": 1.0}},
    }.items():
        one = recipe(name, algorithm="pro_dpo", **changes)
        data = PairData.load(one)
        scores = PanelScores.load(one, data)
        # The first objective prefers the chosen completion and the second the other: it changes sides if w_1 < 1 - cut.
        weights = scores.adapter.predict([pair.prompt for pair in data.pairs])
        cut = 1 - float(np.median(weights[:, 0]))
        scores.z_N2K[:] = [[cut, 0.0], [0.0, 1 - cut]]
        found[name] = relabel(one, data, scores, 0).swapped
    assert found["adapter"].tolist() == (weights[:, 0] < 1 - cut).tolist()
    assert not found["long"].any() and found["adapter"].sum() == found["shuffled"].sum() == 4
    assert found["adapter"].tolist() != found["shuffled"].tolist()


def test_the_easiest_half_is_learned_in_order_and_a_lost_run_is_repeated_alone(
    recipe, parts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "SPLITS", 1)
    one = recipe("easy", algorithm="selective_dpo", start=parts["model"], steps=1)
    run = PreferenceRun(one, 0, PairData.load(one))
    easiest, stages = run.easiest
    shuffled = random.Random("0 0").sample(range(8), 8)
    losses = np.full(8, np.nan)
    for stage, held_out in zip(stages, (shuffled[4:], shuffled[:4]), strict=True):
        held_out = sorted(held_out)  # the half that this run did not learn
        found = run.pair_log_probs(stage.key, stage.checkpoint, held_out)
        ratio = found - run.reference[held_out]
        losses[held_out] = [-math.log(sigmoid(0.5 * (won - lost))) for won, lost in ratio]
    assert easiest == np.argsort(losses, kind="stable")[:4].tolist()

    shutil.rmtree(stages[0].folder)
    capsys.readouterr()
    plan = PreferenceRun(one, 0, run.data).plan(one.trials[0])
    assert plan.order == easiest and plan.record == {"kept": 4}
    assert capsys.readouterr().out.count("step 1/") == 1


def test_of_more_kept_pairs_than_steps_learn_those_learned_are_easy_and_hard(recipe, parts):
    one = recipe("few", algorithm="selective_dpo", start=parts["model"], steps=5)
    run, kept = PreferenceRun(one, 0, PairData.load(one)), list(range(100, 0, -1))
    run.easiest = kept, []
    plan = run.plan(one.trials[0])
    assert len(set(plan.order)) == 20 and plan.record == {"kept": 100}
    assert plan.order == sorted(plan.order, reverse=True)  # easy to hard
    assert len(set(plan.order) & set(kept[50:])) > 4
    kept[:] = range(7)
    assert len(run.plan(one.trials[0]).order) == 4  # whole batches


# ---------------------------------------------------------------- kills


def test_a_killed_run_goes_on_to_the_same_parameters_and_counts(
    recipe, parts, tmp_path, monkeypatch, capsys
):
    changes = {"algorithm": "adpo", "gamma": 0.01, "start": parts["model"], "steps": 3}
    train_preference(recipe("whole", **changes))
    lora, record = trained(tmp_path / "whole")
    [trial] = record["settings"]["choice"]["trials"]
    assert 0 < trial["unasked"] <= 8  # none in the first step, where no policy is sure
    path, original, calls = recipe("cut", **changes), ActiveTrainer.compute_loss, []

    def stopped(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    monkeypatch.setattr(ActiveTrainer, "compute_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_preference(path)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "dpo").exists()
    capsys.readouterr()
    train_preference(path)
    assert "checkpoint-2" in capsys.readouterr().out  # resumed from there
    other, other_record = trained(tmp_path / "cut")
    assert same(lora, other) and record["settings"]["choice"] == other_record["settings"]["choice"]
    logs = [
        read_jsonl(tmp_path / name / record["stages"][-1]["stage"] / "log.jsonl")
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


# ---------------------------------------------------------------- bad input


MODPO = {"algorithm": "modpo", "pairs_of": "plain"}
TWO = [{"learning_rate": 0.1, "beta": 0.1}] * 2
REFUSED = {
    "modpo under weights of each prompt": (MODPO, "weights"),
    "modpo with one objective": ({**MODPO, "weights": {"plain": 1.0}}, "weights"),
    "modpo of an objective without a weight": ({**MODPO, "weights": {"long": 1.0}}, "pairs_of"),
    "a method that needs a panel without one": ({"algorithm": "pro_dpo", "panel": ""}, "panel"),
    "weights of an adapter without one": ({"algorithm": "pro_dpo", "adapter": None}, "adapter"),
    "several trials and no judge": ({"trials": TWO}, "judge"),
    "a judge that is the panel": ({"judge": "p", "panel": "p"}, "judge"),
    "more trials in one arm": ({"arms": {"a": {"trials": TWO}, "b": {}}, "judge": "j"}, "trials"),
    "more trials in an arm that is not trained now": (
        {"arms": {"a": {"trials": TWO}, "b": {}}, "judge": "j", "only": ["b"]},
        "trials",
    ),
    "SFT from a start": ({"algorithm": "sft", "start": "s"}, "start"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_impossible_recipe_is_refused_before_anything_is_loaded(recipe, name):
    changes, field = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        recipe("refused", **changes)
    assert field in [one.split(".")[-1] for one in refused.value.fields]


def test_levels_where_weights_are_expected_are_refused(recipe):
    for algorithm, weights in (
        ("pro_dpo", {"long": 4, "plain": 2}),
        ("modpo", {"long": 4.0, "plain": 1.0}),
    ):
        one = recipe("levels", algorithm=algorithm, weights=weights, pairs_of="plain")
        data = PairData.load(one)
        with pytest.raises(ConfigError) as refused:
            (relabel if algorithm == "pro_dpo" else margins)(
                one, data, PanelScores.load(one, data), *([0] if algorithm == "pro_dpo" else [])
            )
        assert refused.value.fields == ("weights",)


def test_an_objective_without_pairs_is_refused(recipe):
    weights = {"long": 0.5, "plain": 0.5}
    one = recipe("none", algorithm="modpo", weights=weights, pairs_of="long")
    data = PairData.load(one)
    data.pairs = [replace(pair, objective="plain") for pair in data.pairs]
    with pytest.raises(ConfigError) as refused:
        margins(one, data, PanelScores.load(one, data))
    assert "pairs_of" in refused.value.fields


def test_labels_alone_are_no_pairs(recipe, tmp_path):
    row = {"prompt": "tell me", "response": "no", "labels": {"long": 1}, "split": "train"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError):
        train_preference(recipe("labels", data=[{"path": str(tmp_path / "labels.jsonl")}]))


def test_a_start_that_cannot_be_the_reference_is_refused(recipe, parts, tmp_path):
    """One of another tokenizer, one that reads levels, and a whole model where a LoRA is trained."""
    other = tiny_qwen(tmp_path / "qwen")
    reads = tmp_path / "levels"
    shutil.copytree(parts["model"], reads)
    PolicyConfig(Condition("levels", NAMES, level_counts=(5, 5))).save(reads)
    for start, lora, field in (
        (other, None, "model"),
        (str(reads), None, "start"),
        (other, {"r": 4}, "lora"),
    ):
        with pytest.raises(ConfigError) as refused:
            train_preference(recipe("start", start=start, lora=lora))
        assert field in refused.value.fields


def test_kto_reads_two_pairs_at_once(recipe, parts):
    one = recipe("kto", algorithm="kto", start=parts["model"], rows_per_device=1)
    with pytest.raises(ConfigError) as refused:
        train_preference(one)
    assert "rows_per_device" in refused.value.fields
