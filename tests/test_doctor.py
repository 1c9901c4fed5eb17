"""The doctor: its verdicts on planted data, its measurements by hand, its sample, cache, page and command line."""

import json
import os
import shutil
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from tiny import tiny_classifier, tiny_encoder

from pro_core.adapter.targets import pairwise_loss
from pro_core.data.schema import DataError, PreferencePair
from pro_core.doctor import __main__ as command
from pro_core.doctor import inputs, next_labels
from pro_core.doctor.gain import RIVALS, head_weights, measure_gain, solve_head
from pro_core.doctor.inputs import StoredPanel, load_pairs, sample_pairs, seen_in_training
from pro_core.doctor.measure import measure_conflict, measure_saturation, prompt_share
from pro_core.doctor.next_labels import rank_pairs, simulate_saving
from pro_core.doctor.page import render_html
from pro_core.doctor.text import WIDTH, render_text
from pro_core.doctor.verdict import ENOUGH_PROMPTS, examine
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.cache import Cache
from pro_core.system.fingerprints import fingerprint

pytestmark = pytest.mark.slow

NAMES = ("helpful", "harmless", "truthful")


# ---------------------------------------------------------------- planted data


def planted(kind: str, n: int, seed: int, per_prompt: int = 1, K: int = 3):
    """Margins (n, K), prompt features (n, 16), objectives, prompts and true weights (n, K).

    A prompt is of one of two kinds, which its features show with some noise. ``helps``: people follow the first reward
    model on the one kind and the second on the other. ``constant``: they follow the same mixture everywhere. ``noise``:
    they follow no reward model. ``agree``: all reward models prefer one response, mostly the right one. ``against``:
    people choose what the mixture rejects.
    """
    rng = np.random.default_rng(seed)
    prompt = np.arange(n) // per_prompt
    second = rng.random(prompt[-1] + 1) < 0.5
    features = rng.normal(0, 0.5, (len(second), 16))
    features[:, 0] += np.where(second, 2, -2)
    weights = np.zeros((n, K))
    if kind == "helps":
        weights[np.arange(n), second[prompt].astype(int)] = 1
    else:
        weights[:, :2] = 0.7, 0.3
    margin = rng.normal(size=(n, K))
    if kind == "agree":
        margin = np.abs(margin)
    certainty = {"noise": 0.0, "against": -3.0}.get(kind, 3.0)
    chosen = np.where(rng.random(n) < expit(certainty * (weights * margin).sum(axis=1)), 1, -1)
    if kind == "noise" and per_prompt > 1:  # a prompt's pairs go one way, whatever that is
        chosen = np.repeat(chosen[::per_prompt], per_prompt)
    objectives = np.array(NAMES)[second[prompt].astype(int)]
    return margin * chosen[:, None], features[prompt], objectives, prompt.astype(str), weights


def scores(margin, objectives, prompts, names=NAMES, seed=0):
    """A table of scores with these margins; raw scores of scale 1, 2, 3 ... and offset 0, 5, 10 ..."""
    n = len(margin)
    rng = np.random.default_rng(seed)
    texts = [[c * int(k) for k in rng.integers(20, 200, n)] for c in "ab"]
    table = {
        "id": range(n),
        "source": ["made"] * n,
        "objective": objectives,
        "split": ["test"] * n,
        "prompt": prompts,
        "text": prompts,
        "chosen": [f"{i}{t}" for i, t in enumerate(texts[0])],
        "rejected": [f"{i}{t}" for i, t in enumerate(texts[1])],
    }
    for k, name in enumerate(names):
        rejected = rng.normal(size=n)
        for side, z in (("chosen", rejected + margin[:, k]), ("rejected", rejected)):
            table[f"z_{side}_{name}"] = z
            table[f"raw_{side}_{name}"] = 5 * k + (k + 1) * z
    return pd.DataFrame(table)


def verdict_on(kind, n, seed, repeats=1, **settings):
    margin, features, objectives, prompts, _ = planted(kind, n, seed, **settings)
    return examine(scores(margin, objectives, prompts), features, NAMES, repeats=repeats, seed=seed)


def true_leads():
    """Points that the planted weights gain over uniform and over the best mixture of the first two, on 40,000 pairs."""
    margin, _, _, _, weights = planted("helps", 40_000, seed=99)
    oracle = ((weights * margin).sum(axis=1) > 0).mean()
    # By symmetry the best global weights are the same for the first two, and the third tells nothing.
    best = (margin[:, :2].mean(axis=1) > 0).mean()
    return 100 * (oracle - (margin.mean(axis=1) > 0).mean()), 100 * (oracle - best)


def test_where_an_adapter_must_help_the_verdict_says_by_how_much():
    over_uniform, over_global = true_leads()
    assert over_uniform > 15 and over_global > 10
    e = verdict_on("helps", 400, seed=0, repeats=2)
    assert e.verdict.kind == "gain"
    assert e.gain.lead["uniform"].low < over_uniform < e.gain.lead["uniform"].high
    assert e.gain.lead["best global"].low < over_global < e.gain.lead["best global"].high
    assert e.gain.kept == 1
    # It is calibrated; and the lead that follows from its slope is the one counted.
    assert e.gain.payoff.slope.low > 0.5 and e.gain.payoff.expected.low > 5
    lead = e.gain.lead["fitted global"]
    assert lead.low < e.gain.payoff.expected.value < lead.high
    # Dealt to the wrong prompts, the same weights are worth nothing.
    assert e.gain.lead["shuffled"].low > 0
    assert e.gain.accuracy["any weights"].value > e.gain.accuracy["adapter"].value
    assert all(rival in render_text(e) for rival in (*RIVALS, "shuffled", "any weights"))


@pytest.mark.parametrize("kind", ["noise", "constant"])
def test_where_prompts_do_not_matter_no_gain_is_claimed(kind):
    # Of seeds 0 to 59 at 240 pairs a gain was claimed for none with noise and for one with constant weights.
    found = [verdict_on(kind, 120, seed) for seed in range(3)]
    assert "gain" not in [e.verdict.kind for e in found]
    assert abs(np.mean([e.gain.lead["fitted global"].value for e in found])) < 2
    assert all(e.gain.payoff is None or e.gain.payoff.slope.low < 0.5 for e in found)


def test_pairs_of_one_prompt_never_stand_on_both_sides_of_a_fold():
    # With 6 pairs a prompt that all go one way, a fold that split prompts would let the head learn each prompt's way.
    margin, _, objectives, prompts, _ = planted("noise", 240, seed=1, per_prompt=6)
    own_features = np.eye(40)[prompts.astype(int)]
    gain = measure_gain(margin, own_features, objectives, prompts, np.full(240, -1), repeats=1)
    assert gain.lead["fitted global"].low <= 0


def test_reward_models_that_disagree_with_the_preferences_get_the_verdict_none():
    for kind in ("noise", "against"):
        e = verdict_on(kind, 300, seed=3)
        assert e.verdict.kind == "none" and "disagree" in e.verdict.headline
    assert any("prefers what people rejected" in note for note in e.notes)


def test_reward_models_that_never_conflict_get_the_verdict_none():
    e = verdict_on("agree", 200, seed=0)
    assert e.verdict.kind == "none" and "never conflict" in e.verdict.headline
    assert e.conflict.depends == 0 and e.conflict.opposite_KK.max() == 0


def test_too_little_data_says_how_many_pairs_would_do():
    margin, features, objectives, prompts, _ = planted("constant", 100, seed=5)
    table = scores(margin, objectives, prompts)
    e = examine(table, features, NAMES, available=9000, repeats=1)
    assert e.verdict.kind == "unclear" and "--max-pairs" in e.verdict.why[-1]
    few = examine(table[:30], features[:30], NAMES)
    assert few.verdict.kind == "unclear" and few.gain is None and "30 prompts" in few.verdict.why[0]
    render_text(few), render_html(few)


def test_none_worth_having_needs_enough_prompts():
    # Sure choices: intervals are narrow, and the same weights are right everywhere.
    margin, features, objectives, prompts, _ = planted("constant", ENOUGH_PROMPTS, seed=0)
    margin *= np.sign(margin @ [0.7, 0.3, 0])[:, None]
    e = examine(scores(margin, objectives, prompts), features, NAMES, repeats=1)
    assert e.verdict.headline == "none worth having: less than 2 points"
    half = slice(0, ENOUGH_PROMPTS // 2)
    table = scores(margin[half], objectives[half], prompts[half])
    assert examine(table, features[half], NAMES, repeats=1).verdict.kind == "unclear"


# ---------------------------------------------------------------- the head and the measurements, by hand


def test_the_head_minimizes_the_loss_of_the_adapter():
    margin, features, *_ = planted("helps", 120, seed=0)
    weight = np.linspace(0.5, 1.5, 120)
    head = solve_head(features, margin, weight, strength=0.01)
    np.testing.assert_allclose(head_weights(head, features).sum(axis=1), 1)
    # At the minimum, the gradient of the same loss written with pairwise_loss and autograd is 0.
    rows = torch.tensor(head, requires_grad=True)
    logits = torch.tensor(features) @ rows[2:] + rows[1]
    losses = pairwise_loss(torch.log_softmax(logits, -1), torch.tensor(margin), (-rows[0, 0]).exp())
    loss = (losses * torch.tensor(weight)).mean() + 0.01 * (rows[2:] ** 2).sum()
    (loss + 1e-3 * ((rows[1] ** 2).sum() + rows[0, 0] ** 2)).backward()
    gradient = rows.grad.numpy()
    assert np.abs(gradient[1:]).max() < 2e-3 and abs(gradient[0, 0]) < 2e-3
    # Infinite shrinkage leaves one weighting for all prompts.
    constant = solve_head(features, margin, weight, np.inf)
    assert np.ptp(head_weights(constant, features), axis=0).max() < 1e-12


def test_the_prompts_share_of_the_variance_is_recovered():
    rng = np.random.default_rng(0)
    offsets = np.repeat(rng.normal(0, 3, 500), 2)  # variance 9 between prompts, 1 within
    assert prompt_share(offsets + rng.normal(0, 1, 1000), np.repeat(np.arange(500), 2)) == (
        pytest.approx(0.9, abs=0.02)
    )
    alone = rng.normal(size=600)
    assert prompt_share(alone, np.arange(600) // 3) < 0.1
    assert np.isnan(prompt_share(alone, np.arange(600)))  # one response a prompt
    assert np.isnan(prompt_share(np.ones(10), np.arange(10) // 2))


def test_conflict_matches_a_calculation_by_hand():
    c = measure_conflict(
        np.array([[1.0, 2.0], [-1.0, -2.0], [1.0, -1.0], [0.0, 0.0], [1.0, -0.01]])
    )
    assert (c.right, c.wrong, c.ties, c.depends) == (0.2, 0.2, 0.2, 0.4)
    assert c.easily == 0.2  # the last pair turns for one weighting in a hundred
    assert c.opposite_KK[0, 1] == 0.4


def test_saturation_matches_a_calculation_by_hand():
    # softmax((1, 0) / tau): 0.9 < w only where 1 / tau > log 9 = 2.2; raw scores of the second model are 5 + 2 z.
    table = scores(np.array([[1.0, 0.0]]), ["helpful"], ["p"], NAMES[:2])
    for name, z in (("helpful", 1.0), ("harmless", 0.0)):
        table[f"z_chosen_{name}"] = z
        table[f"raw_chosen_{name}"] = {"helpful": 0.0, "harmless": 5.0}[name]
    raw, z = measure_saturation(table, NAMES[:2])[:4], measure_saturation(table, NAMES[:2])[4:]
    assert [s.one_hot for s in z] == [1, 1, 0, 0]
    assert [s.one_hot for s in raw] == [1, 1, 1, 1] and raw[0].largest == {
        "helpful": 0,
        "harmless": 1,
    }
    w = 1 / (1 + np.exp(-1))
    assert z[3].entropy == pytest.approx(
        -(w * np.log(w) + (1 - w) * np.log(1 - w)) / np.log(2), rel=1e-5
    )


# ---------------------------------------------------------------- what is odd


def test_one_twelve_or_constant_objectives_can_be_examined():
    margin, features, objectives, prompts, _ = planted("helps", 60, seed=0, K=12)
    one = examine(scores(margin[:, :1], ["helpful"] * 60, prompts, NAMES[:1]), features, NAMES[:1])
    assert one.verdict.headline == "none: one reward model, nothing to weigh"
    margin[:, 2] = 0
    names = [*NAMES[:2], "constant", *(f"long-objective-name-{k}" for k in range(9))]
    table = scores(margin, objectives, prompts, names)
    for side in ("chosen", "rejected"):
        table[f"raw_{side}_constant"] = table[f"z_{side}_constant"] = 0.0
    many = examine(table, features, names, repeats=1)
    assert any(note.startswith("constant: the same score") for note in many.notes)
    assert render_html(one).count("<svg") == 4 and render_html(many).count("<svg") == 13
    for e in (one, many):
        assert not [line for line in render_text(e).splitlines() if len(line) > WIDTH]
    nothing = scores(np.zeros((60, 3)), objectives, prompts)
    flat = examine(nothing, features, NAMES)
    assert flat.verdict.headline == "none: the reward models tell no two responses apart"
    render_text(flat), render_html(flat)


def test_objectives_that_the_panel_or_the_data_lacks_are_named():
    margin, features, _, prompts, _ = planted("helps", 200, seed=0)
    e = examine(scores(margin, ["overall"] * 200, prompts), features, NAMES, repeats=1)
    assert e.verdict.kind == "gain"  # people's overall choice is what the weights should predict
    assert e.objectives[0].accuracy is None and "own objective" not in e.gain.accuracy
    said = " ".join(e.notes)
    assert "overall: no reward model of that name" in said
    assert "helpful, harmless, truthful: in the panel, but no pairs" in said
    assert "no such model" in render_text(e)


def test_a_score_that_is_not_a_number_names_its_objective():
    margin, features, objectives, prompts, _ = planted("helps", 50, seed=0)
    margin[3, 1] = np.nan
    with pytest.raises(ValueError, match="harmless"):
        examine(scores(margin, objectives, prompts), features, NAMES)
    with pytest.raises(ValueError, match=r"50 pairs .* \(9, 16\)"):
        examine(scores(margin, objectives, prompts), features[:9], NAMES)


def test_a_panel_that_was_trained_on_these_pairs_is_suspected():
    # 39 prompts are not cross-validated, which is not what this is about; each has 4 pairs.
    margin, features, objectives, prompts, _ = planted("constant", 156, seed=0, per_prompt=4)

    def notes(margin):
        table = scores(margin, objectives, prompts)
        table.loc[:79, "split"] = "train"
        return examine(table, features, NAMES).notes

    assert not any("trained" in note for note in notes(margin))
    margin[:80] = np.abs(margin[:80])
    assert "--split test" in notes(margin)[-1]


def test_hostile_texts_are_inert_on_both_pages():
    margin, features, _, prompts, _ = planted("helps", 60, seed=0)
    hostile = "</text></svg><script>alert(1)</script> $x^{$ {{ 7*7 }}\x1b[2J"
    table = scores(margin, [hostile] * 30 + ["helpful"] * 30, prompts)
    table["source"] = "<img src=x onerror=alert(2)>"
    e = examine(
        table,
        features,
        NAMES,
        notes=[hostile],
        about={"panel": "<b>p</b>", "encoder": "<i>", "seed": 0},
        repeats=1,
    )
    html = render_html(e)
    assert "<script" not in html and "<img" not in html and "<b>" not in html
    assert "\x1b" not in html + render_text(e) and "49" not in html.split("{{ 7*7 }}")[0][-40:]
    outside = html.replace("http://www.w3.org/", "")
    assert "http:" not in outside and "https:" not in outside and "@import" not in outside
    assert "#01020" not in html  # every stand-in colour became a variable of the page


# ---------------------------------------------------------------- files and the sample


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(i, objective="helpful", **fields):
    texts = {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
    return {"objective": objective, **texts} | fields


def test_labelled_responses_become_pairs_and_the_rest_is_named(tmp_path):
    rows = [
        {"prompt": "Q", "response": "a", "labels": {"truthful": 1, "verbosity": 3}},
        {"prompt": "Q", "response": "b", "labels": {"truthful": 0, "verbosity": 4}},
        {"response": "a text alone", "labels": {"truthful": 1}},
        {"prompt": "R", "response": "No.", "labels": {"behaviour": "refusal"}, "prompt_unsafe": 1},
        {
            "prompt": "R",
            "response": "Yes",
            "labels": {"behaviour": "compliance"},
            "prompt_unsafe": 1,
        },
        pair(0, "overall"),
        pair(1, chosen="same", rejected="same"),
    ]
    loaded = load_pairs([write(tmp_path / "mixed.jsonl", rows)], NAMES)
    assert [(p.objective, p.chosen) for p in loaded.pairs] == [
        ("overall", "good 0"),
        ("harmless", "No."),
        ("truthful", "a"),
    ]
    said = " ".join(loaded.notes)
    assert "1 texts without a prompt" in said and "labels verbosity left out" in said
    assert "1 pairs left out" in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"prompt": "Q", "response": r, "labels": {"truthful": 1}} for r in "ab"],
            "ties give no pairs",
        ),
        (
            [
                {"prompt": "Q", "response": r, "labels": {"other": v}}
                for r, v in (("a", 1), ("b", 0))
            ],
            "other",
        ),
        ([pair(0, chosen="same", rejected="same")], "the same text"),
        (
            [{"response": r, "labels": {"truthful": v}} for r, v in (("a", 1), ("b", 0))],
            "without a prompt",
        ),
        ([], "no rows"),
    ],
)
def test_data_without_pairs_says_why(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        load_pairs([write(tmp_path / "d.jsonl", rows)], NAMES)


def test_an_unknown_source_and_an_empty_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file, and not a public set .*Anthropic/hh-rlhf"):
        load_pairs(["nothing.jsonl"], NAMES)
    path = write(tmp_path / "d.jsonl", [pair(i, split="train") for i in range(3)])
    with pytest.raises(DataError, match="none of its 3 rows is in the split 'test'"):
        load_pairs([path], NAMES, "test")


def test_the_sample_is_even_over_objectives_wide_over_prompts_and_seeded():
    def some(objective, prompts, each):
        return [
            PreferencePair(
                [{"role": "user", "content": f"{objective} {i}"}],
                f"a{j}",
                "b",
                objective,
                id=f"{i}.{j}",
            )
            for i in range(prompts)
            for j in range(each)
        ]

    pairs = some("helpful", 200, 5) + some("harmless", 10, 2) + some("truthful", 30, 20)
    sample = sample_pairs(pairs, 100, seed=1)
    counts = pd.Series([p.objective for p in sample]).value_counts()
    assert counts.to_dict() == {"helpful": 40, "truthful": 40, "harmless": 20}
    prompts = pd.Series([p.prompt[0]["content"] for p in sample]).value_counts()
    assert prompts[prompts.index.str.startswith("helpful")].max() == 1
    truthful = prompts[prompts.index.str.startswith("truthful")]
    assert len(truthful) == 30 and truthful.max() == 2  # every prompt once before any twice
    assert sample_pairs(pairs, 100, seed=1) == sample != sample_pairs(pairs, 100, seed=2)
    assert sample_pairs(pairs, 10_000) == pairs


# ---------------------------------------------------------------- the cache


def test_the_cache_computes_what_is_missing_and_survives_a_broken_file(tmp_path, capsys):
    asked = []

    def compute(rows):
        asked.append(rows)
        return np.array([[i, 2 * i] for i in rows], dtype=np.float32)

    path = tmp_path / "sub" / "c.sqlite"
    first = Cache(path).rows(["a", "b"], 2, compute)
    again = Cache(path).rows(["b", "c", "a"], 2, compute)
    assert asked == [[0, 1], [1]]
    np.testing.assert_array_equal(again, [first[1], [1, 2], first[0]])
    path.write_bytes(b"not a database, but long enough to be read as one" * 40)
    np.testing.assert_array_equal(Cache(path).rows(["a"], 2, compute), [[0, 0]])
    assert "scores are not kept" in capsys.readouterr().err


def test_the_fingerprint_follows_the_models_files(tmp_path):
    tiny_encoder(tmp_path / "model")
    before = fingerprint("model", inside=tmp_path)
    assert before == fingerprint(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("what a person wrote")
    assert before == fingerprint(tmp_path / "model")
    parameters = tmp_path / "model" / "model.safetensors"
    times, content = parameters.stat(), bytearray(parameters.read_bytes())
    content[-1] ^= 1  # in place, of the same size and with the old time
    parameters.write_bytes(content)
    os.utime(parameters, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = fingerprint(tmp_path / "model")
    assert changed != before
    tiny_encoder(tmp_path / "model", seed=1)
    assert fingerprint(tmp_path / "model") not in (before, changed)


def test_the_fingerprint_follows_a_base_inside_the_folder_that_names_it(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        tiny_encoder(tmp_path / name / "base", seed=seed)
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "base"})
        )
    (tmp_path / "one" / "base" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": ".."})  # two that name each other come to an end
    )
    before = fingerprint(tmp_path / "one")
    assert len({before, fingerprint(tmp_path / "two")}) == 2
    shutil.copytree(tmp_path / "two" / "base", tmp_path / "one" / "base", dirs_exist_ok=True)
    assert fingerprint(tmp_path / "one") != before


def test_the_fingerprint_follows_tokens_that_were_added(tmp_path):
    before = fingerprint(tiny_encoder(tmp_path / "model"))
    (tmp_path / "model" / "added_tokens.json").write_text('{"<cite>": 30521}')
    assert fingerprint(tmp_path / "model") != before


# ---------------------------------------------------------------- the command


@pytest.fixture
def panel(tmp_path):
    """A saved panel of two random heads, with statistics."""
    folder = tmp_path / "panel"
    tiny_classifier(folder / "trunk", 2)
    specs = [RewardModelSpec(name, "trunk", logit=k) for k, name in enumerate(NAMES[:2])]
    made = RewardPanel.build(specs, folder)
    made.fit_stats(["a"] * 4, ["b c", "d", "e f g", "h"], "four texts")
    made.save_pretrained(folder)
    return folder


def test_the_command_writes_both_pages_and_reuses_its_scores(tmp_path, panel, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = write(tmp_path / "d.jsonl", [pair(i, NAMES[i % 2]) for i in range(60)])
    report = tmp_path / "new" / "report.html"
    arguments = ["--panel", str(panel), "--data", data, "--max-pairs", "50", "--html", str(report)]
    command.main(arguments)  # returns: the exit code is 0, though random reward models cannot help
    first = capsys.readouterr()
    assert "VERDICT" in first.out and "50 of 60 pairs" in first.out and str(report) in first.out
    assert "reference set of 4" in first.out and "0 texts were cached, 100 scored" in first.err
    html = report.read_text()
    assert html.count("<svg") == 13

    def refuse(*a, **k):
        raise AssertionError("loaded a model for texts that are cached")

    monkeypatch.setattr(inputs.RewardPanel, "from_pretrained", refuse)
    monkeypatch.setattr(inputs, "PromptEncoder", refuse)
    command.main(arguments)
    second = capsys.readouterr()
    assert second.out == first.out and report.read_text() == html
    assert "100 texts were cached, 0 scored" in second.err


def test_a_panel_without_statistics_is_standardized_on_the_data(
    tmp_path, panel, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = json.loads((panel / "panel.json").read_text())
    record = {"helpful": {"accuracy": 0.6, "test": "test pairs of d"}}
    config |= {"stats": None, "accuracy": record}
    (panel / "panel.json").write_text(json.dumps(config))
    data = write(tmp_path / "d.jsonl", [pair(i, split="train") for i in range(20)])
    command.main(["--panel", str(panel), "--data", data, "--html", str(tmp_path / "r.html")])
    said = capsys.readouterr().out
    assert "no statistics" in said and "20 prompts; below 40" in said
    assert "trained on the train rows" in " ".join(said.split())  # its record names this file


@pytest.mark.parametrize(
    "record",
    [
        {"accuracy": {"helpful": {"accuracy": 0.6, "test": "validation pairs of a file, b"}}},
        {"accuracy": {"helpful": {"accuracy": 0.6, "test": "any", "sources": ["a file", "b"]}}},
        {"accuracy": {}, "trained_on": ["a file", "b"]},  # all its rows were in the train split
    ],
)
def test_train_rows_of_each_known_source_are_warned_about(tmp_path, panel, record):
    config = json.loads((panel / "panel.json").read_text())
    (panel / "panel.json").write_text(json.dumps(config | record))
    for name, split, warned in (
        ("a file", "train", True),
        ("b", "train", True),
        ("b", "test", False),
        ("pairs", "train", False),  # a word of the description, and no source
        ("file", "train", False),
    ):
        path = write(tmp_path / f"{name}.jsonl", [pair(0, split=split)])
        notes = seen_in_training(StoredPanel(str(panel)), load_pairs([path], NAMES).pairs)
        assert len(notes) == warned and all(f"names {name}," in note for note in notes)


def test_test_rows_with_prompts_of_train_rows_are_left_out(tmp_path):
    splits = ("train", "train", "test")
    a = write(tmp_path / "a.jsonl", [pair(i, split=s) for i, s in enumerate(splits)])
    rows = [pair(i, prompt=f"Question  {i}", chosen=f"new {i}", split="test") for i in (0, 1, 3)]
    b = write(tmp_path / "b.jsonl", rows)
    loaded = load_pairs([b, a], NAMES, "test")
    assert [p.chosen for p in loaded.pairs] == ["new 3", "good 2"]
    assert loaded.notes == [f"{b}: 2 of 3 test rows left out: train rows have the same prompts."]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('{"objective": "helpful", "prompt": "Q"', "line 1: not JSON"),
        ('{"objective": "helpful", "prompt": "Q", "chosen": "a"}\n', "no field 'rejected'"),
        ("\n", "no rows"),
    ],
)
def test_bad_input_ends_in_one_line_and_a_code(tmp_path, panel, broken, said, capsys):
    path = tmp_path / "d.jsonl"
    path.write_text(broken)
    with pytest.raises(SystemExit) as stopped:
        command.main(
            ["--panel", str(panel), "--data", str(path), "--html", str(tmp_path / "r.html")]
        )
    assert said in stopped.value.code and "\n" not in stopped.value.code
    assert not (tmp_path / "r.html").exists()


def test_a_report_that_cannot_be_written_costs_no_page(tmp_path, panel, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = write(tmp_path / "d.jsonl", [pair(i) for i in range(3)])
    with pytest.raises(SystemExit, match="name another place with --html"):
        command.main(["--panel", str(panel), "--data", data, "--html", f"{data}/r.html"])
    assert "VERDICT" in capsys.readouterr().out


def test_a_missing_panel_and_a_nan_score_end_the_command(tmp_path, panel, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = write(tmp_path / "d.jsonl", [pair(i) for i in range(3)])
    with pytest.raises(SystemExit, match="no such folder"):
        command.main(["--panel", str(tmp_path / "none"), "--data", data])

    def forward(*arguments, **settings):
        return torch.full((6, 2), float("nan"))

    monkeypatch.setattr(sys.modules["pro_core.rewards.panel"], "forward_in_batches", forward)
    with pytest.raises(SystemExit, match="not finite.*'helpful': 6"):
        command.main(["--panel", str(panel), "--data", data])


# ---------------------------------------------------------------- what to label next


def test_heads_disagree_about_prompts_that_they_have_not_seen():
    """Labelled prompts are of one kind, so nothing is known of the other: its pairs come first, in either order."""
    margin, features, objectives, prompts, weights = planted("helps", 300, seed=1)
    second = weights[:, 1] == 1
    known = np.flatnonzero(~second)[:100]
    labelled = (margin[known], features[known], objectives[known], prompts[known])
    rest = np.setdiff1d(np.arange(300), known)
    order, found = rank_pairs(labelled, features[rest], margin[rest])
    assert (np.diff(found[order]) <= 0).all()
    assert second[rest][order[:40]].mean() > second[rest].mean() + 0.1
    assert found == pytest.approx(rank_pairs(labelled, features[rest], -margin[rest])[1])


def test_a_saving_is_simulated_from_one_start_on_the_same_held_out_prompts():
    margin, features, objectives, prompts, _ = planted("helps", 160, seed=2)
    saving = simulate_saving(margin, features, objectives, prompts, repeats=3)
    assert saving.labels[-1] == 112 and saving.labels == sorted(saving.labels)
    # At the first number no choice was made, and at the last there is none.
    for first_or_last in (0, -1):
        assert saving.ranked[first_or_last] == pytest.approx(saving.random[first_or_last])
    assert any(lead.value != 0 for lead in saving.lead[1:-1])
    for needed, accuracies in zip(saving.needed, (saving.ranked, saving.random), strict=True):
        there = saving.labels.index(needed)
        end = accuracies[-1] - 1e-9
        assert accuracies[there] >= end and all(a < end for a in accuracies[:there])
    with pytest.raises(ValueError, match="expected at least"):
        simulate_saving(margin[:30], features[:30], objectives[:30], prompts[:30])


def test_unlabelled_pairs_are_all_pairs_of_a_prompts_responses(tmp_path):
    rows = [
        {"prompt": "Why?", "responses": ["a", "b", "a "]},
        {"prompt": "Why?", "response": "c", "labels": {}},
        {"prompt": "How?", "response": "d", "labels": {}},
    ]
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {frozenset((p.chosen, p.rejected)) for p in inputs.load_unlabelled([str(path)])}
    assert {frozenset(map(str.strip, pair)) for pair in found} == {
        frozenset("ab"),
        frozenset("ac"),
        frozenset("bc"),
    }
    path.write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(DataError):
        inputs.load_unlabelled([str(path)])


def test_the_command_ranks_what_to_label_next(tmp_path, panel, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    once = partial(simulate_saving, repeats=2)
    monkeypatch.setattr(next_labels, "simulate_saving", once)
    data = write(tmp_path / "d.jsonl", [pair(i, NAMES[i % 2]) for i in range(45)])
    rows = [{"prompt": f"What of {i}?", "responses": [f"it is {i}", "no"]} for i in range(3)]
    new = write(tmp_path / "new.jsonl", rows)
    options = command.parse(["--panel", str(panel), "--data", data, "--label-next", new])
    parts = StoredPanel(options.panel), Cache()
    found = command.scored(options, *parts)
    names = found["objective_names"]
    saving, lines = command.label_next(options, *parts, found)
    assert {line["prompt"][0]["content"] for line in lines} == {row["prompt"] for row in rows}
    values = [line["disagreement"] for line in lines]
    assert values == sorted(values, reverse=True) and values[0] > 0
    few = found["table"][:30]  # too few to cross-validate, which takes long
    e = replace(examine(few, found["features_ND"][:30], names), saving=saving)
    assert "LABEL NEXT" in render_text(e) and "Label next" in render_html(e)
