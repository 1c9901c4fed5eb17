"""The versions of the code that makes kept things: whoever changes what it makes must raise them.

Scores, features and parameters are kept under keys that hold these versions. Each test describes what the code makes of
a fixed small input, by exact whole numbers where there are some, and holds the description against a golden value.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_adapter import heads_by_trainer
from test_artefacts import recipe_of
from tiny import TINY_RUN, tiny_classifier, tiny_encoder, tiny_llama, tiny_qwen, tokenizer
from transformers import AutoTokenizer

from pro_core.adapter import runs as adapter_runs
from pro_core.adapter import training as adapter_training
from pro_core.adapter.encoder import FEATURES_VERSION, PromptEncoder
from pro_core.adapter.targets import pairwise_loss
from pro_core.adapter.training import fit_adapter
from pro_core.data.schema import to_messages
from pro_core.evaluation.policy.text_quality import SURPRISE_VERSION, LanguageModel
from pro_core.generation.base import GenerationSettings
from pro_core.generation.chat import fit
from pro_core.generation.mixing import Mixing
from pro_core.generation.sampling import WRITING_VERSION, sampler
from pro_core.generation.soup import MIXING_VERSION, fold
from pro_core.policies import sft
from pro_core.policies.conditional.trainer import ROUND_VERSION
from pro_core.policies.goals import accept_ric, accept_weighted, ask, offline_mask
from pro_core.policies.preference import trainers
from pro_core.policies.preference.data import PairData
from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.preference.run import TRAINING_VERSION as PREFERENCE_VERSION
from pro_core.policies.preference.run import PreferenceRun
from pro_core.policies.rl import grpo, ppo
from pro_core.policies.rl.methods import train_morlhf
from pro_core.policies.rl.online_dpo import best_and_worst
from pro_core.policies.rl.recipe import MorlhfRecipe, PpoSettings
from pro_core.policies.rl.reward import normalize_groups
from pro_core.policies.rl.run import TRAINING_VERSION as RL_VERSION
from pro_core.policies.sft import fine_tune
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards import bradley_terry, classifier_runs, classifier_training, panel_runs
from pro_core.rewards.batching import CHAT_VERSION, SCORING_VERSION, encode
from pro_core.rewards.bradley_terry import bradley_terry_loss
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.classifier_grades import grade_levels
from pro_core.rewards.classifier_runs import ClassifierRun
from pro_core.rewards.classifier_training import classifier_loss
from pro_core.rewards.levels import IntensityScale
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_card import grade
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import ClassifierRecipe, PanelRecipe
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.storage import content_hash
from pro_core.theory import labelled_worlds, theorem
from pro_core.theory.alignment_gap import optimal_policy

pytestmark = pytest.mark.slow

RAISE = "what this code makes has changed: raise the version beside it, and put the new value here"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat."},
    {"role": "user", "content": "And the dog? " * 12},
]


def check(version: int, found, golden: tuple[int, str]) -> None:
    """Hold a version and a description against their golden values."""
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))
    assert (version, content_hash(rounded)[:12]) == golden, RAISE


def near(version: int, found, golden: tuple[int, list[float]], within: float = 0.02) -> None:
    """The same for numbers that processors round differently."""
    assert version == golden[0], RAISE
    np.testing.assert_allclose(np.ravel(found), golden[1], atol=within, err_msg=RAISE)


class Captured(Exception):
    """A training that was about to begin."""


ARGUMENTS = (
    *(
        "learning_rate",
        "weight_decay",
        "warmup_steps",
        "lr_scheduler_type",
        "max_grad_norm",
        "seed",
    ),
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
    ),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "beta", "num_generations", "num_iterations"),
    *("max_completion_length", "temperature", "top_p", "top_k", "scale_rewards", "loss_type"),
)


@pytest.fixture
def training(monkeypatch):
    """training(module, start): how the training that ``start`` begins would go: rows, settings and parameters."""

    def describe(module, start):
        trainers = []

        def capture(trainer, **_):
            trainers.append(trainer)
            raise Captured

        monkeypatch.setattr(module, "train_resuming", capture)
        with pytest.raises(Captured):
            start()
        (trainer,) = trainers
        rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
        groups = trainer.create_optimizer().param_groups
        return {
            "rows": json.loads(json.dumps(rows, default=lambda v: np.round(v, 4).tolist())),
            "order": list(trainer._get_train_sampler(trainer.train_dataset)),
            "arguments": {
                k: str(getattr(trainer.args, k)) for k in ARGUMENTS if hasattr(trainer.args, k)
            },
            "optimizer": type(trainer.optimizer).__mro__[1].__name__,
            "groups": [[len(g["params"]), g["lr"], g["weight_decay"]] for g in groups],
        }

    return describe


# ---------------------------------------------------------------- reading


def test_scores_have_the_version_of_what_makes_them(tmp_path):
    tokens = [
        encode(tokenizer(), [TALK, []], ["Under the table.  ", "It [SEP] barked. " * 20], form, 40)
        for form in ("pair", "{dialogue}\n\nAssistant: {completion}", "{completion}")
    ]
    chat = AutoTokenizer.from_pretrained(tiny_qwen(tmp_path / "chat"))
    long = encode(chat, [TALK] * 2, ["Under it.", "It [SEP] barked. " * 20], "chat", 40)
    check(CHAT_VERSION, [dict(row) for row in long], (2, "f2dc91a9c754"))
    check(SCORING_VERSION, [[dict(row) for row in rows] for rows in tokens], (1, "23d7561bb85b"))
    specs = [
        RewardModelSpec(n, tiny_classifier(tmp_path / "m", 2), logit=k) for k, n in enumerate("ab")
    ]
    panel = RewardPanel.build(specs, tmp_path)
    found = panel.score([TALK, "Hi"], ["Under the table.", "Hello"])
    near(SCORING_VERSION, found, (1, [-1.3125, 0.5977, 3.1562, -1.0]), within=0.1)


def test_features_have_the_version_of_what_makes_them(tmp_path):
    encoder = PromptEncoder(tiny_encoder(tmp_path / "e"), max_length=16)
    check(
        FEATURES_VERSION, [dict(row) for row in encoder.tokenize([TALK, "Hi"])], (1, "c868c74fcc34")
    )
    features = encoder.encode([TALK, "Hi"])
    near(
        FEATURES_VERSION,
        features[:, [0, 1, encoder.width, -1]],
        (1, [0.8627, -0.2546, 0.8773, 16.0, 0.9395, -0.8046, 0.9573, 3.0]),
    )


def test_surprise_has_the_version_of_what_makes_it(tmp_path):
    model = LanguageModel(tiny_llama(tmp_path / "llama"), device="cpu")
    found = model.surprise([TALK[1:2], "Hi"], ["Paris.", "it rained"])
    near(SURPRISE_VERSION, found, (1, [17.6683, 3.0, 12.0282, 2.0]), within=0.1)


def test_worlds_have_the_version_of_what_makes_them():
    world = theorem.synthetic_world(3, K=2, candidates=3).train
    found = optimal_policy(world, [0.3, 0.7], 0.5)
    near(
        theorem.WORLD_VERSION,
        found[:2],
        (1, [-1.4445, -0.8039, -1.1502, -0.0972, -4.3993, -2.5216]),
        within=1e-4,
    )
    assert labelled_worlds.WORLD_VERSION == 1 and labelled_worlds.OPENING == 300, RAISE


def test_answers_have_the_version_of_what_writes_them(tmp_path):
    tok = AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "llama"))
    logits = torch.linspace(-3, 3, 600).sin().repeat(2, 1) * 3
    drawn = sampler(GenerationSettings(8, 0.7, 0.9, seed=5), [0, 1], "cpu")(None, logits)
    found = [
        fit(tok, TALK, 200)[0],
        drawn.argmax(-1).tolist(),
        sorted(drawn[0].isfinite().nonzero()[:, 0].tolist()),
    ]
    check(WRITING_VERSION, found, (1, "ce43ba7a5400"))


def test_mixed_policies_have_the_version_of_what_mixes_them():
    """Numbers that fp32 holds exactly, so that only the rounding to bf16 and its random numbers are left."""
    W = torch.arange(64, dtype=torch.bfloat16).reshape(4, 16) / 8
    B, A = torch.tensor([[1.0], [-2.0], [0.5], [0.0]]) / 64, torch.arange(16.0)[None] / 128
    fold(W, B, A, out := torch.empty_like(W))
    parts = [Mixing(method, 0.5).parts([0.25, 0.75]) for method in ("soup", "mod")]
    check(MIXING_VERSION, [out.view(torch.int16).tolist(), parts], (2, "965ad6f47811"))


# ---------------------------------------------------------------- training


def test_panels_have_the_version_of_what_trains_them(training, tmp_path):
    path = recipe_of(tmp_path, tmp_path / "out")
    found = training(panel_runs, PanelRun(PanelRecipe.read(path)).make)
    check(bradley_terry.TRAINING_VERSION, found, (2, "f98aea457f32"))
    logits = torch.tensor([[0.5, 1.0], [0.2, -1.0], [0.1, 0.0], [1.0, 2.0]])
    pair, tie = torch.tensor([[0, 2], [1, 3]]), torch.tensor([False, True])
    weight = torch.tensor([[1.0, 0.5], [2.0, 1.0]])
    members = torch.stack([logits, -logits], dim=2)
    loss = bradley_terry_loss(members, pair, torch.tensor([0, 1]), tie, weight, 0.1)
    near(bradley_terry.TRAINING_VERSION, loss, (2, [1.4088]), within=1e-4)


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = {
        "id": [str(i) for i in range(6)],
        "source": ["own"] * 6,
        "objective": ["helpful", "harmless"] * 3,
        "prompt": [json.dumps(to_messages(f"question {i % 4}")) for i in range(6)],
    }
    kinds = ("raw_chosen", "raw_rejected", "z_chosen", "z_rejected")
    rows |= {
        f"{k}_{o}": rng.normal(size=6).round(3) for k in kinds for o in ("helpful", "harmless")
    }
    return pd.DataFrame(rows)


def test_figures_have_the_version_of_what_measures_them():
    """Of a panel and a classifier, on their cards; the cards' words have golden values in test_cards."""
    scored = table().assign(fold=-1, split="test", constructed=False, ungraded="", licence="MIT")
    scored = scored.assign(text=scored["prompt"], length_chosen=[4] * 6, length_rejected=range(6))
    found = grade(scored, ("helpful", "harmless"), "test")
    check(panel_runs.GRADING_VERSION, found, (1, "5a815f3aaafa"))
    scale = IntensityScale("helpful", 1, 2, (2,))
    rated = {"text": list("abcd"), "level_helpful": [1, 2, 2, 1]}
    rated |= {"p_helpful-1": [0.9, 0.2, 0.7, 0.4], "p_helpful-2": [0.1, 0.8, 0.3, 0.6]}
    levels = grade_levels(pd.DataFrame(rated), (scale,), "joint")
    check(classifier_runs.GRADING_VERSION, levels, (1, "488b94dc5b41"))
    assert adapter_runs.CHOOSING_VERSION == 1, RAISE


@pytest.mark.parametrize(
    ("target", "golden", "weights"),
    [
        ("pairwise", "b5b8d7d3f257", [0.6433, 0.7014]),
        ("paper_z", "cd31ceb4152b", [0.4528, 0.5397]),
        ("annotated", "b5b8d7d3f257", [0.6409, 0.6611]),
    ],
)
def test_adapters_have_the_version_of_what_fits_them(
    training, monkeypatch, tmp_path, target, golden, weights
):
    encoder = tiny_encoder(tmp_path / "e")
    settings = {"encoder": encoder, "target": target, "epochs": 2, "batch_size": 4, "members": 2}
    names = ("helpful", "harmless")
    fit = lambda **more: fit_adapter(table(), names, **settings, **more)  # noqa: E731
    found = fit(learning_rate=0.01).member_weights(torch.linspace(-1, 1, 32)[None])
    near(adapter_training.TRAINING_VERSION, found[0, :, 0], (1, weights), within=1e-3)
    monkeypatch.setattr(adapter_training, "fit_heads", heads_by_trainer(tmp_path / "work"))
    check(adapter_training.TRAINING_VERSION, training(adapter_training, fit), (1, golden))
    log = torch.log_softmax(torch.tensor([[[0.5, 1.0]]]), dim=-1)
    loss = pairwise_loss(log, torch.tensor([[[1.0, -2.0]]]), 0.5)
    near(adapter_training.TRAINING_VERSION, loss, (1, [1.8973]), within=1e-4)


def test_classifiers_have_the_version_of_what_trains_them(training, tmp_path):
    rows = [
        {
            "prompt": f"question {i}",
            "response": f"answer {i}",
            "split": "test" if i > 8 else "train",
        }
        | {"labels": {"helpful": 1 + i % 3}}
        for i in range(12)
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "objectives": {"helpful": {"range": [1, 3], "thresholds": [2]}},
        "model": tiny_encoder(tmp_path / "base"),
        "data": [{"path": "rated.jsonl", "labels": ["helpful"], "epochs": 2}],
        "data_dir": str(tmp_path),
        "output": str(tmp_path / "out"),
        "batch_size": 4,
        "max_length": 32,
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    found = training(
        classifier_runs, ClassifierRun(ClassifierRecipe.read(tmp_path / "r.yaml")).make
    )
    check(classifier_training.TRAINING_VERSION, found, (1, "353fb9bb5b51"))
    logits, levels = torch.tensor([[0.5, 1.0, -1.0]]), torch.tensor([[2, 0]])
    losses = [classifier_loss(logits, levels, (2, 1), kind) for kind in ("joint", "per_head")]
    near(classifier_training.TRAINING_VERSION, losses, (1, [0.555, 0.4741]), within=1e-4)


def test_conditioned_policies_have_the_version_of_what_trains_them(training, tmp_path):
    condition = Condition.fit("weights", ("long", "short"), [[0, 0], [1, 1]], 1.0)
    model = tiny_llama(tmp_path / "llama")
    rows = [(condition.messages(f"question {i}", [0.5, 0.5]), f"answer {i}") for i in range(5)]
    settings = {"model": model, "start": None, "lora": {"r": 4}, "steps": 3, "batch_size": 2}
    settings |= {"learning_rate": 1e-3, "constant": False, "max_length": 64, "max_prompt": 48}
    settings |= {"seed": 0, "work": tmp_path / "work"}
    config = PolicyConfig(condition, model)
    found = training(sft, lambda: fine_tune(rows, tmp_path / "p", config, **settings))
    check(sft.TRAINING_VERSION, found, (1, "4dd7e9c98d1d"))


def test_policies_of_pairs_have_the_version_of_what_trains_them(training, tmp_path):
    pairs = [
        {"prompt": f"question {i}", "chosen": f"answer {i}", "rejected": "no", "objective": "own"}
        for i in range(5)
    ]
    lines = "".join(json.dumps(pair | {"split": "train"}) + "\n" for pair in pairs)
    (tmp_path / "own.jsonl").write_text(lines)
    model = tiny_llama(tmp_path / "llama")
    settings = {"model": model, "start": model, "data": [{"path": "own.jsonl"}], "lora": {"r": 4}}
    settings |= {"data_dir": str(tmp_path), "output": str(tmp_path / "out"), "max_length": 64}
    recipe = PreferenceRecipe(**settings, max_new_tokens=16, batch_size=2, steps=3)
    found = training(trainers, PreferenceRun(recipe, 0, PairData.load(recipe)).run)
    for row in found["rows"]:  # its log-probabilities depend on the processor
        assert row.pop("ref_chosen_logps") < 0 and row.pop("ref_rejected_logps") < 0
    check(PREFERENCE_VERSION, found, (2, "73bc3d875506"))


def test_online_rounds_have_the_version_of_what_accepts_their_answers():
    z, weights = [[0.1, 2.0], [1.5, -1.0], [0.2, 0.3], [-1.0, 0.9]], [[0.8, 0.2]] * 4
    condition = Condition.fit("weights", ("long", "short"), z, 1.0)
    found = [
        accept_ric(z, 0.7).tolist(),
        accept_weighted(z, weights, [0, 0, 1, 1], 0.4, [0.1]).tolist(),
        offline_mask("weighted", z, condition, 0.5).tolist(),
        [condition.obtained(z), ask("dirichlet", [TALK, "Hi"], condition, None, 3).texts],
    ]
    check(ROUND_VERSION, found, (1, "4ee06f0427f8"))


def test_policies_under_rewards_have_the_version_of_what_trains_them(training, tmp_path):
    specs = [
        RewardModelSpec("long", function="length"),
        RewardModelSpec("plain", function="readability"),
    ]
    stats = RewardStats.fit([[1.0, 50.0], [9.0, 70.0]], ("long", "plain"), "made up")
    RewardPanel(specs, {}, stats).save_pretrained(tmp_path / "panel")
    lines = [
        {"prompt": f"tell me {i}", "response": "no", "labels": {}, "split": "train"}
        for i in range(5)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {"model": tiny_llama(tmp_path / "llama"), "panel": str(tmp_path / "panel")}
    recipe |= {"method": "MORLHF uniform", "weights": "uniform", "output": str(tmp_path / "out")}
    recipe |= {"data": [{"path": "own.jsonl"}], "data_dir": str(tmp_path), "max_length": 64}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | TINY_RUN))
    read = MorlhfRecipe.read(tmp_path / "r.yaml")
    found = training(grpo, lambda: train_morlhf(read))
    rows = [{"prompt": 0, "row": 0, "total": t, "text": str(t)} for t in (0.1, 0.3, None, 0.2)]
    found["pairs"] = best_and_worst(rows)
    check(RL_VERSION, found, (1, "7a0bf5db6bff"))
    rewards, values, mask = torch.tensor([[0.1, 0.5]]), torch.tensor([[0.2, 0.1]]), torch.ones(1, 2)
    batch = {"logp": torch.tensor([[-1.0, -2.0]]), "values": values, "mask": mask}
    batch |= {"advantages": ppo.advantages_by_gae(rewards, values, mask, 0.95), "returns": rewards}
    loss = ppo.ppo_loss(batch, batch["logp"] + 0.5, values + 0.3, mask, mask.sum(), PpoSettings())
    numbers = [*normalize_groups([[1.0], [2.0], [4.0]], 3).ravel(), loss.item()]
    near(RL_VERSION, numbers, (1, [-0.8728, -0.2182, 1.091, -0.463]), within=1e-4)
