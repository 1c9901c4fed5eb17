"""Reward models: token-budget batches, statistics, the panel, its disk form and its errors."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_classifier, tiny_encoder, tiny_gpt2, tiny_qwen, tokenizer

from pro_core.data.schema import PreferencePair
from pro_core.rewards.batching import collate, encode, token_budget_batches
from pro_core.rewards.bradley_terry import (
    BradleyTerryTrainer,
    bradley_terry_loss,
    grouped_by_length,
    tokenize_pairs,
    training_order,
)
from pro_core.rewards.calibration import RewardStats, member_spread
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.models import new_reward_model, save_reward_model
from pro_core.rewards.ngrams import NGrams
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from pro_core.runs.training import training_arguments
from pro_core.system.storage import StorageError

NAMES = ("helpful", "harmless")
PROMPTS = [
    "Hi",
    "What is the capital of France?",
    [{"role": "user", "content": "Tell me a joke."}],
    [],
]
COMPLETIONS = ["Hello there!", "Paris. " * 90, "", "A text that stands alone."]


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """A panel of two separate models, saved."""
    folder = tmp_path_factory.mktemp("separate")
    for k, name in enumerate(NAMES):
        tiny_classifier(folder / name, 1, seed=k)
    panel = RewardPanel.build(
        [RewardModelSpec(name, name, max_length=64) for name in NAMES], folder
    )
    panel.fit_stats(PROMPTS[:3], ["a", "b c", "d e f"], "three texts")
    panel.accuracy = {"helpful": {"accuracy": 0.6, "ci95": [0.5, 0.7], "n": 9, "test": "made up"}}
    panel.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- batches


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 600))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(1, *(lengths[i] for i in batch)) <= budget


def test_a_long_prompt_loses_its_beginning_and_a_long_completion_its_end():
    words = [f"word{i}" for i in range(200)]
    tok = tokenizer()

    def encode_pair(prompt, completion, max_length):
        return encode(
            tok, [[{"role": "user", "content": prompt}]], [completion], "pair", max_length
        )

    [row] = encode_pair(" ".join(words), "yes", 40)
    text = tok.decode(row["input_ids"])
    assert len(row["input_ids"]) <= 40
    assert "word199" in text and "word10 " not in text and "yes" in text
    [row] = encode_pair("short question", " ".join(words), 40)
    text = tok.decode(row["input_ids"])
    assert "short question" in text and "word0" in text and "word199" not in text
    [row] = encode_pair(" ".join(words), " ".join(words), 60)
    assert len(row["input_ids"]) <= 60
    assert "word199" in tok.decode(row["input_ids"]) and "word0 " in tok.decode(row["input_ids"])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=90), st.integers(1, 16))
def test_grouping_by_length_keeps_every_row(lengths, batch_size):
    import random

    rows = list(range(len(lengths)))
    assert sorted(grouped_by_length(rows, lengths, batch_size, random.Random(0), pool=2)) == rows


# ---------------------------------------------------------------- statistics


def test_statistics_normalize_the_reference_to_mean_0_deviation_1():
    rewards = np.random.default_rng(0).normal([3, -50], [0.5, 20], (500, 2))
    stats = RewardStats.fit(rewards, NAMES)
    z = stats.normalize(rewards)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-5)
    assert (
        RewardStats.from_dict(json.loads(json.dumps(stats.to_dict()))).to_dict() == stats.to_dict()
    )


def test_a_constant_reward_is_named_and_normalizes_to_zero():
    stats = RewardStats.fit([[1.0, 2.0], [3.0, 2.0]], NAMES)
    assert stats.constant == ("harmless",)
    np.testing.assert_allclose(stats.normalize([[1.0, 2.0]])[0, 1], 0)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([[1.0, 2.0]], "N >= 2"),
        ([[1.0], [2.0]], "expected"),
        ([[1.0, float("nan")], [2.0, 1.0]], "harmless"),
        ([[float("inf"), 1.0], [2.0, 1.0]], "helpful"),
    ],
)
def test_statistics_refuse_what_has_none(rewards, said):
    with pytest.raises(ValueError, match=said):
        RewardStats.fit(rewards, NAMES)


def test_the_length_component_is_fitted_within_prompts_and_removed():
    """Rewards with a planted slope of their own in each objective, and prompts whose offset grows with their length."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(200), 4)
    base = rng.normal(5, 1, 200)[prompt]  # prompts ask for answers of different length
    lengths = np.round(np.exp(base + rng.normal(0, 0.5, 800)))
    steps = np.log1p(lengths)
    quality = rng.normal(0, 1, (800, 2))
    rewards = quality + steps[:, None] * [2.0, -0.5] + 30 * base[:, None]
    names = prompt.astype(str)
    stats = RewardStats.fit(rewards, NAMES, "planted", lengths, names)
    np.testing.assert_allclose(stats.length_slope, [2.0, -0.5], atol=0.15)  # not 32 and 29.5
    z = stats.normalize(rewards, lengths)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)
    for k in range(2):
        within = [v - np.bincount(prompt, v)[prompt] / 4 for v in (z[:, k].astype(float), steps)]
        assert abs(np.corrcoef(*within)[0, 1]) < 1e-4
    again = RewardStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    np.testing.assert_array_equal(again.normalize(rewards, lengths), z)
    with pytest.raises(ValueError, match="pass the responses' lengths"):
        stats.normalize(rewards)
    with pytest.raises(ValueError, match="expected 800 numbers"):
        stats.normalize(rewards, lengths[:5])


def test_statistics_without_lengths_do_not_look_at_them():
    stats = RewardStats.fit([[1.0, 2.0], [3.0, 5.0]], NAMES)
    assert stats.length_slope is None
    np.testing.assert_array_equal(stats.normalize([[1.0, 2.0]], [7]), stats.normalize([[1.0, 2.0]]))
    old = stats.to_dict()
    del old["length_slope"], old["length_center"]  # a panel.json from before lengths were known
    assert RewardStats.from_dict(old).to_dict() == stats.to_dict()


@pytest.mark.parametrize(
    ("lengths", "prompts", "said"),
    [
        ([1, 2, 3, 4], None, "pass the prompt"),
        ([1, 2, 3, 4], ["a", "b", "c", "d"], "no prompt has two responses"),
        ([5, 5, 7, 7], ["a", "a", "b", "b"], "no prompt has two responses"),
        ([1, 2, 3, -1], ["a"] * 4, "at least 0"),
    ],
)
def test_a_length_component_that_cannot_be_fitted_says_why(lengths, prompts, said):
    with pytest.raises(ValueError, match=said):
        RewardStats.fit(np.arange(8).reshape(4, 2) ** 2.0, NAMES, "", lengths, prompts)


# ---------------------------------------------------------------- the panel


@pytest.mark.parametrize("K", [1, 12])
def test_one_objective_and_twelve(tmp_path, K):
    tiny_classifier(tmp_path / "trunk", K)
    names = tuple(f"objective-{k}" for k in range(K))
    specs = [RewardModelSpec(name, "trunk", logit=k) for k, name in enumerate(names)]
    panel = RewardPanel.build(specs, tmp_path)
    panel.fit_stats(["a", "a", "b", "b"], ["c", "d d d", "e", "f f"], "four", remove_length=True)
    panel.save_pretrained(tmp_path)
    again = RewardPanel.from_pretrained(tmp_path)
    assert again.objective_names == names
    z = again.standardized(["a", "b"], ["c", "f f"])
    assert z.shape == (2, K) and z.dtype == np.float32 and np.isfinite(z).all()
    assert again.stats.length_slope.shape == (K,)


def test_scores_do_not_depend_on_what_else_is_in_the_batch(separate):
    panel = RewardPanel.from_pretrained(separate)
    together = panel.score(PROMPTS, COMPLETIONS)
    alone = np.vstack([panel.score([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert together.shape == (4, 2) and together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=0.05)  # bf16
    panel.token_budget = 64
    np.testing.assert_allclose(panel.score(PROMPTS, COMPLETIONS), alone, atol=0.05)
    assert np.ptp(together, axis=0).min() > 0.1  # the tolerance is small against real differences


def test_one_trunk_with_heads_scores_like_separate_models_in_one_pass(tmp_path, monkeypatch):
    tiny_classifier(tmp_path / "trunk", 3)
    specs = [
        RewardModelSpec("helpful", "trunk", logit=2),
        RewardModelSpec("harmless", "trunk", logit=0, direction=-1),
    ]
    panel = RewardPanel.build(specs, tmp_path)
    model, tok = panel.models["trunk"]
    passes = []
    original = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda *a, **k: passes.append(1) or original(*a, **k)
    )
    scores = panel.score(PROMPTS[:2], COMPLETIONS[:2])
    assert len(passes) == 1
    hi = [{"role": "user", "content": "Hi"}]
    [row] = encode(tok, [hi], ["Hello there!"], "pair", 512)
    logits = model(**{k: torch.tensor([v]) for k, v in row.items()}).logits[0]
    np.testing.assert_allclose(scores[0], [logits[2].item(), -logits[0].item()], atol=0.05)


def test_a_saved_panel_scores_the_same(separate, tmp_path):
    panel = RewardPanel.from_pretrained(separate)
    again = RewardPanel.from_pretrained(separate)
    np.testing.assert_array_equal(
        panel.score(PROMPTS, COMPLETIONS), again.score(PROMPTS, COMPLETIONS)
    )
    assert again.accuracy["helpful"]["accuracy"] == 0.6
    config = json.loads((separate / "panel.json").read_text())
    assert config["objective_names"] == list(NAMES)
    assert set(config["versions"]) == {"python", "torch", "transformers", "peft"}


def test_a_system_style_changes_no_score(separate):
    panel = RewardPanel.from_pretrained(separate)
    plain = [{"role": "user", "content": "Hi"}]
    styled = [{"role": "system", "content": "You are a pirate."}, *plain]
    np.testing.assert_array_equal(panel.score([plain], ["x"]), panel.score([styled], ["x"]))


@pytest.mark.parametrize(
    ("prompts", "completions", "said"),
    [
        (["a", "b"], ["c"], "2 prompts and 1 completions"),
        ("a", ["c"], "expected lists"),
        ([""], ["c"], None),
        ([" "], ["c"], "empty prompt"),
    ],
)
def test_scoring_refuses_what_it_cannot_score(separate, prompts, completions, said):
    panel = RewardPanel.from_pretrained(separate)
    if said is None:  # an empty prompt is a completion that stands alone
        assert panel.score(prompts, completions).shape == (1, 2)
    else:
        with pytest.raises(ValueError, match=said):
            panel.score(prompts, completions)


def test_a_model_that_answers_nan_is_named(separate):
    panel = RewardPanel.from_pretrained(separate)
    panel.models["harmless"][0].classifier.bias.data[:] = float("nan")
    with pytest.raises(ValueError, match="not finite .objective: count.: {'harmless': 2}"):
        panel.score(["Hi"] * 2, ["Hello", "Bye"])
    with pytest.raises(ValueError, match="{'harmless': 2}"):
        panel.fit_stats(["Hi"] * 2, ["Hello", "Bye"], "two texts")
    scores = panel.score(["Hi"] * 2, ["Hello", "Bye"], allow_missing=True)
    assert np.isnan(scores[:, 1]).all() and np.isfinite(scores[:, 0]).all()


def break_config(folder, **changes):
    file = folder / "panel.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BEYOND = [{"name": "helpful", "source": "helpful", "logit": 3}]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "panel.json").unlink(), "no panel.json"),
        (lambda f: (f / "panel.json").write_text('{"format": "pro-pa'), "truncated"),
        (lambda f: break_config(f, format="other"), "format 'other'"),
        (lambda f: break_config(f, objective_names=["harmless", "helpful"]), "in order"),
        (lambda f: break_config(f, models=[{"name": "helpful"}]), "source"),
        (lambda f: break_config(f, models=BEYOND, objective_names=["helpful"], stats=None), "logit index 3"),
        (lambda f: (f / "harmless" / "config.json").rename(f / "harmless" / "gone"), "cannot load the reward model"),
        (lambda f: (f / "harmless" / "model.safetensors").write_bytes(b"short"), "cannot load the reward model"),
    ],
)  # fmt: skip
def test_a_damaged_panel_says_what_is_damaged(separate, tmp_path, damage, said):
    import shutil

    folder = tmp_path / "panel"
    shutil.copytree(separate, folder)
    damage(folder)
    with pytest.raises(StorageError, match=said):
        RewardPanel.from_pretrained(folder)


def test_a_panel_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="no such folder"):
        RewardPanel.from_pretrained(tmp_path / "absent")


# ---------------------------------------------------------------- members


def good_pairs(n=40):
    prompt = [{"role": "user", "content": "Hi"}]
    return [
        PreferencePair(
            prompt, f"hello there, a splendid answer {i}", f"a dreadful answer {i}", "helpful"
        )
        for i in range(n)
    ]


def test_an_ngram_model_learns_from_pairs_and_loads_back(tmp_path):
    pairs = [*good_pairs(), PreferencePair([], "dreadful", "splendid", "helpful", tie=True)]
    model = NGrams.fit(pairs, ["helpful"])
    texts = ["a splendid one", "<think>splendid</think>a dreadful one", ""]
    rewards = model.score(texts)
    assert rewards.shape == (3, 1)
    assert rewards[0, 0] > 0 > rewards[1, 0]  # the thought is not read
    model.save(tmp_path)
    again, no_tokenizer = load_reward_model(str(tmp_path))
    np.testing.assert_array_equal(again.score(texts), rewards)
    assert no_tokenizer is None


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A panel of two objectives: three members for the first (two heads and n-grams), one for the second."""
    folder = tmp_path_factory.mktemp("members")
    tiny_classifier(folder / "trunk", 3, seed=0)
    NGrams.fit(good_pairs(), ["helpful"]).save(folder / "ngrams")
    specs = [
        RewardModelSpec("helpful", "trunk", logit=0, max_length=64),
        RewardModelSpec("helpful", "trunk", logit=1, max_length=64),
        RewardModelSpec("helpful", "ngrams"),
        RewardModelSpec("harmless", "trunk", logit=2, max_length=64),
    ]
    panel = RewardPanel.build(specs, folder)
    panel.fit_stats(PROMPTS, COMPLETIONS, "four texts")
    panel.save_pretrained(folder)
    return folder


def test_a_reward_is_the_mean_of_its_standardized_members(members):
    panel = RewardPanel.from_pretrained(members)
    assert panel.objective_names == NAMES
    alone = [
        RewardPanel.build([RewardModelSpec("x", s.source, logit=s.logit, max_length=64)], members)
        for s in panel.specs
    ]
    outputs = np.hstack([p.score(PROMPTS, COMPLETIONS) for p in alone])
    z = (outputs - outputs.mean(axis=0)) / outputs.std(axis=0)
    rewards, scores = panel.score_with_members(PROMPTS, COMPLETIONS)
    spread = member_spread(scores)
    np.testing.assert_allclose(rewards[:, 0], z[:, :3].mean(axis=1), atol=2e-2)
    np.testing.assert_allclose(spread[:, 0], z[:, :3].std(axis=1, ddof=1), atol=3e-2)
    np.testing.assert_allclose(scores[:, :, 0], z[:, :3].T, atol=3e-2)
    np.testing.assert_array_equal(scores[0, :, 1], rewards[:, 1])
    assert np.isnan(scores[1:, :, 1]).all() and np.isnan(spread[:, 1]).all()
    standardized = panel.stats.normalize(scores)
    np.testing.assert_allclose(
        standardized[:, :, 0].mean(axis=0), panel.stats.normalize(rewards)[:, 0], atol=1e-5
    )
    np.testing.assert_array_equal(panel.score(PROMPTS, COMPLETIONS), rewards)


def test_the_members_units_count_in_the_fingerprint(members, separate):
    panel = RewardPanel.from_pretrained(members)
    assert panel.fingerprint() == RewardPanel.from_pretrained(members).fingerprint()
    panel.fit_stats(PROMPTS[:3], ["a", "b c", "d e f"], "other texts")
    assert panel.fingerprint() != RewardPanel.from_pretrained(members).fingerprint()


# ---------------------------------------------------------------- models and loss


def loss_of(logits, head, tie=None, smoothing=0.0):
    """The loss of pairs (B,) whose chosen texts are the first B logits (2B, K) and whose rejected texts the last."""
    B = len(head)
    pair = torch.arange(2 * B).view(2, B).T
    tie = torch.zeros(B, dtype=torch.bool) if tie is None else tie
    return bradley_terry_loss(logits[..., None], pair, head, tie, torch.ones(B, 1), smoothing)


def test_the_bradley_terry_loss_by_hand():
    # Head 1 of pair 0: margin 3 - 1 = 2; head 0 of pair 1: margin 0 - 1 = -1.
    logits = torch.tensor([[9.0, 3.0], [0.0, 9.0], [9.0, 1.0], [1.0, 9.0]])
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2
    loss = loss_of(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_tie_pulls_the_margin_to_zero_from_both_sides():
    tie = torch.tensor([True])

    def loss(margin):
        return loss_of(torch.tensor([[margin], [0.0]]), torch.tensor([0]), tie).item()

    # (-log sigmoid(m) - log sigmoid(-m)) / 2, by hand at m = 0: log 2.
    assert loss(0.0) == pytest.approx(math.log(2))
    assert loss(1.5) == pytest.approx(loss(-1.5))
    assert loss(1.5) == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.5))) / 2)


def test_label_smoothing_gives_every_margin_a_best_value():
    def loss(margin, smoothing):
        return loss_of(torch.tensor([[margin], [0.0]]), torch.tensor([0]), None, smoothing).item()

    # (1 - e) (-log sigmoid(m)) + e (-log sigmoid(-m)), by hand; least where sigmoid(m) = 1 - e.
    by_hand = 0.8 * math.log1p(math.exp(-1.5)) + 0.2 * math.log1p(math.exp(1.5))
    assert loss(1.5, 0.2) == pytest.approx(by_hand)
    best = math.log(0.8 / 0.2)
    assert loss(best, 0.2) < min(loss(best - 0.1, 0.2), loss(best + 0.1, 0.2))
    assert loss(9.0, 0.0) < loss(8.0, 0.0)


def test_each_member_learns_from_its_own_weights_of_the_pairs():
    # Two pairs, one objective, two members; member 0 counts only pair 0, member 1 only pair 1.
    logits = torch.tensor([[[1.0, 1.0]], [[2.0, 5.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    pair = torch.tensor([[0, 2], [1, 3]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    none = torch.zeros(2, dtype=torch.bool)
    loss = bradley_terry_loss(logits, pair, torch.zeros(2, dtype=torch.long), none, weight)
    by_hand = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-5.0))) / 4
    assert loss.item() == pytest.approx(by_hand)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 12), st.integers(0, 99))
def test_the_pairs_of_a_prompt_share_a_batch_where_they_fit_in(groups, batch_size, seed):
    lengths = [(7 * group) % 5 for group in groups]
    order = training_order(lengths, [1] * len(groups), batch_size, seed, groups)
    assert sorted(order) == list(range(len(groups)))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    torn = sum(sum(g in {groups[row] for row in b} for b in batches) > 1 for g in set(groups))
    assert torn <= len(batches)  # the end of a batch splits one group at most


def test_all_pairs_are_seen_in_every_epoch_a_prompts_together():
    lengths = [10, 90, 10, 10, 90, 50, 50, 10]
    groups = [0, 1, 2, 0, 2, 3, 1, 0]
    order = training_order(lengths, [2] * 8, 4, 0, groups)
    assert sorted(order) == sorted([*range(8)] * 2)
    for epoch in (order[:8], order[8:]):
        for group in range(4):
            places = [i for i, row in enumerate(epoch) if groups[row] == group]
            assert places == list(range(places[0], places[0] + len(places)))


def test_a_text_in_several_pairs_of_a_batch_is_read_once(tmp_path):
    model, tok = new_reward_model(tiny_encoder(tmp_path / "base"), 1)
    prompt = [{"role": "user", "content": "Hi"}]
    pairs = [
        PreferencePair(prompt, "good", "bad", "helpful"),
        PreferencePair(prompt, "good", "worse", "helpful"),
    ]
    rows = tokenize_pairs(tok, pairs, ("helpful",), [1, 1], 2, 32, 0)
    args = training_arguments(tmp_path / "out", len(rows), 2, 1e-3, 0)
    trainer = BradleyTerryTrainer(model, tok, args, rows)
    batch = trainer.data_collator([rows[0], rows[1]])
    assert len(batch["input_ids"]) == 3
    assert batch["pair"][:, 0].tolist() == [0, 0]
    loss = trainer.compute_loss(model, dict(batch))
    with torch.no_grad():
        r = {
            t: model(**tok("Hi", t, return_tensors="pt")).logits.item()
            for t in ("good", "bad", "worse")
        }
    by_hand = sum(math.log1p(math.exp(r[t] - r["good"])) for t in ("bad", "worse")) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("pooling", ["own", "mean"])
@pytest.mark.parametrize("method", ["full", "upper", "lora", "heads"])
def test_each_method_moves_what_it_says_and_loads_back(tmp_path, method, pooling):
    base = tiny_encoder(tmp_path / "base")
    recipe = {
        "base": base,
        "num_labels": 3,
        "method": method,
        "upper_layers": 1,
        "pooling": pooling,
    }
    recipe["lora"] = {"r": 4, "lora_alpha": 8}
    model, tok = new_reward_model(**recipe)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    inputs = tok(["good"] * 2 + ["bad"] * 2, ["a", "b", "c", "d"], return_tensors="pt")
    for _ in range(3):  # a LoRA's A moves once its B is off zero
        loss = loss_of(model(**inputs).logits, torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        # A bias on the reward cancels in the margin; embeddings of unseen tokens get no gradient.
        # Under the mean, so does the last layer's bias.
        idle = name.endswith(("classifier.bias", "layer.1.output.LayerNorm.bias"))
        idle = idle or "embeddings" in name
        if parameter.requires_grad and not idle:
            assert not torch.equal(parameter, before[name]), f"{name} did not move"
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), f"{name} moved"
    save_reward_model(model, tmp_path / "saved", recipe)
    again, _ = load_reward_model(str(tmp_path / "saved"))
    with torch.no_grad():
        np.testing.assert_allclose(
            again(**inputs).logits.float().numpy(), model.eval()(**inputs).logits.numpy(), atol=0.05
        )
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert (size > 1_000_000) == (
        method == "full"
    )  # the embeddings are in the base, unless they moved


@pytest.mark.parametrize("method", ["full", "upper", "lora"])
def test_a_causal_trunk_learns_by_each_method_and_loads_back(tmp_path, method):
    """Qwen2 in small, as its base models are published: chat input, the reward read at the last token."""
    recipe = {"base": tiny_qwen(tmp_path / "base"), "num_labels": 3, "method": method}
    recipe |= {"upper_layers": 1, "pooling": "own", "lora": {"r": 4, "lora_alpha": 8}}
    model, tok = new_reward_model(**recipe)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rows = encode(
        tok, [[{"role": "user", "content": "Hi"}]] * 4, ["a", "b c", "d", "e"], "chat", 64
    )
    inputs = collate(tok, rows)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        loss = loss_of(model(**inputs).logits, torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moved == free
    assert any(n.startswith("score") for n in free)
    trunk = {n for n in free if not n.startswith("score")}
    if method == "upper":
        assert trunk and all("layers.1." in n or n == "model.norm.weight" for n in trunk)
    elif method == "lora":
        assert trunk and all("lora_" in n for n in trunk)
    else:
        assert free == set(before)
    save_reward_model(model, tmp_path / "saved", recipe)
    again, tok = load_reward_model(str(tmp_path / "saved"))
    with torch.no_grad():
        np.testing.assert_allclose(
            again(**inputs).logits.float().numpy(), model.eval()(**inputs).logits.numpy(),
            atol=0.05, rtol=0.02,
        )  # fmt: skip


def test_the_upper_layers_of_gpt2(tmp_path):
    model, _ = new_reward_model(tiny_gpt2(tmp_path), 1, "upper", upper_layers=1)
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in free and "transformer.ln_f.weight" in free
    assert all(
        ".h.1." in n
        for n in free - {"score.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}
    )


def test_a_trunk_cut_short_keeps_its_lower_layers(tmp_path):
    base = tiny_qwen(tmp_path / "base")
    recipe = {"base": base, "num_labels": 1, "method": "upper", "upper_layers": 1, "pooling": "own"}
    recipe |= {"lora": None, "trunk_layers": 1}
    whole, _ = new_reward_model(**recipe | {"trunk_layers": None})
    short, tok = new_reward_model(**recipe)
    assert [len(m.model.layers) for m in (whole, short)] == [2, 1]
    assert torch.equal(
        short.model.layers[0].mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight
    )
    save_reward_model(short, tmp_path / "saved", recipe)
    again, _ = load_reward_model(str(tmp_path / "saved"))
    inputs = tok(["good", "bad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        np.testing.assert_allclose(
            again(**inputs).logits.float(), short.eval()(**inputs).logits, atol=0.05, rtol=0.02
        )
    with pytest.raises(StorageError, match="got trunk_layers 3, it has 2"):
        new_reward_model(base, 1, trunk_layers=3)


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of"):
        new_reward_model("x", 1, "half")
