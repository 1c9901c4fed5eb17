"""Other people's preference data: each form gives exactly the pair or the ratings that it says, or is named."""

import json

import pytest

from pro_core.data.entries import PairSource, RatedSource
from pro_core.data.schema import DataError, load_examples, load_responses
from pro_core.data.texts import TextSource, load_prompts, load_texts
from pro_core.doctor.inputs import load_pairs


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def written(tmp_path, *rows):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ASKED = [user("What is 2+2?")]
BRIEF = {"role": "system", "content": "Be brief."}
LONG = [user("Hi"), assistant("Hello!"), user("What is 2+2?")]
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is 2+2?\n\nAssistant: "

# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "What is 2+2?", "chosen": "4", "rejected": "5"}, ASKED),
        ({"prompt": ASKED, "chosen": [assistant("4")], "rejected": [assistant("5")]}, ASKED),
        ({"prompt": "What is 2+2?", "chosen": [assistant("4")], "rejected": [assistant("5")]}, ASKED),
        ({"chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]}, ASKED),
        ({"chosen": [*LONG, assistant("4")], "rejected": [*LONG, assistant("5")]}, LONG),
        # the prompt once more beside whole conversations, as ultrafeedback_binarized has it
        ({"prompt": "What is 2+2?", "chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")],
          "score_chosen": 8.5, "score_rejected": 3.0}, ASKED),
        ({"prompt": "What is 2+2?", "chosen": [*LONG, assistant("4")], "rejected": [*LONG, assistant("5")]}, LONG),
        ({"prompt": LONG[:1], "chosen": [*LONG[1:], assistant("4")], "rejected": [*LONG[1:], assistant("5")]}, LONG),
        ({"prompt": [{"role": "user", "content": parts("What is", "2+2?")}], "chosen": "4", "rejected": "5"},
         [user("What is\n2+2?")]),
        ({"prompt": ASKED, "chosen": [{"role": "assistant", "content": parts("4")}],
          "rejected": [{"role": "assistant", "content": parts("5")}]}, ASKED),
        ({"prompt": [{"from": "human", "value": "What is 2+2?"}], "chosen": "4", "rejected": "5"}, ASKED),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "What is 2+2?"}],
          "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}},
         [{"role": "system", "content": "Be brief."}, *ASKED]),
        # the end of the prompt once more before the answers: no turn is lost, none is there twice
        ({"prompt": [BRIEF, *ASKED], "chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]},
         [BRIEF, *ASKED]),
        ({"prompt": LONG, "chosen": [user(" What is 2+2?\n"), assistant("4")],
          "rejected": [user(" What is 2+2?\n"), assistant("5")]}, LONG),
        ({"prompt": LONG, "chosen": [*LONG[1:], assistant("4")], "rejected": [*LONG[1:], assistant("5")]}, LONG),
        ({"prompt": HH, "chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]}, LONG),
        ({"prompt": [BRIEF, LONG[0]], "chosen": [*LONG, assistant("4")], "rejected": [*LONG, assistant("5")]},
         [BRIEF, *LONG]),
        ({"prompt": ASKED, "chosen": [BRIEF, *LONG, assistant("4")], "rejected": [BRIEF, *LONG, assistant("5")]},
         [BRIEF, *LONG]),
        ({"messages": LONG, "chosen": "4", "rejected": "5"}, LONG),
        ({"input": {"messages": ASKED}, "preferred_output": [assistant("4")],
          "non_preferred_output": [assistant("5")]}, ASKED),
        ({"prompt": [{"role": "developer", "content": "Be brief."}, *ASKED], "chosen": "4", "rejected": "5"},
         [{"role": "system", "content": "Be brief."}, *ASKED]),
        ({"chosen": HH + "4", "rejected": HH + "5"}, LONG),
        ({"prompt": HH, "chosen": HH + "4", "rejected": HH + "5"}, LONG),
        ({"prompt": HH, "chosen": "4", "rejected": " 5"}, LONG),
        ({"prompt": None, "chosen": HH + "4", "rejected": HH + "5"}, LONG),
    ],
    ids=["text", "explicit", "explicit text", "implicit", "implicit, several turns", "both", "both, several turns",
         "explicit, several turns follow", "content parts", "answers in parts", "ShareGPT prompt", "ShareGPT",
         "explicit, asked again", "explicit, last turn again", "explicit, last turns again", "transcript, asked again",
         "explicit, goes on from its last turn", "both, with a system turn",
         "messages", "OpenAI", "developer", "hh-rlhf", "hh-rlhf and prompt", "hh-rlhf prompt", "null prompt"],
)  # fmt: skip
def test_a_preference_row_is_read(tmp_path, row, prompt):
    [pair] = load_examples(written(tmp_path, {"objective": "helpful", **row}))
    assert (pair.prompt, pair.chosen, pair.rejected.strip()) == (prompt, "4", "5")
    assert (pair.objective, pair.id) == ("helpful", "f-1")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": None, "chosen": "4", "rejected": "5"}, "no field 'prompt', and `chosen` and `rejected` are no"),
        ({"chosen": "4", "rejected": "5"}, "no field 'prompt'"),
        ({"chosen": [assistant("4")], "rejected": [assistant("5")]}, "empty prompt"),
        ({"prompt": ASKED, "chosen": "4"}, "no field 'rejected'"),
        ({"prompt": ASKED, "chosen": [assistant("4")], "rejected": "5"}, "as 'chosen', expected text"),
        ({"prompt": ASKED, "chosen": [], "rejected": []}, "an empty list of messages"),
        ({"prompt": "Who?", "chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]},
         "`prompt` and the turns that `chosen` answers are not one conversation"),
        ({"prompt": [user("Who?"), assistant("Who what?"), *ASKED], "chosen": [user("Hi"), *ASKED, assistant("4")],
          "rejected": [user("Hi"), *ASKED, assistant("5")]}, "`prompt` and the turns"),
        ({"prompt": [BRIEF, *ASKED], "chosen": [*LONG, assistant("4")], "rejected": [*LONG, assistant("5")]},
         "`prompt` and the turns"),
        ({"prompt": "a", "chosen": "4", "rejected": "5", "score_chosen": None, "score_rejected": 3},
         "got None as 'score_chosen', expected a finite number"),
        ({"prompt": "a", "chosen": "4", "rejected": "5", "score_chosen": 4, "score_rejected": float("nan")},
         "got nan as 'score_rejected', expected a finite number"),
        ({"prompt": [{"role": "tool", "content": "4"}], "chosen": "4", "rejected": "5"}, "the role 'tool', expected"),
        ({"prompt": ASKED, "chosen": [{"role": "assistant", "content": None, "tool_calls": []}],
          "rejected": [assistant("5")]}, "the message content None, expected text"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
          "chosen": "4", "rejected": "5"}, "a content part of the type 'image_url'"),
        ({"prompt": [{"role": ["user"], "content": "a"}], "chosen": "4", "rejected": "5"}, "the role"),
        ({"prompt": 3, "chosen": "4", "rejected": "5"}, ""),
        ({"prompt": ASKED, "chosen": "4", "rejected": "5", "objective": ["helpful"]}, "as 'objective', expected text"),
        ({"instruction": "a", "completions": ["b"]}, ""),
    ],
)  # fmt: skip
def test_a_row_of_another_form_is_named(tmp_path, row, said):
    good = {"objective": "helpful", "prompt": "a", "chosen": "4", "rejected": "5"}
    with pytest.raises(DataError, match=rf"record 2 \(id None\): .*{said}"):
        load_examples(written(tmp_path, good, {"objective": "helpful", **row}))


PARTED = "2 rows left out, the two conversations do not share all turns up to one last answer each."


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (HH + "4\n\nHuman: Thanks", HH + "5"),
        (HH + "4\n\nHuman: Thanks", HH + "5\n\nHuman: Thanks"),
        (HH + "4\n\nHuman: Thanks", HH + "4\n\nHuman: No"),
        (HH + "4\n\nHuman: No?\n\nAssistant: 5", HH + "5\n\nHuman: No?\n\nAssistant: 4"),
        ([*ASKED, assistant("4"), user("Thanks")], [*ASKED, assistant("5")]),
        ([*ASKED, assistant("4")], [user("What is 2+3?"), assistant("5")]),
    ],
)
def test_conversations_that_differ_early_or_go_on_are_left_out_and_counted(
    tmp_path, chosen, rejected
):
    good = {"objective": "helpful", "prompt": "a", "chosen": "4", "rejected": "5"}
    row = {"objective": "helpful", "chosen": chosen, "rejected": rejected}
    other_way = row | {"chosen": rejected, "rejected": chosen}
    notes: list[str] = []
    assert len(load_examples(written(tmp_path, good, row, other_way), notes=notes)) == 1
    assert notes == [PARTED]
    with pytest.raises(DataError, match=f"no row is left. {PARTED}"):
        load_examples(written(tmp_path, row, other_way))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_completion_that_writes_the_users_next_turn_is_left_out_on_both_sides(tmp_path, side):
    row = {"objective": "helpful", "prompt": "Human: hi", "chosen": "4", "rejected": "5"}
    bad = row | {side: "hello\n\nHuman: thanks"}
    play = bad | {"prompt": "Write a dialogue."}  # no transcript: here these words are text
    line = row | {side: "(aside)\nHuman: thanks"}  # no blank line before: not a turn
    notes: list[str] = []
    found = load_examples(written(tmp_path, row, bad, play, line), notes=notes)
    assert [getattr(p, side) for p in found[1:]] == [play[side], line[side]]
    assert notes == ["1 rows left out, a completion goes on with a `Human:` turn."]


TOAST = "Toast.\n\nHuman: And butter?\n\nAssistant: Too."


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("What is for tea?", TOAST),
        ([user("What is for tea?")], TOAST),
        ([user("What is for tea?")], TOAST.replace("\n", "\r\n")),
        ([user("What is for tea?")], [assistant(TOAST)]),
        (None, [user("What is for tea?"), assistant(TOAST)]),
        ("Human: What is for tea?\n\nAssistant:", TOAST),
    ],
    ids=["text", "messages", "carriage returns", "explicit", "implicit", "transcript"],
)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_completion_that_goes_on_with_turns_is_left_out_whatever_the_prompts_form(
    tmp_path, prompt, completion, side
):
    good = {"objective": "helpful", "prompt": "a", "chosen": "4", "rejected": "5"}
    soup = completion if isinstance(completion, str) else [*completion[:-1], assistant("Soup.")]
    row = good | {"prompt": prompt, "chosen": soup, "rejected": soup, side: completion}
    notes: list[str] = []
    assert len(load_examples(written(tmp_path, good, row), notes=notes)) == 1
    assert notes == ["1 rows left out, a completion goes on with a `Human:` turn."]


@pytest.mark.parametrize(
    "text",
    [
        "A play.\n\nHuman: Who are you?\n\nRobot: Your toaster.",
        "Human: Hi\n\nAssistant: Hello.",
        "(a list)\nHuman: one\nAssistant: two",
        "Notes.\n\nAssistant: first.\n\nHuman: second.",
    ],
)
def test_marks_outside_of_turns_are_text(tmp_path, text):
    row = {"objective": "helpful", "prompt": "Write.", "chosen": text, "rejected": "no"}
    [pair] = load_examples(written(tmp_path, row))
    assert pair.chosen == text


@pytest.mark.parametrize(("better", "worse"), [(5, 5), (3, 5), ("8.5", "10")])
def test_scores_that_do_not_favour_the_chosen_answer_leave_a_pair_out(tmp_path, better, worse):
    row = {"objective": "overall", "prompt": "a", "chosen": "4", "rejected": "5"}
    notes: list[str] = []
    load_examples(
        written(tmp_path, row, row | {"score_chosen": better, "score_rejected": worse}), notes=notes
    )
    assert notes == [
        "1 rows left out, their scores do not say that `chosen` is better than `rejected`."
    ]


def test_pairs_without_an_objective_take_the_only_one_that_their_entry_names(tmp_path):
    row = {"prompt": "a", "chosen": "4", "rejected": "5"}
    written(tmp_path, row, row | {"prompt": "b", "objective": "honest"})

    def objectives(**entry):
        source = PairSource(path="f.jsonl", **entry)
        return [p.objective for p in source.load(tmp_path)]

    assert objectives(objectives=["helpful"]) == ["helpful"]
    assert objectives(objectives=["honest"]) == ["honest", "honest"]
    assert objectives(as_objective="overall") == ["overall", "overall"]
    assert objectives(objectives={"helpful": "honest"}) == ["helpful", "helpful"]
    for several in ({"objectives": ["helpful", "honest"]}, {}):
        with pytest.raises(
            DataError, match="record 1 .*no field 'objective': .*exactly one in the recipe's entry"
        ):
            objectives(**several)


# ---------------------------------------------------------------- ratings

HELPSTEER = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 0}


def completion(text, **ratings):
    return {
        "response": text,
        "annotations": {k: {"Rating": v, "Rationale": "r"} for k, v in ratings.items()},
    }


def pairs_of(tmp_path, objectives, *rows, **entry):
    written(tmp_path, *rows)
    settings = {"path": "f.jsonl", "kind": "labels", "objectives": objectives}
    source = PairSource(**settings | entry)
    notes: list[str] = []
    found = [
        (p.objective, p.prompt[-1]["content"], p.chosen, p.rejected)
        for p in source.load(tmp_path, notes)
    ]
    return found, notes


def test_ratings_in_columns_become_pairs_of_each_objective(tmp_path):
    one = {"prompt": "a", "response": "long", "helpfulness": 4, "honesty": 1, "length": 9}
    two = {"prompt": "a", "response": "short", "helpfulness": 2, "honesty": 3, "length": 5}
    names = {"helpful": "helpfulness", "honest": "honesty"}
    assert pairs_of(tmp_path, names, one, two)[0] == [
        ("helpful", "a", "long", "short"), ("honest", "a", "short", "long"),
    ]  # fmt: skip
    assert pairs_of(tmp_path, ["honesty"], one, two)[0] == [("honesty", "a", "short", "long")]


def test_a_mapping_renames_labels_and_hides_others_of_that_name(tmp_path):
    one = {
        "prompt": "a",
        "response": "x",
        "labels": {"helpful": 1, "correctness": 0},
        "split": "train",
    }
    two = {
        "prompt": "a",
        "response": "y",
        "labels": {"helpful": 0, "correctness": 1},
        "split": "train",
    }
    three = one | {"response": "z", "labels": {"helpful": 5}}
    assert pairs_of(tmp_path, {"helpful": "correctness"}, one, two, three)[0] == [
        ("helpful", "a", "y", "x")
    ]
    # `controlled` pairs agree on the other labels; the one that is hidden is none of them.
    assert pairs_of(tmp_path, {"helpful": "correctness"}, one, two, kind="controlled")[0] == [
        ("helpful", "a", "y", "x")
    ]


def test_a_local_copy_of_helpsteer_is_read_as_the_hubs(tmp_path):
    prompt = (
        "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nTell me more\n<extra_id_1>Assistant\n"
    )
    rows = [{"prompt": prompt, "response": "More.", **HELPSTEER},
            {"prompt": prompt, "response": "No.", **HELPSTEER, "helpfulness": 0}]  # fmt: skip
    found, _ = pairs_of(tmp_path, {"helpful": "helpfulness"}, *rows)
    assert found == [("helpful", "Tell me more", "More.", "No.")]
    first = load_examples(tmp_path / "f.jsonl")[0]
    assert first.prompt == [user("Hi"), assistant("Hello!"), user("Tell me more")]
    assert first.labels == HELPSTEER


def test_a_local_copy_of_ultrafeedback_is_read_as_the_hubs(tmp_path):
    row = {
        "id": "u", "licence": "MIT", "instruction": "Explain tides.", "source": "evol",
        "completions": [completion("The moon.", helpfulness="5", honesty="N/A"),
                        completion("No idea.", helpfulness="1", honesty="5"),
                        completion("Water.", helpfulness="N/A", honesty="4")],
    }  # fmt: skip
    found, notes = pairs_of(tmp_path, {"helpful": "helpfulness", "honest": "honesty"}, row)
    assert found == [
        ("helpful", "Explain tides.", "The moon.", "No idea."),
        ("honest", "Explain tides.", "No idea.", "Water."),
    ]
    assert not notes
    assert [(e.id, e.source, e.licence) for e in load_examples(tmp_path / "f.jsonl")] == [
        ("u-0", "f", "MIT"), ("u-1", "f", "MIT"), ("u-2", "f", "MIT"),
    ]  # fmt: skip


def test_ratings_of_ultrafeedback_are_any_finite_numbers(tmp_path):
    said = {"a": "4.5", "b": "5", "c": 3, "d": 2.5, "e": "N/A", "f": "nan", "g": "inf", "h": None}
    row = {"instruction": "Explain tides.", "completions": [completion("The moon.", **said)]}
    [rated] = load_examples(written(tmp_path, row))
    assert rated.labels == {"a": 4.5, "b": 5, "c": 3, "d": 2.5}
    assert [type(rated.labels[name]) for name in "abc"] == [float, int, int]


def test_a_classifier_reads_ratings_in_columns_too(tmp_path):
    rows = [
        {"prompt": "a", "response": "x", **HELPSTEER},
        {"prompt": "a", "response": "y", "stars": "N/A"},
    ]
    written(tmp_path, *rows, {"prompt": "a", "response": "z", "stars": 2})
    entry = {
        "path": "f.jsonl",
        "labels": {"good": "helpfulness", "liked": "stars"},
        "licence": "CC0-1.0",
    }
    source = RatedSource(**entry)
    notes: list[str] = []
    found = source.load(tmp_path, notes)
    assert [(r.response, r.labels, r.licence) for r in found] == [
        ("x", {"good": 3}, "CC0-1.0"), ("z", {"liked": 2}, "CC0-1.0"),
    ]  # fmt: skip
    assert notes == ["f.jsonl: 1 responses without a rating left out."]


def test_a_text_rated_twice_is_not_paired_with_itself(tmp_path):
    rows = [
        {"prompt": "a", "response": text, "good": g}
        for text, g in (("un café", 1), (" un  cafe\u0301\n", 0), ("y", 0))
    ]
    found, notes = pairs_of(tmp_path, ["good"], *rows)
    assert found == [("good", "a", "un café", "y")]
    assert notes == [
        "f.jsonl: 1 responses repeat another one to their prompt; a text makes no pair with itself."
    ]


# ---------------------------------------------------------------- what is counted, and licences


def test_what_a_source_leaves_out_is_counted(tmp_path):
    same = {"objective": "helpful", "prompt": "a", "chosen": "b \x00", "rejected": "b"}
    rows = [same | {"rejected": "c"}, same, same | {"rejected": "\u200b"}]
    rows += [{"prompt": "a", "response": "x", "labels": {"good": 1}}]
    written(tmp_path, *rows)
    notes: list[str] = []
    assert len(PairSource(path="f.jsonl").load(tmp_path, notes)) == 2
    assert notes == [
        "f.jsonl: 1 labelled responses left out, kind `labels` pairs them.",
        "f.jsonl: 1 pairs left out, their two completions are the same text.",
        "f.jsonl: 1 pairs kept in which a completion shows no text.",
    ]
    written(tmp_path, same)
    with pytest.raises(DataError, match="no pairs for any objective. 1 pairs left out, their two"):
        PairSource(path="f.jsonl").load(tmp_path)


@pytest.mark.parametrize("other", ["Un cafe\u0301.", "Un  café.", "Un\ncafé. "])
def test_two_spellings_of_a_text_are_not_compared(tmp_path, other):
    row = {"objective": "helpful", "prompt": "a", "chosen": "Un café.", "rejected": other}
    path = written(tmp_path, row, row | {"rejected": "un café."})
    notes: list[str] = []
    [kept] = PairSource(path="f.jsonl").load(tmp_path, notes)
    assert kept.rejected == "un café."
    said = "1 pairs left out, their two completions are the same text."
    assert notes == [f"f.jsonl: {said}"]
    loaded = load_pairs([str(path)], ["helpful"])
    assert loaded.pairs == [kept] and "1 pairs left out" in loaded.notes[0]


def test_responses_without_a_rating_are_counted(tmp_path):
    rows = [{"prompt": "a", "response": text, "labels": labels} for text, labels in
            (("x", {"good": 1}), ("y", {"good": 0}), ("z", {}), ("w", {"other": 1}))]  # fmt: skip
    assert pairs_of(tmp_path, ["good"], *rows)[1] == [
        "f.jsonl: 2 responses have no rating of good."
    ]


@pytest.mark.parametrize("key", ["licence", "license"])
def test_licences_travel_with_the_rows_and_a_recipes_own_wins(tmp_path, key):
    pair = {"objective": "good", "prompt": "a", "chosen": "x", "rejected": "y", key: "CC-BY-4.0"}
    rated = [{"prompt": "b", "response": text, "labels": {"good": g}, key: said}
             for text, g, said in (("x", 1, "MIT"), ("y", 0, None))]  # fmt: skip
    written(tmp_path, pair, *rated)
    source = PairSource(path="f.jsonl", kind="labels", objectives=["good"])
    assert [p.licence for p in source.load(tmp_path)] == ["CC-BY-4.0", "MIT"]
    named = PairSource(path="f.jsonl", licence="CC0-1.0")
    assert [p.licence for p in named.load(tmp_path)] == ["CC0-1.0"]
    assert [r.licence for r in load_texts([TextSource(path="f.jsonl")], tmp_path)] == [
        "CC-BY-4.0"
    ] * 2 + [
        "MIT",
        "",
    ]


# ---------------------------------------------------------------- texts to be scored, prompts to be answered


def test_texts_of_every_form_can_be_scored(tmp_path):
    rows = [
        {"chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]},
        {"messages": [*LONG, assistant("six")]},
        {"prompt": ASKED, "completion": [assistant("seven")]},
        {"instruction": "b", "completions": [completion("eight"), completion("nine")]},
        {"prompt": "c", "response": "ten", "id": "t", **HELPSTEER},
    ]
    found = load_responses(written(tmp_path, *rows))
    assert [(r.id, r.response) for r in found] == [
        ("f-1-0", "4"), ("f-1-1", "5"), ("f-2", "six"), ("f-3", "seven"),
        ("f-4-0", "eight"), ("f-4-1", "nine"), ("t", "ten"),
    ]  # fmt: skip
    assert [r.prompt for r in found[:4]] == [ASKED, ASKED, LONG, ASKED]
    assert all(r.labels == {} for r in found)


def test_prompts_of_every_form_can_be_answered(tmp_path):
    rows = [{"prompt": "a"}, {"messages": [user("b")]}, {"messages": [user("c"), assistant("x")]},
            {"instruction": "d", "completions": [completion("x")]}, {"chosen": [user("e"), assistant("x")],
            "rejected": [user("e"), assistant("y")]}, {"chosen": HH + "x", "rejected": "\n\nHuman: e\n\nAssistant: x"},
            {"conversations": [{"from": "human", "value": "f"}]}, {"response": "no prompt"}]  # fmt: skip
    written(tmp_path, *(row | {"split": "train"} for row in rows))
    found = load_prompts([TextSource(path="f.jsonl")], tmp_path)
    assert [p[-1]["content"] for p in found] == list("abcdef")


def test_the_doctor_reads_other_forms_and_says_what_it_left_out(tmp_path):
    rows = [{"prompt": "a", "response": text, "good": g} for text, g in (("x", 1), ("y", 0))]
    parted = {"chosen": HH + "4", "rejected": HH + "5\n\nHuman: Thanks"}
    path = str(written(tmp_path, *rows, parted, {"prompt": "b", "chosen": "x", "rejected": "x "}))
    loaded = load_pairs([path], ["good"])
    assert [(p.objective, p.chosen, p.rejected) for p in loaded.pairs] == [("good", "x", "y")]
    assert len(loaded.notes) == 2
    assert "1 rows left out" in loaded.notes[0] and "1 pairs left out" in loaded.notes[1]
