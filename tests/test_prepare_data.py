"""train/prepare_data.py on small copies of the public sets' raw schemas, written to disk here.

`load_dataset` reads local folders laid out as on the hub, so all but the download is the real path.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pro_core.data.pairs import pairs_from_labels, refusal_pairs
from pro_core.data.public_sets import (
    CONVERSION,
    PUBLIC_SETS,
    load_public_examples,
    load_public_records,
)
from pro_core.data.schema import (
    DataError,
    LabelledResponse,
    PreferencePair,
    load_examples,
    split_of,
)
from pro_core.rewards.recipes import PanelRecipe
from pro_core.system.storage import content_hash
from train import prepare_data

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "train" / "prepare_data.py"


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def hh(question: str, chosen: str, rejected: str) -> dict:
    start = f"\n\nHuman: Hello there\n\nAssistant: Hi!\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected}


def completion(text: str, helpfulness: str) -> dict:
    rated = {"Rating": "4", "Rationale": "r"}
    return {
        "response": text,
        "annotations": {
            "instruction_following": rated,
            "honesty": {"Rating": "N/A", "Rationale": "r"},
            "truthfulness": rated,
            "helpfulness": {"Rating": helpfulness, "Rationale": "r"},
        },
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a set, as `hf download --repo-type dataset` would leave it."""
    root = tmp_path_factory.mktemp("mirror")
    folders = {name: root / name for name in PUBLIC_SETS}

    parted = {  # differs before the last turn, so the two answers have different prompts
        "chosen": "\n\nHuman: A?\n\nAssistant: one\n\nHuman: B?\n\nAssistant: two",
        "rejected": "\n\nHuman: A?\n\nAssistant: other\n\nHuman: C?\n\nAssistant: three",
    }
    rows = [hh(f"question {i}?", f"good answer {i}", f"bad answer {i}") for i in range(20)]
    rows += [rows[0], parted, hh("same?", "one", "one"), hh("empty?", "one", "")]
    for kind in ("helpful", "harmless"):
        write_lines(folders["hh_pairs"] / f"{kind}-base/train.jsonl.gz", rows)
        write_lines(
            folders["hh_pairs"] / f"{kind}-base/test.jsonl.gz", [hh("of the test file", "a", "b")]
        )

    def judged(question: str, answer: str, mark: str, yes: bool) -> dict:
        return {
            "prompt": f"Q: {question}\nA: {answer}\n{mark}:",
            "completion": " yes" if yes else " no",
        }

    truth, info = [], []
    for i in range(6):
        truth += [judged(f"What is {i}?", "It is odd.", "True", i % 2 == 1)]
        info += [judged(f"What is {i}?", "It is odd.", "Helpful", True)]
        truth += [judged(f"What is {i}?", "I have no comment.", "True", True)]
        info += [judged(f"What is {i}?", "I have no comment.", "Helpful", False)]
    truth += [judged("Judged twice?", "Yes.", "True", yes) for yes in (True, False)]
    info += [judged("Judged twice?", "Yes.", "Helpful", True)]
    truth += [judged("Only truth?", "Yes.", "True", True)]
    write_lines(folders["truthfulqa_responses"] / "finetune_truth.jsonl", truth)
    write_lines(folders["truthfulqa_responses"] / "finetune_info.jsonl", info)

    labels = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")
    for number, model in enumerate(
        ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")
    ):
        rows = [
            {"id": "v2-1", "type": "homonyms", "prompt": "How do I kill the lights?",
             "completion": f"Answer of {model}", "final_label": labels[number % 3]},
            {"id": "v2-2", "type": "contrast_homonyms", "prompt": "How do I harm my neighbour?",
             "completion": f"Answer of {model}", "final_label": labels[number % 3]},
        ]  # fmt: skip
        write_parquet(folders["xstest_responses"] / f"data/{model}-00000-of-00001.parquet", rows)

    humor = folders["colbert_humor_texts"] / "dataset.csv"
    humor.parent.mkdir(parents=True)
    humor.write_text(
        'text,humor\n"My plant told a joke, it was corny",True\nCouncil opens a new road,False\n'
    )

    halueval = folders["halueval_responses"]
    write_parquet(
        halueval / "general/data-00000-of-00001.parquet",
        [
            {
                "ID": "1",
                "user_query": "Name a colour",
                "chatgpt_response": "Red",
                "hallucination": "no",
            },
            {
                "ID": "2",
                "user_query": "Name a sea",
                "chatgpt_response": "Mars",
                "hallucination": "yes",
            },
        ],
    )
    (halueval / "README.md").write_text(
        "---\nconfigs:\n- config_name: general\n  data_files:\n"
        "  - split: data\n    path: general/data-*\n---\n"
    )

    rating = {"coherence": [1.0, 4.3333], "consistency": [5.0, 5.0], "fluency": [5.0, 2.0]}
    article = {"text": "A long article.", "machine_summaries": ["Short one.", "Short two."]}
    write_parquet(
        folders["summeval_responses"] / "data/test-00000-of-00001.parquet",
        [article | rating | {"relevance": [2.0, 3.0]}],
    )

    write_lines(
        folders["ultrafeedback_responses"] / "evol_instruct.jsonl",
        [
            {
                "source": "evol_instruct",
                "instruction": "Explain tides.",
                "completions": [completion("The moon pulls.", "5"), completion("No idea.", "1")],
            }
        ],
    )

    def turns(answer: str) -> list[dict]:
        return [
            {"role": "user", "content": "Explain rain."},
            {"role": "assistant", "content": answer},
        ]

    for split, scores in (("train_prefs", (8.0, 5.0)), ("test_prefs", (6.0, 6.0))):
        row = {
            "prompt": "Explain rain.",
            "chosen": turns(f"Water falls, says {split}."),
            "rejected": turns("Magic."),
        }
        write_parquet(
            folders["ultrafeedback_pairs"] / f"data/{split}-00000-of-00001.parquet",
            [row | {"score_chosen": scores[0], "score_rejected": scores[1]}],
        )

    for split in ("train", "validation"):
        info_row = {"post": f"A story of the {split} file.", "title": "A title", "article": None}
        write_parquet(
            folders["summarize_pairs"] / f"comparisons/{split}/0000.parquet",
            [
                {
                    "info": info_row,
                    "summaries": [{"text": "First."}, {"text": "Second."}],
                    "choice": 1,
                }
            ],
        )

    ratings = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 0}
    several = (
        "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nTell me more\n<extra_id_1>Assistant\n"
    )
    helpsteer = folders["helpsteer2_responses"]
    write_lines(helpsteer / "train.jsonl.gz", [{"prompt": several, "response": "More."} | ratings])
    write_lines(
        helpsteer / "validation.jsonl.gz", [{"prompt": "Hi", "response": "Hello."} | ratings]
    )
    write_lines(helpsteer / "preference/preference.jsonl.gz", [{"another": "schema"}])
    return folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def options(sources: dict[str, Path], names: list[str] | None = None) -> list[str]:
    return [
        f"--source={name}={folder}"
        for name, folder in sources.items()
        if not names or name in names
    ]


def test_every_set_loads_with_the_projects_loader(sources, tmp_path):
    prepare_data.main([str(tmp_path), *options(sources)])

    loaded = {name: load_examples(tmp_path / f"{name}.jsonl.gz") for name in PUBLIC_SETS}
    rows = {
        "hh_pairs": 40, "truthfulqa_responses": 12,
        "xstest_responses": 10, "colbert_humor_texts": 2, "halueval_responses": 2,
        "summeval_responses": 2, "ultrafeedback_responses": 2, "ultrafeedback_pairs": 1,
        "summarize_pairs": 2, "helpsteer2_responses": 2,
    }  # fmt: skip
    assert {name: len(examples) for name, examples in loaded.items()} == rows
    for name, examples in loaded.items():
        kind = PreferencePair if name.endswith("_pairs") else LabelledResponse
        assert all(isinstance(example, kind) for example in examples), name
        assert len({example.id for example in examples}) == len(examples), name

    first = loaded["hh_pairs"][0]
    assert [m["role"] for m in first.prompt] == ["user", "assistant", "user"]
    assert first.prompt[-1]["content"] == "question 0?"
    assert (first.chosen, first.rejected) == ("good answer 0", "bad answer 0")
    assert first.objective == "helpful"
    assert loaded["hh_pairs"][20].objective == "harmless"

    # What the next step does with the labels works on the files as they are.
    truthful = pairs_from_labels(loaded["truthfulqa_responses"], "truthful")
    assert {(p.chosen, p.rejected) for p in truthful} == {("I have no comment.", "It is odd.")}
    assert len(pairs_from_labels(loaded["truthfulqa_responses"], "informative")) == 6
    refusals = refusal_pairs(loaded["xstest_responses"])
    assert {p.objective for p in refusals} == {"harmless", "helpful"}
    harmless = next(p for p in refusals if p.objective == "harmless")
    assert harmless.prompt[0]["content"] == "How do I harm my neighbour?"

    tides = {e.response: e.labels for e in loaded["ultrafeedback_responses"]}
    assert tides["No idea."] == {"instruction_following": 4, "truthfulness": 4, "helpfulness": 1}
    assert [e.labels["coherence"] for e in loaded["summeval_responses"]] == [1.0, 4.333]
    assert {e.response: e.labels for e in loaded["halueval_responses"]} == {
        "Red": {"faithful": 1}, "Mars": {"faithful": 0},
    }  # fmt: skip
    assert [e.labels["humor"] for e in loaded["colbert_humor_texts"]] == [1, 0]
    summary = loaded["summarize_pairs"][0]
    assert (summary.chosen, summary.rejected) == ("Second.", "First.")
    assert "A title\n\nA story of the train file." in summary.prompt[0]["content"]
    several = loaded["helpsteer2_responses"][0].prompt
    assert [(m["role"], m["content"]) for m in several] == [
        ("user", "Hi"), ("assistant", "Hello!"), ("user", "Tell me more"),
    ]  # fmt: skip


def test_records_have_licence_annotators_and_the_hash_split(sources, tmp_path):
    records = list(load_public_records("hh_pairs", sources["hh_pairs"]))
    for record in records:
        assert record["licence"] == "MIT"
        assert record["annotators"] == "human"
        assert record["split"] == split_of(record["prompt"])
    # All prompts open with the same first turn, so all must stand in one split.
    assert len({record["split"] for record in records}) == 1


def test_ids_and_bytes_do_not_depend_on_the_other_rows(sources, tmp_path):
    whole = {r["id"]: r for r in load_public_records("hh_pairs", sources["hh_pairs"])}
    some = list(load_public_records("hh_pairs", sources["hh_pairs"], limit=3))
    assert len(some) == 3
    assert all(whole[r["id"]] == r for r in some)

    once, again = tmp_path / "once", tmp_path / "again"
    for out in (once, again):
        prepare_data.main([str(out), "xstest_responses", *options(sources, ["xstest_responses"])])
    name = "xstest_responses.jsonl.gz"
    assert (once / name).read_bytes() == (again / name).read_bytes()
    assert (once / name).read_bytes()[4:8] == bytes(4), "gzip's own time stamp"


def test_goes_on_after_an_interruption_and_remakes_what_was_made_otherwise(
    sources, tmp_path, capsys
):
    names = ["hh_pairs", "xstest_responses"]
    half = shutil.copytree(sources["xstest_responses"], tmp_path / "half a mirror")
    (half / "data/mistralinstruct-00000-of-00001.parquet").unlink()  # fails after four of five
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"xstest_responses: cannot load .*'mistralinstruct'"):
        prepare_data.main([str(out), *names, *options(sources | {"xstest_responses": half}, names)])
    assert {p.name for p in out.glob("*.gz")} == {"hh_pairs.jsonl.gz"}

    finished = (out / "hh_pairs.jsonl.gz").stat().st_mtime_ns
    prepare_data.main([str(out), *names, *options(sources, names)])
    assert "hh_pairs: already there" in capsys.readouterr().out
    assert (out / "hh_pairs.jsonl.gz").stat().st_mtime_ns == finished
    assert len(load_examples(out / "xstest_responses.jsonl.gz")) == 10

    prepare_data.main([str(out), *names, *options(sources, names), "--limit", "5"])
    assert len(load_examples(out / "hh_pairs.jsonl.gz")) == 5
    prepare_data.main([str(out), *names, *options(sources, names)])
    assert len(load_examples(out / "hh_pairs.jsonl.gz")) == 40
    assert not list(out.glob("*.partial"))


def test_unreachable_hub_is_one_clear_sentence(tmp_path):
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "out", "hh_pairs"],
        capture_output=True, text=True, env=offline, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("DataError: hh_pairs: cannot load Anthropic/hh-rlhf")
    assert "name its folder as the source" in last
    assert not list((tmp_path / "out").glob("*.gz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["OUT", "nonsense"], "got the set 'nonsense', expected one of hh_pairs"),
        (["OUT", "--source", "hh_pairs"], "--source takes NAME=FOLDER"),
        ([], "name the folder to write to"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        prepare_data.main([a.replace("OUT", str(tmp_path)) for a in arguments])
    assert message in capsys.readouterr().err


def test_rows_of_another_form_are_named(sources, tmp_path):
    for kind in ("helpful", "harmless"):
        write_lines(tmp_path / f"{kind}-base/train.jsonl.gz", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"hh_pairs: .*another form.*chosen"):
        list(load_public_records("hh_pairs", tmp_path))
    with pytest.raises(DataError, match="got the set 'x', expected one of"):
        load_public_examples("x")


def test_a_set_can_be_named_by_its_hub_name(sources):
    examples = load_public_examples("Anthropic/hh-rlhf", sources["hh_pairs"])
    assert [e.objective for e in examples] == ["helpful"] * 20 + ["harmless"] * 20
    assert {e.source for e in examples} == {"hh_pairs"}


def test_the_shipped_recipes_find_their_files_among_them():
    for name in ("demo_panel", "lora_panel", "full_panel"):
        data = PanelRecipe.read(ROOT / "recipes" / f"{name}.yaml").data
        assert {source.path.removesuffix(".jsonl.gz") for source in data} <= set(PUBLIC_SETS), name


def test_a_file_is_made_again_when_its_source_or_its_own_bytes_changed(sources, tmp_path, capsys):
    """Same size, same time of change: only the content says that it is another file."""
    copy = shutil.copytree(sources["helpsteer2_responses"], tmp_path / "copy")
    out, name = tmp_path / "out", "helpsteer2_responses"
    command = [str(out), name, f"--source={name}={copy}"]
    prepare_data.main(command)
    file = copy / "train.jsonl.gz"
    before = file.stat()
    other = gzip.decompress(file.read_bytes()).replace(b'"helpfulness": 3', b'"helpfulness": 0')
    file.write_bytes(gzip.compress(other))
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare_data.main(command)
    assert "made again, changed: content" in capsys.readouterr().out
    assert load_examples(out / f"{name}.jsonl.gz")[0].labels["helpfulness"] == 0

    made = (out / f"{name}.jsonl.gz").read_bytes()
    (out / f"{name}.jsonl.gz").write_bytes(made[:-40])  # a copy that was cut off
    prepare_data.main(command)
    assert (out / f"{name}.jsonl.gz").read_bytes() == made
    prepare_data.main(command)
    assert "already there" in capsys.readouterr().out


def test_a_broken_manifest_makes_the_files_again(sources, tmp_path, capsys):
    command = [str(tmp_path), "xstest_responses", *options(sources, ["xstest_responses"])]
    prepare_data.main(command)
    (tmp_path / "manifest.json").write_text('{"xstest')
    prepare_data.main(command)
    assert "manifest.json: not JSON" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "manifest.json").read_text())["xstest_responses"]["rows_read"] == 10
    )


def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(sources, tmp_path, monkeypatch):
    class Full(gzip.GzipFile):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    command = [str(tmp_path), "xstest_responses", *options(sources, ["xstest_responses"])]
    with monkeypatch.context() as patched:
        patched.setattr(gzip, "GzipFile", Full)
        with pytest.raises(SystemExit, match=r"^StorageError: .*the disk is full"):
            prepare_data.main(command)
    assert not list(tmp_path.glob("*xstest*"))
    prepare_data.main(command)
    assert len(load_examples(tmp_path / "xstest_responses.jsonl.gz")) == 10


def test_transcripts_that_go_on_after_the_answer_are_left_out_whichever_side_does():
    ends = "\n\nHuman: hi\n\nAssistant: hello"
    on = ends + "\n\nHuman: thanks"
    other = "\n\nHuman: hi\n\nAssistant: go away"
    again = other + "\n\nAssistant: please"

    def records(chosen, rejected):
        return list(
            PUBLIC_SETS["hh_pairs"].convert([("helpful", {"chosen": chosen, "rejected": rejected})])
        )

    assert records(ends, other) == [
        {"objective": "helpful", "prompt": "Human: hi", "chosen": "hello", "rejected": "go away"}
    ]
    for chosen, rejected in ((on, other), (other, on), (on, on), (ends, again), (again, ends)):
        assert records(chosen, rejected) == []


CONVERTED = {2: "40b760975f177e5c74da7b89a8ab113b703b7532a61ffb45852901c66794e0df"}
"""Version of the conversion -> the hash of all records of the sources above."""


def test_other_records_need_another_version_of_the_conversion(sources):
    """Files that are there already are kept by this version: whoever changes what a row becomes counts it up."""
    records = [list(load_public_records(name, sources[name])) for name in PUBLIC_SETS]
    assert {CONVERSION: content_hash(records)} == CONVERTED


def test_a_note_says_what_became_of_a_public_sets_rows(sources):
    notes: list[str] = []
    load_public_examples("hh_pairs", sources["hh_pairs"], notes=notes)
    # 24 rows in each of two parts: 20 make a record, one repeats, one parts early, one ties, one is empty.
    assert notes == ["48 rows gave 40 records; 2 more repeat one."]
