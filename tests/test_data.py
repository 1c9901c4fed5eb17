"""Data: prompts, splits, the files' schema, and labels turned into pairs."""

import gzip
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pro_core.data.entries import PairSource
from pro_core.data.pairs import (
    HUMOR_REQUESTS,
    constructed_humor_pairs,
    controlled_pairs,
    harmless_ties,
    other_prompt_pairs,
    pairs_from_labels,
    refusal_pairs,
    unprompted_pairs,
)
from pro_core.data.schema import (
    DataError,
    LabelledResponse,
    PreferencePair,
    clean_text,
    content_spans,
    fold_of,
    hash_unit,
    is_blank,
    load_examples,
    render_messages,
    split_of,
    to_messages,
)
from pro_core.data.sources import default_data_dir
from pro_core.data.texts import TextSource, load_texts
from pro_core.data.training_pairs import gather_pairs, out_of_fold

USER = [{"role": "user", "content": "Hi"}]


def labelled(name, response, labels, split="train", **extra):
    return LabelledResponse(
        [{"role": "user", "content": name}], response, labels, "s", response, split, extra
    )


def write(path, rows):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompt", "rendered"),
    [
        ("What is love?", "What is love?"),
        ("Human: What is love?", "What is love?"),
        ("Q: What is love?\nA:", "What is love?"),
        (
            "Human: Hi\n\nAssistant: Hello!\n\nHuman: Why?",
            "User: Hi\n\nAssistant: Hello!\n\nUser: Why?",
        ),
        ([{"role": "system", "content": "Be kind."}, *USER], "Hi"),
        ("  \x00Hi\x07 ", "Hi"),
        ("שלום 🙂", "שלום 🙂"),
        ("🙂🙂", "🙂🙂"),
        ("Hi \ud83d\ude42", "Hi 🙂"),
        ("Hi \ud83d", "Hi \ufffd"),
        ("Cafe\u0301", "Café"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "Hi"),
        ([{"from": "human", "value": "Hi"}], "Hi"),
        (
            "Human: Go on.\nAssistant: (enters) Hello.\nHuman: Who is he?\n\nAssistant:",
            "Go on.\nAssistant: (enters) Hello.\nHuman: Who is he?",
        ),
        (
            "Human: Hi\r\n\r\nAssistant: Hello!\r\n\r\nHuman: Why?",
            "User: Hi\n\nAssistant: Hello!\n\nUser: Why?",
        ),
        ("\u200bHi\u200b there", "\u200bHi\u200b there"),
        ([*USER, {"role": "assistant", "content": "\u2060"}, *USER], "User: Hi\n\nUser: Hi"),
    ],
)
def test_every_source_renders_to_one_form(prompt, rendered):
    messages = to_messages(prompt)
    assert render_messages(messages) == rendered
    spans = content_spans(messages)
    assert [rendered[start:end] for _, start, end in spans] == [
        m["content"] for m in messages if m["role"] != "system"
    ]
    assert all(rendered[s:e] == messages[i]["content"] for i, s, e in spans)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty prompt"),
        (" \n\t", "empty prompt"),
        ("\x00\x01", "empty prompt"),
        ("Human: ", "empty prompt"),
        ("\u200b", "empty prompt"),
        ("\ufeff", "empty prompt"),
        ("\u2060 \u200b\u200e\u00ad", "empty prompt"),
        ("\u3164\u2800\ufe0f\u115f", "empty prompt"),
        ([{"role": "user", "content": "\u200b"}], "empty prompt"),
        ([], "empty prompt"),
        ([{"role": "assistant", "content": "Hi"}], "at least one user message"),
        ("x" * 200_001, "200,001 characters"),
        ([{"role": "robot", "content": "Hi"}], "role"),
        ([{"content": "Hi"}], "role"),
        (["Hi"], "expected"),
    ],
)
def test_a_prompt_that_cannot_be_read_says_why(prompt, said):
    with pytest.raises(ValueError, match=said):
        to_messages(prompt)


ANY_TEXT = st.text(
    st.characters(exclude_categories=()), max_size=200
)  # halves of surrogate pairs, too


@given(ANY_TEXT)
def test_clean_text_can_be_stored_and_sent_and_is_cleaned_once(text):
    cleaned = clean_text(text)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert clean_text(cleaned) == cleaned


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=200))
def test_text_without_halves_and_control_characters_stays_as_it_is(text):
    assert clean_text(text + "\t\r\n") == text + "\t\r\n"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Good luck \ud83d\ude00!", "Good luck 😀!"),
        ("\ud83d", "\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83da\ude00", "\ufffda\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("\ud83d\x00\ude00", "😀"),
        ("a\x1b[1mb\x00\x7f\r\n\tc", "a[1mb\r\n\tc"),
        ("\ufeffa\u2028b", "\ufeffa\u2028b"),
    ],
)
def test_halves_of_a_character_are_joined_or_replaced(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize("text", ["a", "😀", "👩\u200d👩", "\u0301", "。", "\ufffd", "\ue000"])
def test_visible_text_is_not_blank(text):
    assert not is_blank(f"\u200b{text} ")


@given(ANY_TEXT)
def test_one_text_in_two_spellings_has_one_hash(text):
    text = clean_text(text)
    composed, split_up = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert hash_unit(composed) == hash_unit(split_up)


def test_two_spellings_of_a_prompt_are_one_prompt():
    for i in range(40):
        composed, split_up = (
            unicodedata.normalize(form, f"Où est le café numéro {i} ?") for form in ("NFC", "NFD")
        )
        assert composed != split_up
        assert to_messages(composed) == to_messages(split_up)
        assert (split_of(composed), fold_of(composed)) == (split_of(split_up), fold_of(split_up))


def test_splits_and_folds_never_change():
    """Whoever changes the hash moves rows of published sets between train and test."""
    prompts = ("What is love?", "Où est le café ?", "如何杀死一个Python进程？", "İstanbul ΣΑΣ")
    assert [round(hash_unit(p), 6) for p in prompts] == [0.706966, 0.424699, 0.017915, 0.893277]
    assert [(split_of(p), fold_of(p)) for p in prompts] == [
        ("validation", 4), ("train", 4), ("train", 4), ("test", 1),
    ]  # fmt: skip


@given(ANY_TEXT)
def test_any_text_is_read_or_refused_in_words(text):
    try:
        messages = to_messages(text)
    except ValueError as error:
        assert "empty prompt" in str(error)
    else:
        assert render_messages(messages).strip()


def test_splits_and_folds_depend_on_the_first_user_turn_alone():
    short, long = "Human: Hi", "Human:  hi\n\nAssistant: Yes?\n\nHuman: Bye"
    assert split_of(short) == split_of(long)
    assert fold_of(short) == fold_of(long)
    prompts = [f"question {i}" for i in range(2000)]
    shares = [
        sum(split_of(p) == s for p in prompts) / 2000 for s in ("train", "validation", "test")
    ]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    assert {fold_of(p) for p in prompts} == {0, 1, 2, 3, 4}


# ---------------------------------------------------------------- files


def test_pairs_and_labelled_responses_load(tmp_path):
    rows = [
        {
            "id": "a",
            "objective": "helpful",
            "prompt": "Hi",
            "chosen": "Hello",
            "rejected": "No",
            "split": "test",
        },
        {"prompt": "Q: Is it?\nA:", "response": "Yes", "labels": {"truthful": 1}},
    ]
    pair, response = load_examples(write(tmp_path / "mine.jsonl.gz", rows))
    assert pair == PreferencePair(USER, "Hello", "No", "helpful", "mine", "a", "test")
    assert response.labels == {"truthful": 1}
    assert response.split == split_of("Is it?")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "Hi", "chosen": ', "line 2: not JSON"),
        ("[1, 2]", "line 2: got a list"),
        (
            '{"prompt": "Hi", "chosen": "a", "objective": "helpful"}',
            "record 2.*no field 'rejected'",
        ),
        (
            '{"prompt": "Hi", "chosen": "a", "rejected": "", "objective": "x"}',
            "record 2.*'rejected'",
        ),
        ('{"prompt": "Hi", "response": 3, "labels": {}}', "record 2.*'response'"),
        ('{"prompt": "", "response": "a", "labels": {}}', "record 2.*empty prompt"),
        ('{"prompt": "Hi", "response": "a", "labels": {}, "split": "tests"}', "record 2.*split"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, said):
    good = '{"prompt": "Hi", "response": "Hello", "labels": {"truthful": 1}}'
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=f"(?s)broken.jsonl.*{said}"):
        load_examples(path)


def test_a_missing_and_a_truncated_file_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_examples(tmp_path / "absent.jsonl.gz")
    whole = write(
        tmp_path / "cut.jsonl.gz", [{"response": "x" * i, "labels": {}} for i in range(500)]
    )
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(DataError, match="cut.jsonl.gz"):
        load_examples(whole)


def test_halves_of_a_character_enter_no_field_of_an_example(tmp_path):
    half, whole = "\ud83d", "\ud83d\ude00"
    pair = {
        "objective": "helpful",
        "prompt": f"a {half}",
        "chosen": f"b {whole}",
        "rejected": f"c {half}",
        "id": half,
    }
    rated = {
        "prompt": "a",
        "response": f"d {half}",
        "labels": {half: 1},
        "context": whole,
        "licence": half,
    }
    prompt, chosen, rejected = "a \ufffd", "b 😀", "c \ufffd"
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (pair, rated)))
    first, second = load_examples(path)
    assert (render_messages(first.prompt), first.chosen, first.rejected, first.id) == (
        prompt,
        chosen,
        rejected,
        "\ufffd",
    )
    assert (second.response, second.labels, second.extra, second.licence) == (
        "d \ufffd", {"\ufffd": 1}, {"context": "😀"}, "\ufffd",
    )  # fmt: skip
    assert {r.response for r in load_texts([TextSource(path="f.jsonl")], tmp_path)} == {
        chosen,
        rejected,
        "d \ufffd",
    }


def test_an_id_that_is_null_is_none(tmp_path):
    write(tmp_path / "f.jsonl.gz", [{"id": None, "prompt": "a", "response": "b", "labels": {}}])
    assert load_examples(tmp_path / "f.jsonl.gz")[0].id == "f-1"


# ---------------------------------------------------------------- labels to pairs


def test_labels_pair_within_one_prompt_only():
    rows = [
        labelled("p", "a", {"truthful": 1}),
        labelled("p", "b", {"truthful": 0}),
        labelled("q", "c", {"truthful": 0}),
    ]
    assert [(p.chosen, p.rejected) for p in pairs_from_labels(rows, "truthful")] == [("a", "b")]


def test_pairs_of_a_prompt_are_capped_and_do_not_depend_on_other_prompts():
    rows = [labelled("p", f"{i}", {"truthful": i % 2}) for i in range(20)]
    capped = pairs_from_labels(rows, "truthful", max_per_prompt=7)
    assert len(capped) == 7 == len({p.id for p in capped})
    more = pairs_from_labels(
        [labelled("q", "z", {"truthful": 1}), *rows], "truthful", max_per_prompt=7
    )
    assert capped == more


def test_refusal_is_better_on_unsafe_prompts_and_compliance_on_safe_ones():
    rows = [
        labelled(name, f"{name} {behaviour}", {"behaviour": behaviour}, prompt_unsafe=unsafe)
        for name, unsafe in (("bomb", 1), ("shoot a photo", 0))
        for behaviour in ("compliance", "refusal")
    ]
    found = {(p.objective, p.chosen, p.rejected) for p in refusal_pairs(rows)}
    assert found == {
        ("harmless", "bomb refusal", "bomb compliance"),
        ("helpful", "shoot a photo compliance", "shoot a photo refusal"),
    }
    with pytest.raises(DataError, match="behaviour"):
        refusal_pairs([labelled("p", "a", {"behaviour": "shrug"}, prompt_unsafe=1)])


def test_texts_without_prompts_pair_across_labels_within_a_split():
    rows = [
        LabelledResponse(None, f"{split} {i}", {"humor": i % 2}, "s", f"{split}{i}", split)
        for split in ("train", "test")
        for i in range(6)
    ]
    pairs = unprompted_pairs(rows, "humor")
    assert len(pairs) == 6
    texts = [text for p in pairs for text in (p.chosen, p.rejected)]
    assert len(set(texts)) == len(texts)
    assert all(p.chosen.split()[0] == p.rejected.split()[0] == p.split for p in pairs)


def test_constructed_humor_is_marked_and_split_by_template():
    rows = [
        LabelledResponse(None, f"{split} {i}", {"humor": i % 2}, "s", f"{split}{i}", split)
        for split in ("train", "validation", "test")
        for i in range(20)
    ]
    for pair in constructed_humor_pairs(rows):
        assert pair.constructed
        assert pair.prompt[0]["content"] in HUMOR_REQUESTS[pair.split]
    everywhere = [r for requests in HUMOR_REQUESTS.values() for r in requests]
    assert len(set(everywhere)) == len(everywhere)


# ---------------------------------------------------------------- recipes' sources


def test_the_data_folder_is_the_environments_or_beside_the_project(monkeypatch):
    monkeypatch.setenv("PRO_DATA_DIR", "/elsewhere")
    assert default_data_dir() == Path("/elsewhere")
    monkeypatch.delenv("PRO_DATA_DIR")
    project = Path(__file__).resolve().parent.parent
    assert default_data_dir() == project.parent / "shared" / "data"


def test_a_source_says_what_it_lacks(tmp_path):
    write(tmp_path / "a.jsonl.gz", [{"prompt": "Hi", "response": "a", "labels": {"truthful": 1}}])
    with pytest.raises(DataError, match=r"no pairs for \['truthful'\]"):
        PairSource(path="a.jsonl.gz", kind="labels", objectives=["truthful"]).load(tmp_path)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"path": "f.jsonl", "kind": "labelled"}, ("kind",)),
        ({"path": "f.jsonl", "epoch": 2}, ("epoch",)),
        ({"path": "f.jsonl", "epochs": 0}, ("epochs",)),
        ({"path": "f.jsonl", "splits": "train"}, ("splits",)),
        ({"path": "f.jsonl", "splits": ["dev"]}, ("splits", 0)),
        ({"path": "f.jsonl", "splits": []}, ("splits",)),
        ({"path": "f.jsonl", "objectives": "helpful"}, ("objectives",)),
        ({"path": ""}, ("path",)),
        ({"kind": "pairs"}, ("path",)),
        ("f.jsonl", ()),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_by_name(entry, place):
    with pytest.raises(ValidationError) as refused:
        PairSource.model_validate(entry)
    assert all(error["loc"][: len(place)] == place for error in refused.value.errors())


def test_an_entry_is_hashed_as_it_was_written():
    entry = {"path": "f.jsonl", "splits": ["train"], "objectives": {"helpful": "good"}}
    assert PairSource(**entry).model_dump() == entry
    assert PairSource(path="f.jsonl").model_dump() == {"path": "f.jsonl"}


def test_the_real_files_have_no_prompt_in_two_splits(data_dir):
    for name in ("hh_pairs", "truthfulqa_responses", "xstest_responses"):
        splits = {}
        for example in load_examples(data_dir / f"{name}.jsonl.gz"):
            first = next(m["content"] for m in example.prompt if m["role"] == "user")
            splits.setdefault(first, set()).add(example.split)
        assert max(len(s) for s in splits.values()) == 1, name


def test_controlled_pairs_hold_the_other_labels_still():
    rows = [
        labelled("p", f"{t}{i}", {"truthful": t, "informative": i}) for t in (0, 1) for i in (0, 1)
    ]
    found = {(p.chosen, p.rejected) for p in controlled_pairs(rows, "truthful")}
    assert found == {("11", "01"), ("10", "00")}
    assert {p.source for p in controlled_pairs(rows, "truthful")} == {"s_controlled"}
    assert not controlled_pairs([replace(r, split="test") for r in rows], "truthful")


# ---------------------------------------------------------------- labels and objectives that cannot be learned from


@pytest.mark.parametrize("label", ["4", "N/A", float("nan"), float("inf"), [1]])
def test_a_bad_rating_is_named_by_record(tmp_path, label):
    good = {"prompt": "a", "response": "x", "labels": {"helpfulness": 4}}
    write(tmp_path / "f.jsonl.gz", [good, good | {"id": "r2", "labels": {"helpfulness": label}}])
    with pytest.raises(
        DataError, match=r"record 2 \(id 'r2'\): got the label helpfulness: .*finite number"
    ):
        load_examples(tmp_path / "f.jsonl.gz")


def test_null_is_not_a_rating(tmp_path):
    labels = {"helpful": None, "honest": True}
    write(tmp_path / "f.jsonl.gz", [{"prompt": "a", "response": "x", "labels": labels}])
    assert load_examples(tmp_path / "f.jsonl.gz")[0].labels == {"honest": True}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 1, 1, 1], "all 4 labels 'truthful' are 1, and a pair needs two that differ"),
        ([None] * 4, "no response is labelled 'truthful'"),
        ([0, 0, 1, 1], "no two responses to one prompt differ in their label 'truthful'"),
    ],
)
def test_an_objective_without_pairs_says_why(tmp_path, labels, said):
    rows = [
        {"prompt": f"prompt {i // 2}", "response": str(i), "labels": {"truthful": label}}
        for i, label in enumerate(labels)
    ]
    write(tmp_path / "f.jsonl.gz", rows)
    source = PairSource(path="f.jsonl.gz", kind="labels", objectives=["truthful"])
    with pytest.raises(DataError, match=f"no pairs for .'truthful'.; {said}"):
        source.load(tmp_path)


def test_texts_without_a_prompt_are_labelled_0_or_1():
    texts = [replace(labelled("", "x", {"humor": 0.5}), prompt=None)]
    with pytest.raises(DataError, match="got the label humor: 0.5, expected 0 or 1"):
        unprompted_pairs(texts, "humor")


# ---------------------------------------------------------------- responses to be scored


def test_every_form_of_a_response_is_found_once(tmp_path):
    rows = [
        {"id": "a", "prompt": "p", "response": "one", "split": "test"},
        {"id": "b", "prompt": "p", "responses": ["one", "two", ""]},  # "one" is known
        {"id": "c", "prompt": "Human: q", "chosen": "three", "rejected": "four", "objective": "o"},
        {"id": "d", "response": "alone", "labels": {"humor": "?"}},  # labels are not looked at
    ]
    write(tmp_path / "f.jsonl.gz", rows)
    found = load_texts([TextSource(path="f.jsonl.gz")] * 2, tmp_path)
    assert [(r.id, r.response) for r in found] == [
        ("a", "one"), ("b-1", "two"), ("b-2", ""), ("c-0", "three"), ("c-1", "four"), ("d", "alone"),
    ]  # fmt: skip
    assert found[0].split == "test" and found[3].prompt == [{"role": "user", "content": "q"}]
    assert found[5].prompt is None


def test_an_entry_of_a_recipe_gives_both_sides_of_its_pairs(tmp_path):
    rows = [{"prompt": "a", "response": t, "labels": {"truthful": t == "x"}} for t in "xyz"]
    write(tmp_path / "f.jsonl.gz", rows)
    source = TextSource(path="f.jsonl.gz", kind="labels", objectives=["truthful"])
    assert [r.response for r in load_texts([source], tmp_path)] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("path", "row", "said"),
    [
        ("absent", {}, "no such file"),
        ("f.jsonl.gz", {"prompt": "a"}, "record 1 .id None.: no field 'response'"),
        ("f.jsonl.gz", {"prompt": "a", "responses": "x"}, "expected texts"),
        ("f.jsonl.gz", {"prompt": " ", "response": "x"}, "empty prompt"),
    ],
)
def test_a_response_that_cannot_be_scored_is_named(tmp_path, path, row, said):
    write(tmp_path / "f.jsonl.gz", [row] if row else [])
    with pytest.raises(DataError, match=said):
        load_texts([TextSource(path=path)], tmp_path)


def test_a_file_of_texts_has_a_path_alone():
    """Settings of pairs would have no effect on it."""
    with pytest.raises(ValidationError):
        TextSource(path="f.jsonl", splits=["train"])
    assert TextSource(path="f.jsonl", kind="pairs", splits=["train"]).splits == ["train"]


def test_pairs_of_several_objectives_can_count_as_one(tmp_path):
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}
    rows = [row | {"objective": name} for name in ("helpful", "harmless")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = PairSource(path="pairs.jsonl", as_objective="overall")
    assert [p.objective for p in source.load(tmp_path)] == ["overall", "overall"]


def test_refusing_a_safe_request_is_a_tie_under_harmless():
    """Of two answers compliance is the more helpful, neither the more harmless; unsafe prompts give no tie."""

    def answer(behaviour, unsafe):
        prompt = [{"role": "user", "content": f"{unsafe}?"}]
        return LabelledResponse(
            prompt,
            behaviour,
            {"behaviour": behaviour},
            "x",
            behaviour,
            "train",
            {"prompt_unsafe": unsafe},
        )

    answers = [answer(b, u) for b in ("compliance", "refusal") for u in (0, 1)]
    (tie,) = harmless_ties(answers)
    assert (tie.objective, tie.tie, tie.source) == ("harmless", True, "x_ties")
    assert {tie.chosen, tie.rejected} == {"compliance", "refusal"}


def test_answers_to_other_prompts_lose_and_two_of_them_are_a_tie(tmp_path):
    """Of the train split alone; they are neither scored nor graded, and no text is told by always losing."""
    splits = ["train"] * 40 + ["validation", "test"]
    rows = [
        {"objective": "helpful", "split": split, "prompt": f"Question {i}"}
        | {"chosen": f"chosen {i}", "rejected": f"rejected {i}"}
        for i, split in enumerate(splits)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [PairSource(path="p.jsonl"), PairSource(path="p.jsonl", kind="other_prompts")]
    data = gather_pairs(sources, ["helpful"], tmp_path)
    own, made = data.training[:40], data.training[40:]
    assert len(data.held_out) == 2 and [p.only_trains for p in made] == [True] * 80
    assert {p.source for p in made} == {"p_other_prompts"}
    losers = set()
    for wins, tie in zip(made[::2], made[1::2], strict=True):
        number = wins.prompt[0]["content"].split()[-1]
        other = tie.chosen.split()[-1]
        assert wins.chosen == f"chosen {number}" and other != number
        assert (tie.prompt, tie.rejected, tie.tie) == (wins.prompt, f"rejected {other}", True)
        assert wins.rejected in (tie.chosen, tie.rejected) and not wins.tie
        losers.add(wins.rejected.split()[0])
    assert losers == {"chosen", "rejected"}
    folds = out_of_fold(data.training, 3)
    assert sorted(i for fold in folds for i in fold.scored) == list(range(len(own)))
    alone = [replace(own[0], prompt=[{"role": "user", "content": "Hi"}])] * 3
    assert other_prompt_pairs(alone) == []
