"""Accuracies with intervals, fronts, and the comparison of an adapter with its controls."""

import numpy as np
import pandas as pd
import pytest
import torch

from pro_core.adapter.controls import compare, control_weights, safety_rates
from pro_core.data.schema import PreferencePair
from pro_core.evaluation.results import lead, read_rows, result_row, sweep, write_rows
from pro_core.evaluation.reward_models import panel_row
from pro_core.metrics import (
    accuracy_with_interval,
    correct,
    hypervolume,
    is_nondominated,
    macro_accuracy,
    prompt_counts,
)
from pro_core.reporting.adapter_tables import adapter_table, short_adapter_table
from pro_core.reporting.markdown import replace_section
from pro_core.reporting.reward_tables import judges_table, length_table, reward_models_table
from pro_core.rewards.baselines import bag_of_words
from pro_core.rewards.length import length_report
from pro_core.rewards.panel_card import grade

NAMES = ("helpful", "harmless")


def scored(rows):
    """A scores table from (prompt, source, objective, margins)."""
    table = pd.DataFrame([r[:3] for r in rows], columns=["prompt", "source", "objective"])
    table["text"], table["id"] = table["prompt"], range(len(table))
    for k, name in enumerate(NAMES):
        table[f"z_chosen_{name}"] = [float(r[3][k]) for r in rows]
        table[f"z_rejected_{name}"] = 0.0
    return table


def test_a_tie_counts_half():
    np.testing.assert_array_equal(correct([2, -1, 0]), [1, 0, 0.5])
    assert accuracy_with_interval([2, -1, 0, 3], list("abcd"))["accuracy"] == 0.625


def test_the_interval_counts_prompts_not_pairs():
    rng = np.random.default_rng(0)
    margins = np.repeat(rng.normal(0.3, 1, 100), 20)  # 20 copies of each prompt's one outcome
    prompts = np.repeat(np.arange(100), 20).astype(str)
    lo, hi = accuracy_with_interval(margins, prompts)["ci95"]
    copies = accuracy_with_interval(margins, np.arange(2000).astype(str))["ci95"]
    # 100 independent outcomes at p = 0.62: +-1.96 sqrt(p (1 - p) / 100) = +-0.095.
    assert 0.15 < hi - lo < 0.23
    assert copies[1] - copies[0] < 0.05
    with pytest.raises(ValueError, match="no pairs"):
        accuracy_with_interval([], [])


@pytest.mark.parametrize(
    ("margins", "interval"),
    [([1], [0.207, 1]), ([1, 1, 1, 1], [0.510, 1]), ([-1] * 4, [0, 0.490]), ([0], [0.055, 0.945])],
)
def test_prompts_that_all_agree_still_leave_doubt(margins, interval):
    """Drawn again they are all the same: the interval is Wilson's, not a point."""
    measured = accuracy_with_interval(margins, list("abcd")[: len(margins)])
    assert measured["ci95"] == pytest.approx(interval, abs=5e-4)
    pairs = accuracy_with_interval(margins * 50, ["one prompt"] * 50 * len(margins))
    assert pairs["ci95"] == accuracy_with_interval(margins[:1], ["one prompt"])["ci95"]


def test_the_macro_accuracy_is_over_groups_in_every_resample():
    right, groups, prompts = [1, 1, 0, 1], ["a", "a", "a", "b"], ["p", "q", "q", "r"]
    index, counts = prompt_counts(prompts)
    value, drawn = macro_accuracy(right, groups, index, counts)
    assert value == pytest.approx((2 / 3 + 1) / 2)
    p, q, r = counts.T
    with np.errstate(invalid="ignore"):
        of_a = (p + q) / (p + 2 * q)
    # A resample without a prompt of "b" is graded on "a" alone, and the other way round.
    by_hand = np.where(r == 0, of_a, np.where(p + q == 0, 1, (of_a + 1) / 2))
    np.testing.assert_allclose(drawn, by_hand)


def test_fronts_by_hand():
    points = [[1, 3], [2, 2], [1, 2], [3, 1], [2, 2]]
    assert is_nondominated(points)[[0, 1, 3]].all() and not is_nondominated(points)[2]
    # Above (0, 0): 1 x 3 + (2 - 1) x 2 + (3 - 2) x 1 = 6.
    assert hypervolume([[1, 3], [2, 2], [3, 1]], ref=[0, 0]) == pytest.approx(6)


def conflicting(n=60):
    """On "a" prompts helpful is right and harmless wrong, on "b" prompts the other way round."""
    rows = []
    for i in range(n):
        rows += [(f"a{i}", "s", "helpful", (1, -2)), (f"b{i}", "s", "harmless", (-2, 1))]
    return scored(rows)


def test_an_adapter_that_knows_the_prompt_beats_every_control():
    table = conflicting()
    knows = np.stack([[0.9, 0.1] if p[0] == "a" else [0.1, 0.9] for p in table.prompt]).astype(
        np.float32
    )
    report = compare(table, control_weights(table, table, knows, NAMES, seed=0), NAMES)
    assert report["adapter"]["accuracy"] == 1
    assert report["uniform"]["accuracy"] == 0
    assert report["best global"]["accuracy"] == pytest.approx(0.5)
    assert 0.3 < report["shuffled"]["accuracy"] < 0.7
    assert report["own objective"]["accuracy"] == 1  # the ceiling
    for other, led in report["adapter"]["lead"].items():
        assert led["ci95"][0] > 0 or other == "own objective", other


def test_the_nearest_prompts_know_what_is_alike():
    """Helpful prompts lie on one side, harmless ones on the other: a neighbour's weights fit, the average does not."""
    table = conflicting()
    side = {
        p: np.array([1.0 if o == "helpful" else -1.0, 0.1])
        for p, o in zip(table.prompt, table.objective, strict=True)
    }
    same = np.tile(np.array([0.5, 0.5], np.float32), (len(table), 1))
    weights = control_weights(table, table, same, NAMES, seed=0, features=side)
    report = compare(table, weights, NAMES)
    assert report["nearest prompts"]["accuracy"] == 1
    assert report["fitted global"]["accuracy"] == 0  # half and half, which loses both kinds


def weighed(n, tag):
    """One pair for each of n prompts, whose features (6,) decide which objective counts; and these features."""
    rng = np.random.default_rng(list(tag.encode()))
    features = {f"{tag}{i}": rng.normal(size=6) for i in range(n)}
    rows = []
    for prompt, x in features.items():
        share = 1 / (1 + np.exp(-4 * x[0]))
        margin = rng.normal(size=2)
        margin *= np.sign(margin @ [share, 1 - share])
        rows.append((prompt, "s", "helpful", tuple(margin)))
    return scored(rows), features


def gate_of(train, test, features, seed=0):
    same = np.full((len(test), 2), 0.5, np.float32)
    return control_weights(train, test, same, NAMES, seed, features=features)


def test_the_gate_learns_which_prompts_are_about_what():
    (train, known), (test, new) = weighed(600, "train"), weighed(300, "test")
    weights = gate_of(train, test, known | new)
    gate = weights["ArmoRM's gate"]
    assert gate.shape == (300, 2) and gate.dtype == np.float32 and (gate >= 0).all()
    # A softmax over the wrong axis would make the columns sum to 1 instead.
    np.testing.assert_allclose(gate.sum(axis=1), 1, rtol=1e-5)
    report = compare(test, weights, NAMES)
    accuracy = {method: r["accuracy"] for method, r in report.items()}
    assert accuracy["ArmoRM's gate"] > 0.05 + max(accuracy["uniform"], accuracy["fitted global"])


def test_the_gate_depends_on_seed_and_training_pairs_alone():
    (train, known), (test, new) = weighed(60, "train"), weighed(20, "test")
    state = torch.get_rng_state()
    gate = gate_of(train, test, known | new)["ArmoRM's gate"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    # The other choice and other neighbours in the test set change nothing.
    reversed_test = test.assign(**{f"z_chosen_{n}": -test[f"z_chosen_{n}"] for n in NAMES})
    again = gate_of(train, pd.concat([reversed_test, train]), known | new)["ArmoRM's gate"]
    np.testing.assert_allclose(again[:20], gate, rtol=1e-5)
    assert np.abs(gate_of(train, test, known | new, seed=1)["ArmoRM's gate"] - gate).max() > 0.01
    fewer = gate_of(train[:30], test, known | new)["ArmoRM's gate"]
    assert np.abs(fewer - gate).max() > 0.01


def test_a_source_of_weights_without_rows_is_left_out_of_the_short_table():
    rows = [
        result_row("adapter", method, 0, "test", 4, {"accuracy": 0.5})
        for method in ("adapter", "mean", "ArmoRM's gate")
    ]
    lines = short_adapter_table(rows).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| ArmoRM's gate", "| adapter"]


def test_an_adapter_that_ignores_the_prompt_leads_nothing_when_shuffled():
    table = conflicting()
    same = np.tile(np.array([0.5, 0.5], np.float32), (len(table), 1))
    report = compare(table, control_weights(table, table, same, NAMES, seed=0), NAMES)
    assert report["adapter"]["lead"]["shuffled"]["points"] == 0
    assert report["adapter"]["lead"]["shuffled within source"]["points"] == 0


def test_the_average_is_over_objectives_not_over_pairs():
    rows = [("a", "s", "helpful", (1, 0))] * 99 + [("b", "s", "harmless", (0, -1))]
    uniform = {"uniform": np.full((100, 2), 0.5, np.float32)}
    assert compare(scored(rows), uniform, NAMES)["uniform"]["accuracy"] == 0.5


def test_safety_rates_average_over_prompts():
    rows = [("u", "x", "harmless", (-1, 1))] * 3 + [
        ("v", "x", "harmless", (1, -1)),
        ("s", "x", "helpful", (1, -1)),
    ]
    harmless_only = np.tile([0.0, 1.0], (5, 1))
    rates = safety_rates(scored(rows), harmless_only, NAMES)
    assert rates == {"refuse_unsafe": 0.5, "comply_safe": 0.0}


def test_result_rows_replace_their_own_and_keep_the_others(tmp_path):
    path = tmp_path / "r.jsonl"
    row = result_row(
        "adapter", "uniform", 0, "test", 10, {"accuracy": 0.5}, {"accuracy": [0.4, 0.6]}
    )
    assert {"commit", "command", "hardware", "config", "wall_s"} <= set(row)
    write_rows(path, [row, row | {"seed": 1}])
    write_rows(path, [row | {"metrics": {"accuracy": 0.7}}])
    assert {r["seed"]: r["metrics"]["accuracy"] for r in read_rows(path)} == {0: 0.7, 1: 0.5}
    # A setting, a request or a kind of its own is another row.
    others = [row | own for own in ({"setting": {"n": 1}}, {"setting": {"n": 2}}, {"kind": "base"})]
    others += [row | {"request": {"weights": {"a": w}}} for w in (0.0, 1.0)]
    write_rows(path, others)
    write_rows(path, [others[0] | {"setting": {"n": 1.0}}])  # the same number
    assert len(read_rows(path)) == 7
    write_rows(path, [row | {"split": "validation"}, row | {"config": "other.yaml"}])
    write_rows(path, [row], methods=())  # all that there is of its experiment, config and split
    assert [(r["split"], r["config"]) for r in read_rows(path)] == [
        ("validation", ""),
        ("test", "other.yaml"),
        ("test", ""),
    ]


def test_rows_of_a_method_that_could_not_be_graded_again_stay(tmp_path):
    path = tmp_path / "r.jsonl"
    row = result_row("wic", "base", 0, "test", 10, {}, scored_by={"judge": "old"})
    points = [row | {"kind": "point", "request": {"weights": {"a": w}}} for w in (0.0, 1.0)]
    others = [row | {"method": method} for method in ("lost", "removed")]
    write_rows(path, [row, *points, *others])
    new = row | {"scored_by": {"judge": "new"}}
    write_rows(path, [new], methods=["base", "lost"])
    assert [(r["method"], r["scored_by"]["judge"]) for r in read_rows(path)] == [
        ("lost", "old"),  # its responses are gone
        ("base", "new"),  # and none of its old points
    ]


def test_a_row_on_disk_holds_no_empty_column_and_is_read_with_all(tmp_path):
    path = tmp_path / "r.jsonl"
    led = lead({"accuracy": 1 / 3}, {"accuracy": [0.0, 2 / 3]})
    row = result_row("e", "m", None, "test", 1, {}, kind="all_seeds", leads={"other": led})
    write_rows(path, [row])
    text = path.read_text()
    assert "curves" not in text and '"leads"' in text
    assert read_rows(path) == [row] and row["setting"] == {}
    assert row["leads"]["other"]["metrics"]["accuracy"] == 0.33333
    row["setting"]["n"] = 1  # each row has its own
    assert result_row("e", "m", 0, "test", 1, {})["setting"] == {}
    with pytest.raises(TypeError):
        result_row("e", "m", 0, "test", 1, {}, asked={})


def test_a_sweep_keeps_the_seeds_that_are_whole():
    rows = [
        {"seed": s, "setting": {"n": n}, "metrics": {"gap": s + n}}
        for s in (0, 1)
        for n in (20, 10)
    ]
    assert sweep(rows[:3], "n", "gap") == ([10, 20], [[10, 20]])
    assert sweep(rows, "n", "gap") == ([10, 20], [[10, 20], [11, 21]])


def test_the_table_says_what_a_baseline_cannot_measure():
    measured = {
        "ci95": [0.4, 0.6],
        "accuracy": 0.5,
        "n": 9,
        "length_correlation": 0.0,
        "equal_length": None,
    }
    both, trained = {"a": measured, "b": measured}, {"trained": "full"}
    panel = panel_row("judges", "panel", 0, "test", both, "r", 0, setting=trained)
    longer = panel_row("judges", "longer wins", 0, "test", {"b": measured}, "r", 0, "baseline")
    half = "0.500 (0.400 to 0.600)"
    assert judges_table([longer, panel]).splitlines()[2:] == [
        f"| r | a (9 pairs) | {half} | not measured | not measured |  | no such pairs |",
        f"| r | b (9 pairs) | {half} | not measured | {half} |  | no such pairs |",
    ]
    table = reward_models_table([longer, panel])
    assert "| longer wins | not measured | 0.500 (0.400 to 0.600) |" in table
    assert "| r (full) | 0.500 (" in table


def test_a_source_called_like_an_objective_does_not_take_its_column():
    metrics = {"accuracy_helpful": 0.9, "accuracy_source_helpful": 0.1}
    metrics |= {"accuracy": 0.9}
    rows = [result_row("adapter", "uniform", 0, "test", 4, metrics, objectives=["helpful"])]
    head, _, line = adapter_table(rows).splitlines()
    assert head.startswith("| weights | average | helpful | hh alone") and "0.100" not in line


def one_word_pairs(*texts):
    prompt = [{"role": "user", "content": "Q"}]
    return [PreferencePair(prompt, a, b, "helpful") for a, b in texts]


@pytest.mark.parametrize("texts", [[], [("gladly", "no")], [("one", "two"), ("three", "four")]])
def test_a_bag_of_too_few_words_measures_nothing(texts):
    assert bag_of_words(one_word_pairs(*texts), one_word_pairs(("gladly", "no"))) is None


def test_a_bag_of_words_learns_from_two_pairs():
    train = one_word_pairs(("gladly so", "no no"), ("gladly not", "no way"), ("gladly", "no"))
    assert bag_of_words(train, one_word_pairs(("gladly", "no"), ("no", "gladly"))) == pytest.approx(
        [m := bag_of_words(train, one_word_pairs(("gladly", "no")))[0], -m]
    )
    assert m > 0


def test_a_section_of_the_readme_is_replaced():
    text = "a\n<!-- t -->\nold\n<!-- /t -->\nb"
    assert replace_section(text, "t", r"new \1") == "a\n<!-- t -->\nnew \\1\n<!-- /t -->\nb"
    with pytest.raises(ValueError, match="no section"):
        replace_section(text, "u", "x")


# ---------------------------------------------------------------- what a score owes to length


def test_the_length_report_by_hand():
    margins = [3, 1, -2, -1]
    chosen, rejected = [100, 50, 10, 100], [20, 46, 40, 90]  # pair 2: 46 of 50; pair 4: 90 of 100
    report = length_report(margins, chosen, rejected, list("abcd"))
    assert report["length_correlation"] == pytest.approx(0.8)  # ranks 4 3 1 2 and 4 2 1 3
    assert report["equal_length"]["n"] == 2 and report["equal_length"]["accuracy"] == 0.5
    assert length_report([1, 2], [100, 50], [10, 5], ["a", "b"])["equal_length"] is None


@pytest.mark.parametrize(("margins", "chosen"), [([1, 1, 1], [3, 4, 5]), ([1, 2, 3], [9, 9, 9])])
def test_a_constant_correlates_with_nothing(margins, chosen):
    assert length_report(margins, chosen, [9, 9, 9], list("abc"))["length_correlation"] == 0.0


def held_out():
    margins = (1, -1, 0)
    table = scored([(p, "s", "helpful", (m, 0)) for p, m in zip("abc", margins, strict=True)])
    table["split"], table["fold"], table["constructed"], table["ungraded"] = "test", -1, False, ""
    table["length_chosen"], table["length_rejected"] = [20, 10, 10], [10, 10, 9]
    return table


KEPT = {"scores": "length kept"}


def test_two_pairs_say_nothing_about_length():
    assert length_report([1, -1], [20, 10], [10, 10], ["a", "b"])["length_correlation"] is None
    report = grade(held_out()[:2], NAMES, "test")
    row = panel_row("length", "panel", 0, "test", report, "", 1.0, setting=KEPT)
    assert "| helpful | length kept | not measured | 0.500 (" in length_table([row])


def test_a_baseline_has_no_recipe_beside_panels_on_the_same_pairs():
    """Panels are all graded on the same pairs, a judge on its own; the bag of words has a panel's training pairs."""
    report = grade(held_out(), NAMES, "test")
    rows = [
        panel_row(experiment, "longer wins", 0, "test", report, "r.yaml", 1.0, "baseline")
        for experiment in ("reward_models", "judges", "out_of_distribution")
    ]
    assert [row["config"] for row in rows] == ["", "r.yaml", "r.yaml"]


def test_a_panels_row_and_the_table_of_length():
    report = grade(held_out(), NAMES, "test")
    row = panel_row("length", "panel", 0, "test", report, "r.yaml", 1.0, setting=KEPT)
    assert row["n"] == 3 and row["config"] == "r.yaml"
    assert row["metrics"]["pairs_equal_length_helpful"] == 2
    table = length_table([row])
    assert "| helpful | length kept | +1.00 | 0.500 (" in table and "2 pairs |" in table
    assert length_table([row | {"split": "validation"}]) == ""
