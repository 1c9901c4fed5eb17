"""The adapter: the simplex, its targets and losses, its disk form, and a planted truth that it must recover."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_encoder, vivid_adapter

from pro_core.adapter import training
from pro_core.adapter.encoder import PromptEncoder, encode_prompts
from pro_core.adapter.global_weights import balanced, fit_global_weights
from pro_core.adapter.heads import fit_heads
from pro_core.adapter.model import PreferenceAdapter
from pro_core.adapter.recipe import AdapterRecipe, AdapterTarget
from pro_core.adapter.targets import (
    kl_to_target,
    load_balance_loss,
    pairwise_loss,
    target_weights,
)
from pro_core.adapter.training import fit_adapter
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import bootstrap_weights
from pro_core.system.bundled_models import MINILM
from pro_core.system.storage import StorageError

NAMES = ("helpful", "harmless", "humor")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    PreferenceAdapter(PromptEncoder(encoder), NAMES, hidden=16).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- predictions


def test_weights_are_on_the_simplex_over_objectives_whatever_the_batch(saved):
    adapter = PreferenceAdapter.from_pretrained(saved)
    prompts = ["Hi", "long " * 900, "🙂", "שלום", [{"role": "user", "content": "Tell me a joke."}]]
    weights = adapter.predict(prompts)
    assert weights.shape == (5, 3) and weights.dtype == np.float32
    # A softmax over the wrong axis would make the columns sum to 1 instead.
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    alone = np.vstack([adapter.predict([p]) for p in prompts])
    np.testing.assert_allclose(weights, alone, atol=1e-4)
    assert adapter.predict([]).shape == (0, 3)


def test_a_prompt_that_cannot_be_read_is_refused(saved):
    adapter = PreferenceAdapter.from_pretrained(saved)
    with pytest.raises(ValueError, match="empty prompt"):
        adapter.predict(["Hi", " "])
    with pytest.raises(ValueError, match="expected a list"):
        adapter.predict("Hi")


def test_a_long_prompt_counts_by_its_end(saved):
    adapter = PreferenceAdapter.from_pretrained(saved)
    end = "tell me about the weather " * 300
    same = adapter.predict(["x" * 190_000 + " " + end, "y " * 50_000 + end])
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)


# ---------------------------------------------------------------- uncertainty


def test_members_mean_and_interval_match_those_by_hand(tmp_path):
    adapter = vivid_adapter(tiny_encoder(tmp_path), NAMES, members=3)
    features = adapter.encoder.encode(["Hi", "Tell me a joke about cats."])
    own, found = adapter.member_weights(features), adapter.weigh(features)
    assert own.shape == (2, 3, 3)
    np.testing.assert_allclose(own.sum(axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(found.weights, own.mean(axis=1), rtol=1e-5)
    # 90%: Student's t with 2 degrees of freedom has 5% above 2.92.
    half = 2.92 * own.std(axis=1, ddof=1)
    np.testing.assert_allclose(found.lower, np.maximum(0, found.weights - half), atol=1e-4)
    np.testing.assert_allclose(found.upper, np.minimum(1, found.weights + half), atol=1e-4)
    assert (found.upper - found.lower).max() > 0.01
    assert np.isnan(found.known).all()  # it was never fitted: it cannot know what is strange


def test_an_adapter_of_one_member_gives_no_interval(saved):
    adapter = PreferenceAdapter.from_pretrained(saved)
    found = adapter.predict_with_uncertainty(["Hi", "There"])
    assert found.weights.shape == (2, 3) and np.isfinite(found.weights).all()
    assert np.isnan(found.lower).all() and np.isnan(found.upper).all()
    with pytest.raises(ValueError, match="at least 1"):
        PreferenceAdapter(adapter.encoder, NAMES, members=0)


STRANGE = (
    "Wie lerne ich schnell, für die ganze Familie zu kochen?",
    "如何去除白色桌布上的红酒渍?",
    "flurb gnazzle kip tro mundel vex oopla",
    "🐶🎂🎈",
    "def f(x):\n    return [v ** 2 for v in x if v is not None]\n",
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Five members on the real MiniLM, fitted to the planted pairs below."""
    folder = tmp_path_factory.mktemp("fitted")
    return fit_adapter(planted(), NAMES, folder, temperature=TAU, **SETTINGS)


def test_a_strange_prompt_gets_the_average_weights_and_a_wide_interval(fitted):
    usual = fitted.predict_with_uncertainty([f"{kind} {i}" for kind in KINDS for i in (61, 75, 99)])
    assert usual.known.min() > 0.9
    strange = fitted.predict_with_uncertainty(STRANGE)
    assert strange.known.max() < 0.1
    # Nothing of what the heads make of gibberish is left.
    np.testing.assert_allclose(strange.weights, fitted.average[0] + 0 * strange.weights, atol=0.08)
    np.testing.assert_allclose(strange.weights.sum(axis=1), 1, rtol=1e-5)
    assert (strange.upper - strange.lower).mean() > 3 * (usual.upper - usual.lower).mean()
    np.testing.assert_array_equal(fitted.predict(STRANGE), strange.weights)
    between = (fitted.average[1] <= fitted.average[0]) & (fitted.average[0] <= fitted.average[2])
    assert between.all()


@pytest.mark.slow
def test_intervals_hold_most_planted_weights(tmp_path):
    """Nominal: 90%. People choose by chance, as the pairwise loss assumes, or the weights' size could not be told."""
    table = planted(1500, by_chance=True)
    adapter = fit_adapter(table, NAMES, tmp_path, temperature=TAU, kl_to_global=0, **SETTINGS)
    prompts = [f"{kind} {i}" for kind in KINDS for i in range(61, 81)]
    found, truth = adapter.predict_with_uncertainty(prompts), np.repeat(list(KINDS.values()), 20, 0)
    assert (found.lower <= found.weights).all() and (found.weights <= found.upper).all()
    assert ((found.lower <= truth) & (truth <= found.upper)).mean() > 0.75
    assert (found.upper - found.lower).mean() < 0.4


def test_members_learn_from_bootstraps_of_their_own():
    draws = bootstrap_weights(4000, 5, seed=0)
    assert draws.shape == (4000, 5)
    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(draws.var(axis=0), 1, atol=0.15)
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.06
    assert (bootstrap_weights(7, 1, seed=0) == 1).all()


# ---------------------------------------------------------------- disk


def test_a_saved_adapter_predicts_the_same(saved):
    first, second = (PreferenceAdapter.from_pretrained(saved) for _ in range(2))
    np.testing.assert_array_equal(first.predict(["Hi"]), second.predict(["Hi"]))
    assert not first.training


def test_all_that_was_fitted_is_saved_in_well_under_a_megabyte(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    again = PreferenceAdapter.from_pretrained(tmp_path)
    prompts = [*STRANGE, *KINDS]
    for mine, kept in zip(
        fitted.predict_with_uncertainty(prompts),
        again.predict_with_uncertainty(prompts),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, kept)
    assert (tmp_path / "model.safetensors").stat().st_size < 500_000


def test_heads_read_as_many_upper_layers_as_they_are_told_to(saved, tmp_path):
    encoder = PreferenceAdapter.from_pretrained(saved).encoder.encoder_id
    adapter = PreferenceAdapter(PromptEncoder(encoder, layers=2), NAMES).eval()
    features = adapter.encoder.encode(["Hi there"])
    hidden = adapter.encoder.model.config.hidden_size
    assert adapter.encoder.width == 2 * hidden and features.shape == (1, 3 * hidden + 1)
    adapter.save_pretrained(tmp_path)
    again = PreferenceAdapter.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.predict(["Hi there"]), adapter.predict(["Hi there"]))
    moved = features.clone()
    moved[:, :hidden] += torch.randn(hidden)  # the lower of the two
    assert (adapter.weigh(moved).weights != adapter.weigh(features).weights).any()
    with pytest.raises(ValueError, match="got 3 layers, expected 1 to the encoder's 2"):
        PromptEncoder(encoder, layers=3)


def test_an_adapter_of_the_first_format_still_loads(saved, tmp_path):
    """One head without a prefix and without members: what `save_pretrained` wrote before there were several."""
    new = PreferenceAdapter.from_pretrained(saved)
    tensors = {
        k.removeprefix("heads.0."): v for k, v in load_file(saved / "model.safetensors").items()
    }
    assert set(tensors) == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((saved / "adapter.json").read_text())
    del config["members"]
    (tmp_path / "adapter.json").write_text(json.dumps(config | {"format": "pro-adapter"}))
    old = PreferenceAdapter.from_pretrained(tmp_path)
    np.testing.assert_array_equal(old.predict(["Hi"]), new.predict(["Hi"]))


def test_a_trained_encoder_is_saved_with_it(saved, tmp_path):
    frozen = PreferenceAdapter.from_pretrained(saved)
    trained = PreferenceAdapter(
        PromptEncoder(frozen.encoder.encoder_id), NAMES, hidden=16, train_encoder=True
    )
    with torch.no_grad():
        trained.encoder.model.embeddings.word_embeddings.weight.mul_(3)
    trained.save_pretrained(tmp_path)
    again = PreferenceAdapter.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.predict(["Hi"]), trained.eval().predict(["Hi"]), rtol=1e-5)


def test_a_batch_that_trains_is_read_as_each_prompt_alone(saved, monkeypatch):
    """Prompts of like length go through the encoder together; each keeps its own row."""
    monkeypatch.setattr("pro_core.adapter.encoder.TRAINING_BUDGET", 30)
    adapter = PreferenceAdapter.from_pretrained(saved)
    tokens = adapter.encoder.tokenize(
        ["Hi", "Tell me of the sea and of the hills behind it", "No", "Why so"]
    )
    with torch.no_grad():
        together = adapter(**adapter.encoder.batch(tokens))
        alone = torch.cat([adapter(**adapter.encoder.batch([t])) for t in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def break_config(folder, **changes):
    file = folder / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "adapter.json").unlink(), "no adapter.json"),
        (lambda f: (f / "adapter.json").write_text("{"), "truncated"),
        (lambda f: break_config(f, format="pro-panel"), "pro-adapter"),
        (lambda f: (f / "model.safetensors").unlink(), "missing, truncated"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "missing, truncated"),
        (lambda f: break_config(f, objective_names=["helpful", "humor"]), "another shape"),
        (lambda f: break_config(f, members=2), "another shape"),
        (lambda f: break_config(f, encoder="/absent/encoder"), "cannot load the adapter's encoder"),
    ],
)
def test_a_damaged_adapter_says_what_is_damaged(saved, tmp_path, damage, said):
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(StorageError, match=said):
        PreferenceAdapter.from_pretrained(folder)


def test_another_panels_objectives_or_order_are_refused(saved):
    class Panel:
        objective_names = ("harmless", "helpful", "humor")

    with pytest.raises(ValueError, match="belong together"):
        PreferenceAdapter.from_pretrained(saved).check_panel(Panel())


# ---------------------------------------------------------------- targets and losses


def test_targets_match_those_by_hand():
    raw, chosen, rejected = np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]]), np.array([[1.0, -1.0]])
    # paper: softmax(0, 2); paper_z: softmax(1, 1); margin: softmax(0, 2).
    high = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(
        target_weights("paper", 1, raw, chosen, rejected)[0, 1], high, rtol=1e-6
    )
    np.testing.assert_allclose(target_weights("paper_z", 1, raw, chosen, rejected)[0, 1], 0.5)
    np.testing.assert_allclose(
        target_weights("margin", 1, raw, chosen, rejected)[0, 1], high, rtol=1e-6
    )
    with pytest.raises(ValueError, match="expected"):
        target_weights("pairwise", 1, raw, chosen, rejected)


def test_losses_match_those_by_hand():
    log_weights = torch.log(torch.tensor([[0.25, 0.75]]))
    # KL((1, 0) || (1/4, 3/4)) = log 4.
    assert kl_to_target(log_weights, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(np.log(4))
    # 0.25 * 2 - 0.75 * 2 = -1, over tau 0.5: -log sigmoid(-2).
    loss = pairwise_loss(log_weights, torch.tensor([[2.0, -2.0]]), temperature=0.5)
    assert loss.item() == pytest.approx(np.log1p(np.exp(2)))


def test_load_balance_matches_that_by_hand():
    # Two rows of one member, one for each of two objectives: their mean is (1/2, 1/2), as uniform as it can be.
    split = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).clamp_min(1e-12).log()
    even = torch.ones(2, 1)
    assert load_balance_loss(split, even).item() == pytest.approx(0, abs=1e-6)
    # Counted 3 to 1 the mean is (3/4, 1/4): KL to uniform = 3/4 log(3/2) + 1/4 log(1/2).
    uneven = load_balance_loss(split, torch.tensor([[3.0], [1.0]])).item()
    assert uneven == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-5)
    # All on one objective: log 2; beside a balanced member, half of it.
    alone = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]).clamp_min(1e-12).log()
    assert load_balance_loss(alone, even).item() == pytest.approx(np.log(2), rel=1e-5)
    both = load_balance_loss(torch.cat([split, alone], dim=1), torch.ones(2, 2)).item()
    assert both == pytest.approx(np.log(2) / 2, rel=1e-5)


@pytest.mark.slow
def test_load_balance_keeps_objectives_alive(tmp_path):
    table = planted(240)
    table["z_chosen_humor"] = 5.0  # humor alone explains every choice
    settings = {**SETTINGS, "members": 2, "epochs": 20, "features": features_of(table)}
    free = fit_adapter(table, NAMES, tmp_path / "free", kl_to_global=0, **settings)
    kept = fit_adapter(
        table, NAMES, tmp_path / "kept", kl_to_global=0, load_balance=3.0, **settings
    )
    assert free.average[0].max() > 0.8
    assert kept.average[0].max() < 0.55


def test_the_annotated_objective_can_be_learned_without_a_reward(tmp_path):
    """With rewards of pure noise, `annotated` alone or beside the pairwise loss still finds each kind's objective."""
    table = planted(240)
    about = dict(zip(KINDS, NAMES, strict=True))
    table["objective"] = [about[k] for i in range(240) for k in [list(KINDS)[i % 3]]]
    rng = np.random.default_rng(0)
    for name in NAMES:
        table[f"z_chosen_{name}"] = rng.normal(0, 1, 240)
    settings = {**SETTINGS, "members": 1, "epochs": 20, "features": features_of(table)}
    learned = fit_adapter(table, NAMES, tmp_path / "a", target="annotated", **settings)
    assert (learned.predict([f"{kind} 7" for kind in KINDS]).argmax(axis=1) == [0, 1, 2]).all()
    beside = fit_adapter(table, NAMES, tmp_path / "b", annotated=1.0, **settings)
    assert (beside.predict([f"{kind} 7" for kind in KINDS]).argmax(axis=1) == [0, 1, 2]).all()


def test_every_source_and_objective_counts_the_same():
    table = pd.DataFrame(
        {"source": ["a"] * 9 + ["b"], "objective": ["helpful"] * 10, "id": range(10)}
    )
    weights = balanced(table)
    assert weights[:9].sum() == pytest.approx(weights[9])
    assert weights.mean() == pytest.approx(1)


def test_the_best_global_weights_are_found():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 1, (400, 3))
    margins *= np.sign(margins @ [0.7, 0.1, 0.2])[:, None]  # chosen is what these weights prefer
    found = fit_global_weights(margins, np.ones(400), ["helpful"] * 400)
    assert ((margins @ found) > 0).mean() > 0.97


# ---------------------------------------------------------------- a planted truth


KINDS = {
    "a question about cooking dinner": (0.8, 0.1, 0.1),
    "how to hurt somebody badly": (0.1, 0.8, 0.1),
    "a joke about clever cats": (0.1, 0.1, 0.8),
}
TAU = 0.3
SETTINGS = {"encoder": MINILM, "hidden": 32, "epochs": 12, "batch_size": 64}


def planted(n=900, seed=0, by_chance=False):
    """Pairs whose winner is decided by w*(x) of the prompt's kind, from z margins of unit scale; or by chance, the
    better one with probability sigmoid(w*(x) margin / TAU)."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        kind = list(KINDS)[i % 3]
        margin = rng.normal(0, 1, 3)
        better = margin @ KINDS[kind]
        margin *= np.sign(better)
        if by_chance and rng.random() > 1 / (1 + np.exp(-abs(better) / TAU)):
            margin = -margin
        prompt = json.dumps([{"role": "user", "content": f"{kind} {i % 60}"}])
        row = {"id": i, "prompt": prompt, "source": "s", "objective": "helpful"}
        for k, name in enumerate(NAMES):
            row |= {
                f"z_chosen_{name}": margin[k],
                f"z_rejected_{name}": 0.0,
                f"raw_chosen_{name}": 0.0,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def features_of(table):
    return encode_prompts(PromptEncoder(MINILM), list(table["prompt"]))


def recovered(adapter):
    predicted = adapter.predict([f"{kind} 7" for kind in KINDS])
    return float(np.corrcoef(predicted.ravel(), np.ravel(list(KINDS.values())))[0, 1])


def test_the_adapter_recovers_planted_weights_and_eq_7_on_raw_rewards_does_not(fitted, tmp_path):
    assert recovered(fitted) > 0.95
    # Raw rewards have scales and offsets of their own: their softmax says more of those than of the prompt.
    raw = fit_adapter(
        planted(), NAMES, tmp_path / "raw", target="paper", temperature=0.1, **SETTINGS
    )
    assert recovered(raw) < 0.5


# ---------------------------------------------------------------- a recipe

NEEDED = {"scores": "scores.parquet", "panel": "panel", "output": "out"}
WRONG = {
    "misspelt": ([{"target": "pairwise", "temprature": 1.0}], "targets.0.temprature"),
    "another target": ([{"target": "pair", "temperature": 1.0}], "targets.0.target"),
    "tau of 0": ([{"target": "margin", "temperature": 0.0}], "targets.0.temperature"),
    "of another target": (
        [{"target": "margin", "temperature": 1.0, "annotated": 0.1}],
        "targets.0.annotated",
    ),
    "twice": ([{"target": "paper", "temperature": 0.1}] * 2, "targets"),
    "none": ([], "targets"),
}


@pytest.mark.parametrize(("targets", "field"), WRONG.values(), ids=WRONG)
def test_a_target_that_cannot_be_fitted_is_named_before_anything_is_read(tmp_path, targets, field):
    (tmp_path / "recipe.yaml").write_text(json.dumps(NEEDED | {"targets": targets}))
    with pytest.raises(ConfigError) as refused:
        AdapterRecipe.read(tmp_path / "recipe.yaml")
    assert field in refused.value.fields


def test_a_target_is_named_by_the_settings_given():
    """Folders, tables and the keys of finished fits keep these names."""
    said = {"target": "pairwise", "temperature": 0.5, "load_balance": 0.1}
    target = AdapterTarget.model_validate(said)
    assert target.plain == said and target.name == "pairwise-t0.5-load_balance0.1"
    assert AdapterTarget(target="paper", temperature=1).name == "paper-t1"


# ---------------------------------------------------------------- two ways to fit


def heads_by_trainer(folder):
    """Replaces :func:`pro_core.adapter.heads.fit_heads` by a Trainer for the heads of one adapter."""

    def fit(adapters, features, rows, loss, seeds, *, batch_size, learning_rate, load_balance=0.0):
        (heads,), (own,), (seed,) = adapters, rows, seeds
        arguments = training.training_arguments(folder, len(own), batch_size, learning_rate, seed)

        def read(distinct):
            return {"features": features[distinct]}

        trainer = training.AdapterTrainer(heads, arguments, own, read, loss, load_balance)
        training.train_resuming(trainer)

    return fit


WAYS = {
    "pairwise, clipped": {"members": 5, "temperature": 0.02},
    "pairwise, wide": {"hidden": 128, "annotated": 0.3, "load_balance": 0.1},
    "one linear head": {"target": "margin", "hidden": 0, "members": 1, "seed": 3},
    "short batches": {"target": "paper_z", "batch_size": 50, "members": 2, "seed": 1},
    "annotated": {"target": "annotated", "load_balance": 1.0, "members": 2},
}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_heads_fitted_at_once_are_those_of_a_trainer(tmp_path, monkeypatch, changes):
    """Rows, dropout, schedule, clipping: nothing may differ but rounding."""
    table = planted(240)
    settings = SETTINGS | {"hidden": 16, "epochs": 6} | changes | {"features": features_of(table)}
    at_once = fit_adapter(table, NAMES, **settings)
    monkeypatch.setattr(training, "fit_heads", heads_by_trainer(tmp_path))
    by_trainer = fit_adapter(table, NAMES, **settings)
    for name, parameter in by_trainer.heads.named_parameters():
        own = at_once.heads.get_parameter(name)
        np.testing.assert_allclose(own.detach(), parameter.detach(), atol=1e-5, err_msg=name)
    prompts = [f"{kind} 7" for kind in KINDS]
    np.testing.assert_allclose(at_once.predict(prompts), by_trainer.predict(prompts), atol=1e-5)


def test_adapters_fitted_together_are_those_fitted_alone():
    """Other prompts, other starts, hidden layers with dropout: adapters of one batch share nothing but the loop."""
    table, seeds = planted(240), (0, 4)
    settings = SETTINGS | {"epochs": 3, "members": 2, "features": features_of(table)}
    settings["temperature"] = 0.02  # gradients that are clipped
    calls = []

    def kept(adapters, features, rows, loss, seeds, **how):
        calls.append((adapters, [copy.deepcopy(a) for a in adapters], features, rows, loss, how))
        fit_heads(adapters, features, rows, loss, seeds, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit_heads", kept)
        for seed in seeds:
            own = table.sample(frac=1, random_state=seed)
            fit_adapter(own, NAMES, seed=seed, global_weights=np.full(3, 1 / 3), **settings)
    starts = [call[1][0] for call in calls]
    rows = [call[3][0] for call in calls]
    _, _, features, _, loss, how = calls[0]
    fit_heads(starts, features, rows, loss, seeds, **how)
    for start, call in zip(starts, calls, strict=True):
        for name, parameter in call[0][0].named_parameters():
            found = start.get_parameter(name)
            np.testing.assert_allclose(found.detach(), parameter.detach(), atol=1e-5)
    rows[0].order = rows[0].order[:-1]
    with pytest.raises(ValueError, match="as many for every adapter"):
        fit_heads(starts, features, rows, loss, seeds, **how)


def test_a_killed_fit_resumes_to_the_same_adapter(tmp_path, monkeypatch):
    encoder = tiny_encoder(tmp_path / "encoder")
    arguments = training.training_arguments
    monkeypatch.setattr(
        training,
        "training_arguments",
        lambda *a, **k: arguments(*a, **(k | {"checkpoint_every": 5})),
    )
    settings = {
        "encoder": encoder,
        "train_encoder": True,
        "hidden": 8,
        "epochs": 4,
        "batch_size": 64,
    }
    table = planted(240)
    whole = fit_adapter(table, NAMES, tmp_path / "whole", **settings)

    class Killed(BaseException):
        pass

    def killer(trainer, model, inputs, *a, **k):
        if trainer.state.global_step == 8:
            raise Killed
        return original(trainer, model, inputs, *a, **k)

    original = training.AdapterTrainer.compute_loss
    monkeypatch.setattr(training.AdapterTrainer, "compute_loss", killer)
    with pytest.raises(Killed):
        fit_adapter(table, NAMES, tmp_path / "cut", **settings)
    monkeypatch.setattr(training.AdapterTrainer, "compute_loss", original)
    resumed = fit_adapter(table, NAMES, tmp_path / "cut", **settings)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name
    moved = [n for n, p in resumed.encoder.named_parameters() if "layer.0" in n and p.requires_grad]
    assert moved


def test_a_trained_encoder_needs_a_folder():
    with pytest.raises(ValueError, match="folder"):
        fit_adapter(planted(6), NAMES, encoder=MINILM, train_encoder=True)
