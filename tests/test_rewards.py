"""Reward models: token-budget batches, statistics, the panel, its disk form and its errors."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_classifier, tiny_encoder, tiny_gpt2, tiny_qwen, tokenizer

from pro_core.rewards.batching import collate, encode, token_budget_batches
from pro_core.rewards.bradley_terry import bradley_terry_loss, grouped_by_length
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.models import new_reward_model, save_reward_model
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
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
        (lambda f: break_config(f, models=BEYOND * 2), "two objectives"),
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


# ---------------------------------------------------------------- models and loss


def test_the_bradley_terry_loss_by_hand():
    # Head 1 of pair 0: margin 3 - 1 = 2; head 0 of pair 1: margin 0 - 1 = -1.
    logits = torch.tensor([[9.0, 3.0], [0.0, 9.0], [9.0, 1.0], [1.0, 9.0]])
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2
    loss = bradley_terry_loss(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_tie_pulls_the_margin_to_zero_from_both_sides():
    tie = torch.tensor([True])

    def loss(margin):
        return bradley_terry_loss(torch.tensor([[margin], [0.0]]), torch.tensor([0]), tie).item()

    # (-log sigmoid(m) - log sigmoid(-m)) / 2, by hand at m = 0: log 2.
    assert loss(0.0) == pytest.approx(math.log(2))
    assert loss(1.5) == pytest.approx(loss(-1.5))
    assert loss(1.5) == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.5))) / 2)


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
        loss = bradley_terry_loss(model(**inputs).logits, torch.tensor([0, 2]))
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
        loss = bradley_terry_loss(model(**inputs).logits, torch.tensor([0, 2]))
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
