"""What of a recipe's data trains and what is graded: leaks, contradictions, repeats, and folds that hold everything."""

from __future__ import annotations

import json
import unicodedata
from types import SimpleNamespace

import pandas as pd
import pytest

from pro_core.data.entries import PairSource, RatedSource
from pro_core.data.schema import DataError, LabelledResponse, PreferencePair, fold_of
from pro_core.data.training_pairs import (
    CONTRADICTED,
    TRAINED_ON,
    TrainedOn,
    gather_pairs,
    graded_pairs,
    out_of_fold,
)
from pro_core.evaluation.adapter_grades import unseen_sources
from pro_core.evaluation.policy.prompts import held_out_prompts
from pro_core.rewards.classifier_training import RatedResponses
from pro_core.rewards.levels import IntensityScale
from pro_core.runs.recipes import ConfigError

NAMES = ("helpful", "harmless")


def pair(prompt, chosen="yes", rejected="no", split="train", objective="helpful", **more):
    row = {"objective": objective, "prompt": prompt, "chosen": chosen, "rejected": rejected}
    return row | {"split": split} | more


HARMLESS = pair("Something else?", objective="harmless")


def gathered(tmp_path, rows, **entry):
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, HARMLESS])
    (tmp_path / "own.jsonl").write_text(lines)
    return gather_pairs([PairSource(**{"path": "own.jsonl"} | entry)], NAMES, tmp_path)


def ungraded(data):
    return [p.ungraded for p in data.held_out]


@pytest.mark.parametrize(
    "asked",
    [
        "Où est le café ?",
        unicodedata.normalize("NFD", "Où est le café ?"),
        "  où  est\nle CAFÉ ? ",
        [{"role": "user", "content": "Où est le café ?"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Où est le café ?"},
        ],
    ],
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_pair_whose_prompt_was_trained_on_is_not_graded(tmp_path, asked, split):
    """Other answers, and another objective: the prompt is what was seen."""
    rows = [pair("Où est le café ?"), pair("Where is it?", split=split)]
    rows.append(pair(asked, "a new answer", "another", split, "harmless"))
    data = gathered(tmp_path, rows)
    assert ungraded(data) == ["", TRAINED_ON]
    assert [p.prompt[-1]["content"] for p in graded_pairs(data.held_out, split)] == ["Where is it?"]
    assert any(f"1 of 2 {split} pairs" in note for note in data.notes)


def test_conversations_that_only_begin_alike_are_different_prompts(tmp_path):
    talk = "\n\nHuman: Hi\n\nAssistant: Hello, what is it?\n\nHuman: {}"
    rows = [pair(talk.format("My cat is ill.")), pair(talk.format("Tell me a joke."), split="test")]
    rows += [pair(talk.format("My cat is ill."), "a", "b", split="test")]
    assert ungraded(gathered(tmp_path, rows)) == ["", TRAINED_ON]


def test_a_split_that_the_recipe_trains_on_counts_as_trained_on(tmp_path):
    rows = [pair("Q", split="validation"), pair("Q", "c", "d", split="test")]
    assert ungraded(gathered(tmp_path, rows, splits=["train", "validation"])) == [TRAINED_ON]
    assert ungraded(gathered(tmp_path, [*rows, pair("R")])) == ["", ""]


def test_a_text_without_a_prompt_is_compared_itself():
    alone = PreferencePair([], "Why did the hen cross?", "Prices rise", "helpful")
    trained = TrainedOn([alone])
    assert PreferencePair([], "a pun", "prices  RISE", "helpful") in trained
    assert PreferencePair([], "a pun", "prices fall", "helpful") not in trained
    assert LabelledResponse(None, "why did the hen cross?", {}) in trained
    asked = [{"role": "user", "content": "Prices rise"}]
    assert PreferencePair(asked, "a", "b", "helpful") not in trained


def test_contradictory_pairs_train_and_are_not_graded(tmp_path):
    both = [("a", "b"), ("b", "a")]
    rows = [pair("Q", *texts) for texts in both] + [pair("T", *texts, "test") for texts in both]
    rows += [
        pair("T", "b", "c", "test"),
        pair("T", "a", "b", "test", "harmless"),  # people may well prefer the other one there
        pair("U", "a", "b", "test"),
    ]
    data = gathered(tmp_path, rows)
    assert [p.chosen for p in data.training] == ["a", "b", "yes"]
    assert ungraded(data) == [CONTRADICTED, CONTRADICTED, "", "", ""]
    assert any("2 in training" in note and "2 held out" in note for note in data.notes)


@pytest.mark.parametrize("other", [unicodedata.normalize("NFD", "Un café."), " Un  café.\n"])
def test_texts_that_differ_in_spelling_alone_are_the_same_two_texts(tmp_path, other):
    rows = [pair("T", "Un café.", "No.", "test"), pair("T", "No.", other, "test")]
    rows += [pair("Q", "Un café.", "No."), pair("Q", other, "No.")]
    rows += [pair("U", "Un café.", "No.", "test"), pair("U", "no.", "Un café.", "test")]
    data = gathered(tmp_path, rows)
    assert ungraded(data) == [CONTRADICTED, CONTRADICTED, "", ""]  # case is not spelling
    assert any("repeat another one: 1;" in note for note in data.notes)


def test_repeated_pairs_are_counted(tmp_path):
    data = gathered(tmp_path, [pair("Q"), pair("Q"), pair("q "), pair("R", split="test")])
    assert len(data.training) == 4  # three of them, and the other objective's
    assert any("repeat another one: 2;" in note for note in data.notes)
    assert ungraded(data) == [""]


def test_clean_data_gives_no_notes(tmp_path):
    data = gathered(tmp_path, [pair("Q"), pair("R", split="test")])
    assert data.notes == [] and ungraded(data) == [""]
    (entry,) = data.entries
    assert entry.pairs == {"helpful": 1, "harmless": 1} and entry.licences == ["unknown"]


def test_licences_come_from_the_entry_or_else_from_the_rows(tmp_path):
    rows = [pair("Q", licence="MIT"), pair("R", license="CC0-1.0")]
    assert gathered(tmp_path, rows).entries[0].licences == ["CC0-1.0", "MIT", "unknown"]
    data = gathered(tmp_path, rows, licence="mine")
    assert data.entries[0].licences == ["mine"] and {p.licence for p in data.training} == {"mine"}


def test_held_out_pairs_of_other_objectives_are_left_out_and_counted(tmp_path):
    data = gathered(tmp_path, [pair("Q"), pair("R", split="test", objective="humor")])
    assert data.held_out == [] and any("{'humor': 1}" in note for note in data.notes)


def test_rated_responses_to_trained_prompts_are_not_graded(tmp_path):
    rows = [
        {"prompt": p, "response": r, "labels": {"fluency": n}, "split": s, "licence": "MIT"}
        for p, r, n, s in (
            ("Q", "a", 1, "train"),
            ("Q", "b", 5, "train"),
            ("q", "c", 3, "test"),
            ("R", "d", 4, "test"),
        )
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scales = (IntensityScale("fluency", 1, 5, (3,)),)
    sources = [RatedSource(path="rated.jsonl", labels=["fluency"])]
    data = RatedResponses.load(sources, scales, tmp_path)
    assert [r.ungraded for r in data.held_out] == [TRAINED_ON, ""]
    assert data.licences == [["MIT"]] and "1 of 2 test responses" in data.notes[-1]


def test_policies_are_not_graded_on_prompts_that_train(tmp_path, capsys):
    rows = [pair("Q"), pair("q", "c", "d", split="test"), pair("R", split="test")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (prompt,) = held_out_prompts([PairSource(path="own.jsonl")], tmp_path, "test", 1)
    assert prompt[-1]["content"] == "R"
    assert "1 test prompts" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="got 1 test prompts"):
        held_out_prompts([PairSource(path="own.jsonl")], tmp_path, "test", 2)


# ---------------------------------------------------------------- folds


def asked(text, objective="helpful", **more):
    return PreferencePair([{"role": "user", "content": text}], "a", "b", objective, **more)


def test_folds_without_pairs_are_left_out_and_no_prompt_is_on_both_sides():
    pairs = [asked(f"question {i // 2}") for i in range(8)]
    parts = out_of_fold(pairs, 50)
    assert sorted(i for part in parts for i in part.scored) == list(range(8))
    for part in parts:
        assert part.scored and sorted([*part.scored, *part.rest]) == list(range(8))
        inside, outside = (
            {pairs[i].prompt[0]["content"] for i in rows} for rows in (part.scored, part.rest)
        )
        assert not inside & outside


def test_ties_train_and_are_not_scored():
    pairs = [asked("question 1"), asked("question 2"), asked("question 1", tie=True)]
    parts = out_of_fold(pairs, 50)
    assert [part.scored for part in parts if 0 in part.scored] == [[0]]
    assert sorted(i for part in parts for i in part.rest) == [0, 1, 2]


@pytest.mark.parametrize("objective", NAMES)
def test_an_objective_in_one_fold_alone_is_refused_by_name(objective):
    """Nobody could score its pairs but a head that never learned it."""
    other = next(name for name in NAMES if name != objective)
    first, second = (
        "question 1",
        next(
            q for q in map("question {}".format, range(99)) if fold_of(q) != fold_of("question 1")
        ),
    )
    pairs = [asked(first, objective), asked(first, other), asked(second, other)]
    with pytest.raises(DataError, match=f"^{objective}: .*`folds`"):
        out_of_fold(pairs, 5)
    assert len(out_of_fold([*pairs, asked(second, objective)], 5)) == 2


def test_an_objective_of_ties_alone_is_refused(tmp_path):
    rows = [
        {
            "prompt": q,
            "response": r,
            "labels": {"behaviour": b},
            "prompt_unsafe": 0,
            "split": "train",
        }
        for q in ("Q", "R")
        for r, b in (("Sorry, no.", "refusal"), ("Here it is.", "compliance"))
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = [{"path": "x.jsonl", "kind": kind} for kind in ("refusals", "harmless_ties")]
    with pytest.raises(DataError, match="harmless: all its training pairs are ties"):
        gather_pairs([PairSource(**kind) for kind in kinds], NAMES, tmp_path)


# ---------------------------------------------------------------- sources left out


def test_leaving_out_a_source_leaves_out_pairs_made_from_it(tmp_path):
    """Pairs of its own responses under another name would show the adapter what it is said not to have seen."""
    names = ["truth", "truth_controlled", "truth_ties", "truthful notes", "letters"]
    table = pd.DataFrame({"source": names, "id": names, "objective": "helpful", "fold": 0})
    for side in ("chosen", "rejected"):
        for name in NAMES:
            table[f"z_{side}_{name}"] = 0.0

    def fit(folder, rows, *rest):
        raise KeyboardInterrupt(sorted(rows.source))

    run = SimpleNamespace(
        recipe=SimpleNamespace(folds=2), train=table, objective_names=NAMES, seeds=[0]
    )
    run.output, run.chosen, run.fit = tmp_path, {"target": "pairwise"}, fit
    run.held_out = lambda split: table[table.source == "truth"]
    with pytest.raises(KeyboardInterrupt) as stopped:
        unseen_sources(run, "test")
    assert stopped.value.args == (["letters", "truthful notes"],)
