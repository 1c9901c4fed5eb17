"""The board without a page: its arithmetic (ui/simplex.js), its state (ui/state.js), and what leaves it as text.

The arithmetic is compared with Python's on random scores, weights and floors. The tests run the page's own files, in
Node if it is installed, else in Chromium.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import shlex
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest

from pro_core.rewards.best_of_n import Candidate, filled, ranked
from pro_core.weights import apply_floors, as_weights, weighted_sum
from ui.board import SCRIPTS

UI = Path(__file__).parent.parent / "ui"
SOURCES = (
    "dom.js",
    "simplex.js",
    "objectives.js",
    "state.js",
    "switches.js",
    "share.js",
    "export.js",
    "choices.js",
    "reasons.js",
    "preferred.js",
    "asking.js",
)
CASES = 400


class Browser:
    """`run([[function, arguments], ...])` calls the functions of simplex.js and returns their results."""

    def __init__(self, chromium: str | None):
        self.chromium = chromium

    def run(self, calls: list[list[Any]]) -> list[Any]:
        return self.evaluate("given.map(([f, a]) => Simplex[f](...a))", calls)

    def evaluate(self, expression: str, given: Any) -> Any:
        """The value of a JavaScript expression over `given`; it sees the files that draw nothing."""
        source = "\n".join((UI / name).read_text("utf-8") for name in SOURCES)
        if self.chromium is None:
            script = f"{source}\nconst given = {json.dumps(given)};"
            script += f"console.log(JSON.stringify({expression}))"
            done = subprocess.run(
                ["node", "-"], input=script, capture_output=True, text=True, check=True, timeout=60
            )
            return json.loads(done.stdout)
        from playwright.sync_api import sync_playwright

        with sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=self.chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            page.set_content("<p>arithmetic</p>")
            result = page.evaluate(f"(given) => {{ {source}; return {expression}; }}", given)
            browser.close()
        return result


@pytest.fixture(scope="module")
def js(request: pytest.FixtureRequest) -> Browser:
    return Browser(None if shutil.which("node") else request.getfixturevalue("chromium"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)


def random_floors(rng: np.random.Generator, K: int) -> list[int]:
    """Whole hundredths with a sum of at most 90; most are 0."""
    floors = rng.integers(0, 40, K) * (rng.random(K) < 0.4)
    return [int(f) for f in floors] if floors.sum() <= 90 else [0] * K


def share(total: int, parts: list[int], floors: list[int]) -> list[int]:
    """The rule in exact fractions: proportional, none below its floor, largest remainder, ties first."""
    fixed: dict[int, int] = {}
    while True:
        free = [k for k in range(len(parts)) if k not in fixed]
        mass = sum(parts[k] for k in free)
        rest = total - sum(fixed.values())
        exact = {
            k: Fraction(rest * parts[k], mass) if mass else Fraction(rest, len(free)) for k in free
        }
        low = [k for k in free if exact[k] < floors[k]]
        if not low:
            break
        fixed |= {k: floors[k] for k in low}
    whole = {k: int(exact[k]) for k in free}
    left = rest - sum(whole.values())
    for k in sorted(free, key=lambda k: (-(exact[k] - whole[k]), k))[:left]:
        whole[k] += 1
    return [(fixed | whole)[k] for k in range(len(parts))]


def test_ranking_and_totals_equal_pythons(js: Browser, rng: np.random.Generator) -> None:
    calls, scores, weights = [], [], []
    for _ in range(CASES):
        N, K = int(rng.integers(1, 9)), int(rng.integers(1, 8))
        scores.append(np.round(rng.normal(size=(N, K)), int(rng.integers(0, 5))))
        weights.append(rng.dirichlet(np.full(K, rng.choice([0.2, 1.0, 5.0]))))
        if rng.random() < 0.5:  # a judge gave no verdict; null in JSON
            scores[-1][rng.random((N, K)) < 0.3] = np.nan
        shown = [[None if np.isnan(v) else v for v in row] for row in scores[-1].tolist()]
        calls.append(["totals", [shown, weights[-1].tolist()]])
    totals = js.run(calls)
    orders = js.run([["ranking", [t]] for t in totals])
    for z_NK, w_K, total_N, order in zip(scores, weights, totals, orders, strict=True):
        names = [f"o{k}" for k in range(len(w_K))]
        expected = weighted_sum(filled(z_NK), as_weights(w_K, names))
        np.testing.assert_allclose(total_N, expected, atol=1e-5)
        assert sorted(order) == list(range(len(z_NK)))
        assert order == np.argsort(-np.array(total_N), kind="stable").tolist()
        gaps = np.abs(np.subtract.outer(expected, expected)[~np.eye(len(expected), dtype=bool)])
        if not gaps.size or gaps.min() > 1e-5:  # float32 in Python: clear gaps must rank alike
            assert order == np.argsort(-expected, kind="stable").tolist()


def test_answers_without_scores_rank_last_and_keep_their_order(js: Browser) -> None:
    assert js.run([["totals", [[[1, 2], None, [3, -1]], [0.5, 0.5]]]]) == [[1.5, None, 1.0]]
    assert js.run([["ranking", [[None, 0.5, None, 2.0, 0.5]]]]) == [[3, 1, 4, 0, 2]]


def test_floors_equal_pythons(js: Browser, rng: np.random.Generator) -> None:
    cases = []
    for _ in range(CASES):
        K = int(rng.integers(2, 8))
        weights = rng.dirichlet(np.full(K, rng.choice([0.1, 1.0, 5.0])))
        if rng.random() < 0.2:
            weights = np.eye(K)[rng.integers(K)]
        cases.append((weights.tolist(), (np.array(random_floors(rng, K)) / 100).tolist()))
    raised = 0
    for (weights, floors), out in zip(
        cases, js.run([["applyFloors", [w, f]] for w, f in cases]), strict=True
    ):
        np.testing.assert_allclose(out, apply_floors(weights, floors), atol=1e-5)
        assert np.isclose(sum(out), 1)
        raised += bool(np.any(np.array(weights) < floors))
    assert raised > CASES / 4  # the cases do test the floors


def test_moving_a_slider_keeps_the_sum_the_locks_and_the_floors(
    js: Browser, rng: np.random.Generator
) -> None:
    cases = []
    for _ in range(CASES):
        K = int(rng.integers(2, 8))
        floors = random_floors(rng, K)
        values = share(100, rng.integers(0, 50, K).tolist(), floors)
        locked = (rng.random(K) < 0.25).tolist()
        index, target = int(rng.integers(K)), int(rng.integers(-20, 121))
        anchor = share(100, rng.integers(0, 50, K).tolist(), floors)
        cases.append((index, target, values, locked, floors, anchor))
    moved = js.run([["moveSlider", list(case)] for case in cases])
    for (index, target, values, locked, floors, anchor), out in zip(cases, moved, strict=True):
        assert sum(out) == 100
        assert all(isinstance(v, int) and v >= f for v, f in zip(out, floors, strict=True))
        assert all(
            out[k] == values[k] for k in range(len(values)) if locked[k]
        )  # also the slider itself
        others = [k for k in range(len(values)) if k != index and not locked[k]]
        if locked[index] or not others:
            assert out == values
            continue
        kept = sum(values[k] for k in range(len(values)) if k != index and locked[k])
        highest = 100 - kept - sum(floors[k] for k in others)
        assert out[index] == max(floors[index], min(highest, target))
        rest = 100 - kept - out[index]
        expected = share(rest, [anchor[k] for k in others], [floors[k] for k in others])
        assert [out[k] for k in others] == expected


def test_moving_a_slider_there_and_back_changes_nothing(js: Browser) -> None:
    values, locks, floors = [40, 30, 20, 10], [False] * 4, [0, 10, 0, 0]
    (full,) = js.run([["moveSlider", [0, 100, values, locks, floors, values]]])
    assert full == [90, 10, 0, 0]
    assert js.run([["moveSlider", [0, 40, full, locks, floors, values]]]) == [values]


def test_predicted_weights_become_whole_hundredths(js: Browser, rng: np.random.Generator) -> None:
    cases = []
    for _ in range(CASES):
        K = int(rng.integers(2, 8))
        floors = random_floors(rng, K)
        values = share(100, [1] * K, floors)
        locked = (rng.random(K) < 0.2).tolist()
        weights = apply_floors(rng.dirichlet(np.ones(K)), np.array(floors) / 100)
        cases.append((weights.tolist(), values, locked, floors))
    for (weights, values, locked, floors), out in zip(
        cases, js.run([["setSliders", list(case)] for case in cases]), strict=True
    ):
        free = [k for k in range(len(values)) if not locked[k]]
        rest = 100 - sum(values[k] for k in range(len(values)) if locked[k])
        parts = [int(np.floor(weights[k] * 1e6 + 0.5)) for k in free]
        assert [out[k] for k in free] == share(rest, parts, [floors[k] for k in free])
        assert all(out[k] == values[k] for k in range(len(values)) if locked[k])
        if not any(locked):
            np.testing.assert_allclose(np.array(out) / 100, weights, atol=0.0101)


def test_where_the_winner_changes_equals_pythons(js: Browser, rng: np.random.Generator) -> None:
    cases = []
    for _ in range(60):
        N, K = int(rng.integers(1, 7)), int(rng.integers(2, 7))
        floors = random_floors(rng, K)
        values = share(100, rng.integers(0, 50, K).tolist(), floors)
        locked = (rng.random(K) < 0.25).tolist()
        # Rounded scores make ties; some answers have none.
        scores = np.round(rng.normal(size=(N, K)), int(rng.integers(0, 4))).tolist()
        scores = [z if rng.random() < 0.9 else None for z in scores]
        cases.append((int(rng.integers(K)), scores, values, locked, floors, values))
    changes = 0
    for case, stretches in zip(cases, js.run([["stretches", list(c)] for c in cases]), strict=True):
        shown = {v: s["winner"] for s in stretches for v in range(s["from"], s["to"] + 1)}
        assert shown == winners(*case[:-1])
        assert all(a["winner"] != b["winner"] for a, b in pairwise(stretches))
        changes += len(stretches) > 1
    assert changes > 15  # the cases do test something


def winners(
    k: int,
    scores: list[list[float] | None],
    values: list[int],
    locked: list[bool],
    floors: list[int],
) -> dict[int, int]:
    """The winner by each place (hundredths) that slider k can have."""
    known = {n: z for n, z in enumerate(scores) if z is not None}
    if not known:
        return {}
    others = [j for j in range(len(values)) if j != k and not locked[j]]
    kept = sum(values[j] for j in range(len(values)) if j != k and locked[j])
    moves = bool(others) and not locked[k]
    highest = 100 - kept - sum(floors[j] for j in others)
    best = {}
    for place in range(floors[k], highest + 1) if moves else [values[k]]:
        weights = list(values)
        if moves:
            rest, low = [values[j] for j in others], [floors[j] for j in others]
            for j, v in zip(
                [k, *others], [place, *share(100 - kept - place, rest, low)], strict=True
            ):
                weights[j] = v
        totals = {
            n: sum(v * (w / 100) for v, w in zip(z, weights, strict=True)) for n, z in known.items()
        }
        best[place] = max(totals, key=lambda n: (totals[n], -n))
    return best


def test_what_would_change_the_winner_in_words(js: Browser) -> None:
    stretches = [
        {"from": 0, "to": 40, "winner": 3},
        {"from": 41, "to": 70, "winner": 0},
        {"from": 71, "to": 100, "winner": 1},
    ]
    places = [(50, stretches), (10, stretches), (71, stretches), (50, [stretches[1]]), (50, [])]
    said = js.evaluate("given.map(([v, s]) => Switches.sentence('humor', v, s))", places)
    assert said == [
        "D wins if humor falls below 41%; B wins if humor rises above 70%.",
        "A wins if humor rises above 40%.",
        "A wins if humor falls below 71%.",
        "A wins wherever humor stands.",
        "",
    ]


def test_floors_as_hundredths_are_never_below_the_owners(js: Browser) -> None:
    assert js.run([["floorHundredths", [[0, 0.1, 0.29, 0.155, 0.0700000003]]]]) == [
        [0, 10, 29, 16, 7]
    ]


def test_floors_as_hundredths_never_sum_to_more_than_all_there_is(js: Browser) -> None:
    given = [[0.333] * 3, [0.995, 0.002, 0.002]]
    assert js.run([["floorHundredths", [f]] for f in given]) == [[34, 33, 33], [100, 0, 0]]


def test_nondominated_equals_moocore(js: Browser, rng: np.random.Generator) -> None:
    clouds = [np.round(rng.normal(size=(int(rng.integers(1, 9)), 2)), 1) for _ in range(CASES)]
    for points, marks in zip(
        clouds, js.run([["nondominated", [p.tolist()]] for p in clouds]), strict=True
    ):
        expected = moocore.is_nondominated(points, maximise=True, keep_weakly=True)
        assert marks == expected.tolist()
    assert js.run([["nondominated", [[[1, 1], None, [0, 2]]]]]) == [[True, False, True]]


def test_how_uncertain_a_lead_is_equals_pythons(js: Browser, rng: np.random.Generator) -> None:
    calls, expected = [], []
    for _ in range(CASES):
        K, M = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        counts = [M, *rng.integers(1, M + 1, K - 1)]  # objectives may have fewer members
        names = [f"o{k}" for k in range(K)]
        members = rng.normal(size=(M, 2, K)) + rng.normal(size=(M, 1, K))
        for k, count in enumerate(counts):
            members[count:, :, k] = np.nan
        z = np.nanmean(members, axis=0).astype(np.float32)
        weights = as_weights(rng.dirichlet(np.ones(K)), names)
        two = [Candidate(text) for text in "ab"]
        result = ranked(two, z, z, members.astype(np.float32), weights, names, "given")
        best, other = (two.index(c) for c in result.candidates)
        expected.append(result.lead(result.candidates[1]))
        cards = [
            {
                "z": z[n].tolist(),
                "members": [members[:c, n, k].tolist() for k, c in enumerate(counts)],
            }
            for n in (best, other)
        ]
        calls.append(["leadSpread", [*cards, weights.tolist()]])
    for (ahead, spread), shown in zip(expected, js.run(calls), strict=True):
        assert ahead >= 0
        assert shown is None if np.isnan(spread) else np.isclose(shown, spread, atol=1e-5)
    assert 10 < sum(np.isnan(spread) for _, spread in expected) < CASES


def test_an_answer_is_too_close_to_call_where_the_members_disagree_about_the_lead(
    js: Browser,
) -> None:
    def card(members: list[list[float]]) -> dict[str, Any]:
        return {"z": [float(np.mean(one)) for one in members], "members": members}

    # The members of "helpful" say of the second answer that the first leads it by 0.2 and 0.6: 0.4 ± 0.28; of the
    # third, by -0.6 and 1.6: 0.5 ± 1.56, though it is further behind. "harmless" has one member.
    run = piece(1, [0.9, 0.1])
    run["candidates"] = [card([[3.0, 1.0], [0]]), card([[2.8, 0.4], [0]]), card([[3.6, -0.6], [0]])]

    def close() -> dict[str, list[int]]:
        after = states(js, ["take", run], ["move", 0, 0], ["rankings"])[2]["returned"]
        return {name: (after[name]["best"], after[name]["close"]) for name in after}

    # Under the visitor's weights only "harmless" counts, of which all have the same score: a tie.
    assert close() == {"predicted": (0, [2]), "uniform": (0, [2]), "yours": (0, [1, 2])}
    for one in run["candidates"]:
        one["members"] = None  # a panel of single members
    assert close() == {name: (0, []) for name in ("predicted", "uniform", "yours")}


# ---------------------------------------------------------------- what the visitor did


def piece(id: int, predicted: list[float], **fields: Any) -> dict[str, Any]:
    """A piece of a run over two objectives, with one answer that is scored."""
    scored = {"text": "Yes.", "z": [1.0, -1.0], "raw": [1.0, -1.0]}
    run = {"id": str(id), "phase": "writing", "objectives": ["helpful", "harmless"]}
    run |= {"floors": [0, 0], "predicted": predicted, "candidates": [scored]}
    return {**run, "messages": [{"role": "user", "content": f"Question {id}?"}], **fields}


def states(js: Browser, *steps: list[Any]) -> list[dict[str, Any]]:
    """The state after each step [method, argument, ...], with the step's result and the number of drawings so far."""
    return js.evaluate(
        """(() => { let drawn = 0; const state = new State(() => { drawn += 1; });
        return given.map(([method, ...args]) => {
          const returned = state[method](...args);
          const { values, locked, touched, pick, places, unpinned } = state;
          const mine = { values: [...values], locked: [...locked], touched, pick, places, unpinned };
          return { ...mine, drawn, returned: returned ?? null };
        }); })()""",
        list(steps),
    )


def test_every_script_is_joined() -> None:
    assert sorted(SCRIPTS) == sorted(path.name for path in UI.glob("*.js"))


def test_a_piece_keeps_what_the_visitor_set_and_a_new_prompt_moves_the_unlocked(
    js: Browser,
) -> None:
    after = states(
        js,
        ["take", piece(1, [0.7, 0.3])],
        ["move", 0, 20],
        ["togglePick", 0],
        ["take", piece(1, [0.7, 0.3])],
        ["take", piece(2, [0.6, 0.4])],
        ["toggleLock", 1],
        ["take", piece(3, [0.9, 0.1])],
        ["take", piece(4, [0.9, 0.1], objectives=["humor", "harmless"])],
    )
    assert [s["values"][0] for s in after] == [70, 20, 20, 20, 60, 60, 60, 90]
    assert all(sum(s["values"]) == 100 for s in after)
    assert [s["touched"] for s in after] == [False, True, True, True, False, False, False, False]
    assert [s["pick"] for s in after] == [None, None, 0, 0, None, None, None, None]
    others = [s["returned"] for s in after]  # whether a piece has other objectives
    assert others == [True, None, None, False, False, None, False, True]
    assert [s["drawn"] for s in after] == [0, 1, 2, 2, 2, 3, 3, 3]  # the board draws what it takes


def test_a_new_question_gets_the_guess_beside_locked_sliders(js: Browser) -> None:
    """A slider that was left somewhere must not decide the next question."""

    def sent(*steps: list[Any]) -> list[Any]:
        asked = [["take", piece(1, [0.7, 0.3])], *steps, ["weights"], ["weights", True]]
        return [s["returned"] for s in states(js, *asked)][-2:]

    assert sent() == [None, None]
    assert sent(["move", 0, 0]) == [None, [0, 1]]
    assert sent(["move", 0, 40], ["toggleLock", 1]) == [[None, 0.6], [0.4, 0.6]]
    assert sent(["move", 0, 40], ["toggle", "keep"]) == [[0.4, 0.6], [0.4, 0.6]]
    kept = [["move", 0, 40], ["toggle", "keep"], ["take", piece(2, [0.9, 0.1])]]
    after = states(js, ["take", piece(1, [0.7, 0.3])], *kept)[-1]
    assert after["values"] == [40, 60] and after["touched"]


def test_cards_move_only_when_the_visitor_asks(js: Browser) -> None:
    cards = [{"text": "x", "z": [z, 0], "raw": [z, 0]} for z in (0, 2, 1)]
    run = piece(1, [1, 0], candidates=cards, messages=["one"])
    after = states(
        js,
        ["take", run],
        ["move", 0, 100],
        ["arrange"],
        ["take", run],
        ["arrange"],
        ["arrange"],
        ["take", {**run, "id": "2"}],
        ["take", {**run, "id": "3", "messages": ["two"]}],
    )
    letters, best_first = [0, 1, 2], [1, 2, 0]
    expected = [letters, letters, best_first, best_first, letters, best_first, best_first, letters]
    assert [s["places"] for s in after] == expected


def test_write_again_leaves_pinned_answers_alone_until_a_new_question(js: Browser) -> None:
    cards = piece(1, [1, 0])["candidates"] * 3
    run = piece(1, [1, 0], candidates=cards, messages=["one"])
    new = {**run, "id": "3", "messages": ["two"]}
    steps = [["take", run], ["togglePin", 1], ["take", {**run, "id": "2"}], ["take", new]]
    assert [s["unpinned"] for s in states(js, *steps)] == [None, [0, 2], [0, 2], None]


def test_an_added_objective_moves_the_sliders_of_the_visitor_and_no_script_asks_for_it(
    js: Browser,
) -> None:
    run = piece(1, [0.9, 0.1], messages=[{"role": "user", "content": "Why?"}])
    three = {"objectives": ["helpful", "harmless", "short"], "floors": [0, 0, 0]}
    grown = run | three | {"id": "2", "predicted": [0.6, 0.0667, 0.3333]}
    grown["added"] = [{"name": "short", "sentence": "It is short."}]
    back = {**run, "id": "3"}
    moved = states(js, ["take", run], ["move", 0, 30], ["take", grown], ["take", back])
    # 30 and 70 share what a third leaves, and get it back when it goes.
    assert [one["values"] for one in moved[1:]] == [[30, 70], [20, 47, 33], [30, 70]]
    assert all(one["touched"] for one in moved[1:])
    untouched = states(js, ["take", run], ["take", grown])
    assert untouched[1]["values"] == [60, 7, 33] and not untouched[1]["touched"]
    asked = js.evaluate("Objectives.panelWeights(given, [0.2, 0.2, 0.6])", grown)
    assert asked == {"helpful": 0.5, "harmless": 0.5}
    assert js.evaluate("Objectives.panelWeights(given, [0, 0, 1])", grown) is None


def test_locked_sliders_stay_where_they_are_when_an_objective_comes_or_goes(js: Browser) -> None:
    run = piece(1, [0.9, 0.1])
    three = {"objectives": ["helpful", "harmless", "short"], "floors": [0, 0, 0]}
    grown = run | three | {"id": "2", "predicted": [0.6, 0.0667, 0.3333]}
    grown["added"] = [{"name": "short", "sentence": "It is short."}]
    back = {**run, "id": "3"}
    untouched = states(js, ["take", run], ["toggleLock", 0], ["take", grown], ["take", back])
    assert [(s["values"][0], s["locked"][0]) for s in untouched[1:]] == [(90, True)] * 3
    assert all(sum(s["values"]) == 100 for s in untouched)
    # Where every slider that stays is locked, one of them has to move.
    both = [["take", grown], ["toggleLock", 0], ["toggleLock", 1], ["take", back]]
    last = states(js, *both)[-1]
    assert last["locked"] == [False, False] and sum(last["values"]) == 100
    # Another conversation's run carries nothing over.
    other = states(js, ["take", run], ["toggleLock", 0], ["take", {**grown, "messages": ["x"]}])
    assert other[-1]["locked"] == [False] * 3


def test_the_sliders_stay_when_the_same_question_gets_new_answers_or_scores(js: Browser) -> None:
    run = piece(1, [0.7, 0.3])
    new = {**run, "id": "2", "predicted": [0.6, 0.4]}
    moved = [["take", run], ["move", 0, 20], ["take", new]]
    assert [(s["values"], s["touched"]) for s in states(js, *moved)[1:]] == [([20, 80], True)] * 2
    # A policy that read PRO's guess, because the question was asked anew, is shown with it.
    asked = states(js, *moved[:2], ["take", {**new, "conditioned": "weights", "used": None}])
    assert (asked[-1]["values"], asked[-1]["touched"]) == ([60, 40], False)


def test_a_reply_with_scores_is_dropped_once_another_run_is_shown(js: Browser) -> None:
    source = (UI / "board.js").read_text("utf-8").partition("\nconst publish")[0]
    test = f"""(() => {{ {source}
      const none = () => {{}};
      const rest = {{ abandoned: new Set(), draw: none, build: none, say: none, publish: none }};
      return given.map((between) => {{
        const board = Object.assign(Object.create(Board.prototype), rest);
        Object.assign(board, {{ waiting: null, scoring: null, memory: {{ leave: none }} }});
        board.state = new State(none);
        const run = (id) => ({{ ...between.run, id }});
        board.receive(run("5"));
        board.begin("own");
        const was = board.busy;
        if (between.back) board.show({{ ...board.state.saved(), run: run("recorded") }});
        const taken = board.receive(run("9"));
        return [was, taken, board.state.run.id, board.busy];
      }}); }})()"""
    run = piece(1, [0.7, 0.3], phase="done", busy=False)
    shown = js.evaluate(test, [{"run": run, "back": False}, {"run": run, "back": True}])
    assert shown == [[True, True, "9", False], [True, False, "recorded", False]]


def test_what_would_replace_the_run_waits_while_a_request_is_under_way(js: Browser) -> None:
    test = """given.map(([on, busy, writing]) => {
      const asking = Object.assign(Object.create(Asking.prototype), { board: { busy, writing, asked: "Why?" } });
      globalThis.document = { querySelector: () => ({ value: "Another?" }) };
      const target = { closest: (all) => all.split(", ").some((one) => one.startsWith(on)) };
      let swallowed = false;
      const event = { target, key: "Enter", preventDefault() {}, stopImmediatePropagation() { swallowed = true; } };
      asking[on === "#own" || on === ".drop" ? "click" : "enter"](event);
      return swallowed; })"""
    places = ["#own", ".drop", "#sentence", "#prompt"]
    free, scoring, writing = (
        js.evaluate(test, [[place, *state] for place in places])
        for state in ([False, False], [True, False], [True, True])
    )
    assert (free, scoring) == ([False] * 4, [True] * 4)
    assert writing == [True] * 3 + [False]  # another question takes the place of answers


STORAGE = """
  const kept = { text: null, full: false };
  Object.defineProperty(globalThis, "localStorage", { configurable: true, value: {
    getItem: () => kept.text,
    setItem: (_, text) => { if (kept.full) throw new Error("full"); kept.text = text; },
  } });
  const state = new State(() => {});
  state.take(given);
  const preferred = Object.assign(Object.create(Preferred.prototype), { state, made: [] });
  const choose = (picked, among = [0, 1]) => {
    preferred.chose = -Infinity;
    preferred.choose(among, picked);
  };
  const picked = () => preferred.made.map((one) => one.picked);
"""


def clicked(js: Browser, steps: str) -> Any:
    """What the steps return, over a page with two answers and a storage of its own."""
    cards = [{"text": text, "z": [1, 0], "raw": [1, 0]} for text in "ab"]
    run = piece(1, [0.7, 0.3], candidates=cards, phase="done")
    return js.evaluate(f"(() => {{ {STORAGE} {steps} }})()", run)


def test_choices_that_another_tab_forgot_do_not_come_back(js: Browser) -> None:
    forgot = "choose(0); kept.text = '[]'; preferred.changedElsewhere('pro-choices');"
    assert clicked(js, f"{forgot} return picked();") == []
    unheard = "choose(0); kept.text = '[]'; choose(1, [1, 0]); return picked();"
    assert clicked(js, unheard) == [1]
    # A write that failed loses nothing that this page knows.
    full = "choose(0); kept.full = true; choose(1, [1, 0]); choose(1); return picked();"
    assert clicked(js, full) == [1, 1]


def test_a_choice_belongs_to_the_objectives_that_it_was_made_over(js: Browser) -> None:
    added = """choose(0);
      const three = { objectives: ["helpful", "harmless", "short"], floors: [0, 0, 0], predicted: [0.5, 0.3, 0.2] };
      const added = [{ name: "short", sentence: "It is short." }];
      state.take({ ...given, ...three, id: "2", added });
      const before = preferred.answered([0, 1]) ?? null;
      choose(0);
      return [before, picked(), preferred.counted.length];"""
    assert clicked(js, added) == [None, [0, 0], 1]


def test_a_double_click_is_one_choice(js: Browser) -> None:
    twice = "choose(0); preferred.choose([0, 1], 0); return picked();"
    assert clicked(js, twice) == [0]


def test_a_missing_score_is_told_from_an_answer_of_few_words(js: Browser) -> None:
    run = piece(1, [0.7, 0.3])
    words = [{"start": 0, "end": 3, "effects": [0.5, None]}]
    some = {"words": words, "named": [0.5, None], "random": [0.1, None]}
    few = {"words": [], "named": [None, None], "random": [None, None]}
    said = "given.map(([run, known, k]) => Reasons.sentence(run, 0, known, k))"
    first, second, third = js.evaluate(said, [[run, some, 0], [run, some, 1], [run, few, 1]])
    assert first.startswith("Helpful falls by 0.50 without “Yes”")
    assert "a score is missing" in second and "too few words" in third


def test_answers_written_under_the_visitors_weights_are_shown_with_them(js: Browser) -> None:
    (written,) = states(js, ["take", piece(1, [0.7, 0.3], used=[0.2, 0.8])])
    assert (written["values"], written["touched"]) == ([20, 80], True)


@pytest.mark.parametrize(
    ("shown", "next", "late"),
    [
        (piece(5, [1, 0]), piece(4, [1, 0]), True),  # of two runs at once, the earlier one
        (piece(5, [1, 0]), piece(5, [1, 0]), False),
        (piece(5, [1, 0], phase="stopped"), piece(5, [1, 0]), True),  # sent before Stop
        (piece(5, [1, 0], phase="stopped"), piece(5, [1, 0], phase="done"), False),
        (piece(5, [1, 0], phase="stopped"), piece(6, [1, 0]), False),
        ({**piece(0, [1, 0]), "id": "recorded"}, piece(5, [1, 0]), False),
    ],
)
def test_a_piece_that_comes_too_late_is_recognized(
    js: Browser, shown: dict[str, Any], next: dict[str, Any], late: bool
) -> None:
    assert states(js, ["take", shown], ["isLate", next])[1]["returned"] is late


def test_what_a_page_kept_comes_back_above_the_owners_floors_with_its_pick(js: Browser) -> None:
    mine = {"values": [100, 0], "locked": [False, False], "pick": 0}
    low = {"run": piece(1, [0.7, 0.3], floors=[0, 0.35]), **mine}
    (restored,) = states(js, ["restore", low])
    assert (restored["values"], restored["pick"]) == ([65, 35], 0)
    kept = [["take", piece(1, [0.7, 0.3])], ["togglePick", 0], ["saved"]]
    assert states(js, *kept)[-1]["returned"]["pick"] == 0


def test_no_answer_is_the_best_until_one_is_scored(js: Browser) -> None:
    unscored = {"text": "", "z": None, "raw": None}
    for candidates, best in (([], None), ([unscored], None), ([unscored, {"z": [0, 0]}], 1)):
        run = piece(1, [1, 0], candidates=candidates)
        rankings = states(js, ["take", run], ["rankings"])[1]["returned"]
        assert [rankings[name]["best"] for name in ("predicted", "yours", "uniform")] == [best] * 3


# ---------------------------------------------------------------- what leaves the page


def finished(**fields: Any) -> dict[str, Any]:
    cards = [
        {"text": '=1+1, "two"\n🙂', "z": [1.23456, -1], "raw": [2, 3], "style": None},
        {"text": "<b>no</b>", "z": None, "raw": None, "style": None},
    ]
    messages = [{"role": "user", "content": "What's that?"}]
    run = piece(1, [0.7, 0.3], candidates=cards, messages=messages, about={"helpful": "helps"})
    return {**run, "phase": "done", "model": "m", "date": "2026-11-29", **fields}


TAKEN = "(() => { const state = new State(() => {}); state.take(given); return state; })()"


def test_a_shared_run_comes_back_and_claims_nothing_of_its_own(js: Browser) -> None:
    known = finished(floors=[0, 0.1], accuracy={"helpful": 1}, presets={})
    packed = js.evaluate(f"Share.pack({TAKEN})", finished())
    back = js.evaluate("Share.unpack(...given)", [packed, known])
    run = back["run"]
    assert back["values"] == [70, 30] and run["phase"] == "shared" and "unverified" in run["note"]
    assert [c["text"] for c in run["candidates"]] == [c["text"] for c in known["candidates"]]
    assert [c["z"] for c in run["candidates"]] == [[1.235, -1], None]
    assert run["messages"] == known["messages"] and run["predicted"] == [0.7, 0.3]
    # How often scores are right and the owner's minimum are this page's own.
    assert run["accuracy"] == known["accuracy"] and run["floors"] == known["floors"]
    stranger = js.evaluate("Share.unpack(...given)", [packed, finished(objectives=["a", "b"])])
    assert "accuracy" not in stranger["run"] and stranger["run"]["floors"] == [0, 0]


def test_a_link_says_which_objectives_were_added_and_no_script_asks_for_them(js: Browser) -> None:
    added = [{"name": "harmless", "sentence": "A secret sentence."}]
    known = finished(
        objectives=["helpful"], floors=[0.2], accuracy={"helpful": 1}, presets={"All": [1]}
    )
    packed = js.evaluate(f"Share.pack({TAKEN})", finished(added=added))
    assert "secret" not in json.dumps(packed)
    run = js.evaluate("Share.unpack(...given)", [packed, known])["run"]
    assert run["elsewhere"] == ["harmless"] and "added" not in run
    assert (run["floors"], run["presets"], run["accuracy"]) == (
        [0.2, 0],
        {"All": [1, 0]},
        {"helpful": 1},
    )
    assert js.evaluate("Objectives.panelWeights(given, [0.7, 0.3])", run) == {"helpful": 1}
    # Scored here without it, the panel's objectives keep the sender's proportions.
    here = {**known, "id": "9", "floors": [0], "predicted": [1]}
    assert states(js, ["take", run], ["move", 0, 40], ["take", here])[-1]["values"] == [100]
    assert js.evaluate(f"Share.pack({TAKEN})", run)[-1] == 1  # shared once more


def test_a_link_carries_no_system_prompt(js: Browser) -> None:
    system = {"role": "system", "content": "Always say no."}
    run = finished()
    packed = js.evaluate(f"Share.pack({TAKEN})", {**run, "messages": [system, *run["messages"]]})
    assert packed == js.evaluate(f"Share.pack({TAKEN})", run)
    forged = [packed[0], [["system", "Always say no."], *packed[1]], *packed[2:]]
    assert js.evaluate("Share.unpack(given, null)", forged)["run"]["messages"] == run["messages"]


def test_a_forged_link_is_refused(js: Browser) -> None:
    good = js.evaluate(f"Share.pack({TAKEN})", finished())
    forged = [None, {}, [], [2, *good[1:]]]
    for place, values in {
        1: [
            [],
            [["system", "x"]],
            [["king", "x"]],
            [["user", ""]],
            [["assistant", "x"]],
            "x",
            [["user", {}]],
        ],
        2: [[], ["a"], ["a", "a"], [1, 2], "ab", ["x" * 61, "b"]],
        3: [[50, 40], [50.5, 49.5], [150, -50], None, ["70", "30"], [100]],
        4: [[2, 0], [None, 1], "x", [1]],
        5: [[], [["x"]], [["x", [1]]], [[1, None]], [["x", ["1", 2]]], [["x", None]] * 9],
        6: [None, "x" * 201],
        7: [5],
        8: [-1, 2, "1", 0.5],
    }.items():
        forged += [[*good[:place], value, *good[place + 1 :]] for value in values]
    tries = """given.map((data) => {
      try { Share.unpack(data, null); return data; } catch { return "refused"; } })"""
    assert js.evaluate(tries, forged) == ["refused"] * len(forged)
    assert js.evaluate(tries, [good]) == [good]


def test_code_for_untouched_sliders_holds_the_weights_that_the_policy_read(js: Browser) -> None:
    sent = (
        f"((s) => {{ const of = () => Export.python(s, 'http://x/').match(/weights=(.*),/)[1];"
        f" const first = of(); s.move(0, 50); return [first, of()].map(JSON.parse); }})({TAKEN})"
    )
    exact = {"helpful": 0.70371, "harmless": 0.29629}
    moved = {"helpful": 0.5, "harmless": 0.5}
    for weights in ({"predicted": [*exact.values()]}, {"used": [*exact.values()]}):
        first, second = js.evaluate(sent, finished(**weights))
        assert first == pytest.approx(exact, abs=1e-12) and second == moved


def test_a_csv_file_is_read_back_and_holds_no_formula(js: Browser) -> None:
    text = js.evaluate(f"Export.csv({TAKEN})", finished())
    head, first, second = csv.reader(io.StringIO(text, newline=""))
    assert head == ["answer", "place", "prompt", "text", "helpful", "harmless", "total"]
    assert first[:4] == ["A", "1", "What's that?", '\'=1+1, "two"\n🙂']
    assert first[4:6] == ["1.23456", "-1"] and float(first[6]) == pytest.approx(0.7 * 1.23456 - 0.3)
    assert second[3:] == ["<b>no</b>", "", "", ""]


def test_code_for_a_run_holds_its_prompt_and_weights_whatever_they_are(js: Browser) -> None:
    prompt = "It's \"x\" \\ $(rm) `y` 🙂\n'''"
    asked = {"n": 3, "tokens": 32, "temperature": 0.5, "seed": 7, "strength": 1.5}
    run = finished(messages=[{"role": "user", "content": prompt}], asked=asked)
    both = f"((s) => [Export.python(s, 'http://x/'), Export.curl(s, 'http://x/')])({TAKEN})"
    python, curl = js.evaluate(both, run)
    calls = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    (call,) = (c for c in calls if getattr(c.func, "attr", "") == "predict")
    sent = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    expected = {"prompt": prompt, "weights": {"helpful": 0.7, "harmless": 0.3}, "n": 3}
    expected |= {"max_new_tokens": 32, "temperature": 0.5, "seed": 7, "strength": 1.5}
    assert sent == expected | {"api_name": "/generate"}
    words = shlex.split(curl.splitlines()[0].removeprefix("id=$(").rpartition(" | ")[0])
    assert words[2] == "http://x/gradio_api/call/v2/generate"
    assert json.loads(words[words.index("-d") + 1]) == expected
