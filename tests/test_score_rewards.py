"""Labelling at scale: shards that survive a kill, many processes, missing rewards, and a panel calibrated on them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import in_two_processes, tiny_classifier

from pro_core.data.schema import DataError, LabelledResponse, fold_of
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.recipes import ScoreRecipe
from pro_core.rewards.scores import read_scores
from pro_core.rewards.shards import plan_shards, read_rewards, score_shards, write_manifest
from pro_core.runs.recipes import ConfigError
from pro_core.system.storage import StorageError
from train import score_rewards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("helpful", "harmless", "short")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def panel_file(tmp_path_factory):
    """A YAML panel: two tiny models and a function."""
    folder = tmp_path_factory.mktemp("panel")
    models = [{"name": "short", "function": "length", "direction": -1}]
    for k, name in enumerate(NAMES[:2]):
        tiny_classifier(folder / name, 1, seed=k)
        models.insert(k, {"name": name, "source": name, "max_length": 64})
    (folder / "panel.yaml").write_text(yaml.safe_dump({"models": models}))
    return folder / "panel.yaml"


@pytest.fixture
def recipe(panel_file, tmp_path):
    """23 responses to 12 prompts in shards of 4; call it with changes to get its path."""
    rows = [
        {
            "prompt": f"Question {i}?",
            "responses": ["yes", f"no, never {i} " * (i + 1)],
            "split": "train",
        }
        for i in range(11)
    ]
    rows.append({"response": "a text that stands alone", "split": "test"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(name: str, **changes) -> str:
        settings = {
            "panel": str(panel_file),
            "data": [{"path": "data.jsonl"}],
            "data_dir": str(tmp_path),
            "output": str(tmp_path / name),
            "shard_size": 4,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return str(path)

    return make


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.parquet"))}


KILLED_AT_THE_THIRD = """
import os, signal, sys
from pro_core.rewards.recipes import ScoreRecipe
from train import score_rewards
replace, written = os.replace, []
def kill_before_the_third(a, b):
    written.append(b)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(a, b)
os.replace = kill_before_the_third
score_rewards.main(ScoreRecipe.read(sys.argv[1]))
"""


def test_killed_and_started_again_it_loses_nothing_and_repeats_nothing(
    recipe, panel_file, tmp_path, monkeypatch, capsys
):
    score_rewards.main(ScoreRecipe.read(recipe("whole")))
    assert "23 responses, 3 objectives, 6 shards; none missing" in capsys.readouterr().out
    path = recipe("cut")
    command = [sys.executable, "-c", KILLED_AT_THE_THIRD, path]
    killed = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = shards_of(tmp_path / "cut")
    assert len(before) == 2
    with pytest.raises(StorageError, match="no manifest.json"):
        read_rewards(tmp_path / "cut")

    scored, original = [], RewardPanel.score
    monkeypatch.setattr(
        RewardPanel,
        "score",
        lambda self, prompts, *a, **k: (
            scored.append(len(prompts)) or original(self, prompts, *a, **k)
        ),
    )
    score_rewards.main(ScoreRecipe.read(path))
    said = capsys.readouterr()
    assert "6 of 6 shards, 2 there already" in said.out
    assert "15/15 scored, 0 s left" in said.err
    assert scored == [4, 4, 4, 3]
    after = shards_of(tmp_path / "cut")
    assert {name: after[name] for name in before} == before
    assert after.keys() == shards_of(tmp_path / "whole").keys()
    whole, cut = read_rewards(tmp_path / "whole"), read_rewards(tmp_path / "cut")
    rewards = [f"raw_{name}" for name in NAMES]
    np.testing.assert_allclose(whole[rewards], cut[rewards], atol=0.02)
    assert whole.drop(columns=rewards).equals(cut.drop(columns=rewards))

    # The same as the panel gives, row by row; once finished, nothing is scored again.
    panel = RewardPanel.from_pretrained(panel_file)
    prompts = [json.loads(prompt) for prompt in whole["prompt"]]
    np.testing.assert_allclose(
        whole[rewards], panel.score(prompts, list(whole["completion"])), atol=0.05
    )
    scored.clear()
    score_rewards.main(ScoreRecipe.read(path))
    assert not scored and shards_of(tmp_path / "cut") == after


def test_two_processes_give_the_same_files_as_one(recipe, tmp_path):
    score_rewards.main(ScoreRecipe.read(recipe("one")))
    done = in_two_processes("train/score_rewards.py", recipe("two"))
    for rank in (0, 1):
        assert f"process {rank} of 2: 3 of 6 shards, 0 there already" in done.stdout
        assert f"process {rank}: {(12, 11)[rank]}/{(12, 11)[rank]} scored, 0 s left" in done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert shards_of(one).keys() == shards_of(two).keys()
    a, b = read_rewards(one), read_rewards(two)
    assert list(a["id"]) == list(b["id"])
    rewards = [f"raw_{name}" for name in NAMES]
    np.testing.assert_allclose(a[rewards], b[rewards], atol=0.02)


def test_other_data_or_another_panel_make_other_shards(panel_file, tmp_path):
    shutil.copytree(panel_file.parent, tmp_path / "panel")
    panel_file = tmp_path / "panel" / panel_file.name
    rows = [LabelledResponse([{"role": "user", "content": "a"}], str(i), {}) for i in range(6)]
    panel = RewardPanel.from_pretrained(panel_file)
    names = [s.path.name for s in plan_shards(panel, rows, "out", 2)]
    assert [s.path.name for s in plan_shards(panel, rows, "out", 2)] == names
    changed = [*rows[:5], LabelledResponse(rows[5].prompt, "other", {})]
    other = [s.path.name for s in plan_shards(panel, changed, "out", 2)]
    assert other[:2] == names[:2] and other[2] != names[2]
    retrained = RewardPanel.from_pretrained(panel_file)
    model, _ = retrained.models["helpful"]
    model.classifier.bias.data += 1
    model.save_pretrained(panel_file.parent / "helpful")
    retrained = RewardPanel.from_pretrained(panel_file)
    assert not set(names) & {s.path.name for s in plan_shards(retrained, rows, "out", 2)}
    for wrong in (([], 2), (rows, 0)):
        with pytest.raises(ValueError, match="expected at least 1"):
            plan_shards(panel, wrong[0], "out", wrong[1])


def test_a_missing_reward_is_null_and_counted(recipe, panel_file, tmp_path, monkeypatch, capsys):
    """A model that answers NaN to every text with one word in it."""
    panel = RewardPanel.from_pretrained(panel_file)
    model, tokenizer = panel.models["harmless"]
    word = tokenizer("yes", add_special_tokens=False)["input_ids"][0]
    model.bert.embeddings.word_embeddings.weight.data[word] = float("nan")
    monkeypatch.setattr(RewardPanel, "from_pretrained", lambda *a, **k: panel)
    score_rewards.main(ScoreRecipe.read(recipe("nan", save_panel=str(tmp_path / "saved"))))
    said = capsys.readouterr().out
    assert "{'harmless': 11}" in said
    rows = read_rewards(tmp_path / "nan")
    assert rows["raw_harmless"].isna().sum() == 11
    assert (rows["raw_harmless"].isna() == (rows["completion"] == "yes")).all()
    assert not rows[["raw_helpful", "raw_short"]].isna().any(axis=None)
    tables = [pq.read_table(path) for path in (tmp_path / "nan").glob("*.parquet")]
    assert (
        sum(t["raw_harmless"].null_count for t in tables) == 11
    )  # null in the file, not a NaN and not 0
    assert json.loads((tmp_path / "nan" / "manifest.json").read_text())["missing"]["harmless"] == 11
    assert "calibrated on 11 training responses of data" in said  # those with all rewards
    assert panel.stats.n == 11


def test_a_panel_is_calibrated_on_its_rewards(recipe, tmp_path):
    score_rewards.main(
        ScoreRecipe.read(recipe("c", save_panel=str(tmp_path / "saved"), remove_length=True))
    )
    panel = RewardPanel.from_pretrained(tmp_path / "saved")
    rows = read_rewards(tmp_path / "c")
    train = rows[rows["split"] == "train"]
    raw = train[[f"raw_{name}" for name in NAMES]].to_numpy()
    z = panel.stats.normalize(raw, train["length"])
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-5)
    assert (
        panel.stats.length_slope[2] < 0 and "22 training responses of data" in panel.stats.reference
    )


def test_the_pairs_of_a_data_set_become_what_an_adapter_learns_from(recipe, tmp_path):
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": f"no, never {i}"}
        | {"objective": name}
        | {"split": ("train", "train", "test")[i % 3]}
        for i, name in enumerate([*NAMES[:2] * 5, "another"])
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"path": "data.jsonl"}, {"path": "pairs.jsonl", "kind": "pairs"}]
    saved = str(tmp_path / "saved")
    changes = {"data": data, "pair_table": True, "folds": 3}
    score_rewards.main(ScoreRecipe.read(recipe("t", save_panel=saved, **changes)))
    panel = RewardPanel.from_pretrained(saved)
    table = read_scores(tmp_path / "t" / "scores.parquet", panel.objective_names)
    ours = [row for row in rows if row["objective"] in NAMES]
    assert sorted(zip(table.objective, table.split, strict=True)) == sorted(
        (row["objective"], row["split"]) for row in ours
    )
    assert (table.fold[table.split == "test"] == -1).all()
    folds = {fold_of(json.loads(prompt), 3) for prompt in table.prompt[table.split == "train"]}
    assert set(table.fold[table.split == "train"]) == folds and len(folds) > 1
    for _, row in table.iterrows():
        (said,) = [r for r in rows if r["prompt"] == row.text]
        for side in ("chosen", "rejected"):
            raw = panel.score([json.loads(row.prompt)], [said[side]])
            z = panel.stats.normalize(raw, [len(said[side])])
            for kind, expected in (("raw", raw), ("z", z)):
                scores = row[[f"{kind}_{side}_{name}" for name in NAMES]].astype(float)
                np.testing.assert_allclose(scores, expected[0], atol=0.05)
    with pytest.raises(ConfigError) as refused:  # the panel of a YAML file has no statistics
        score_rewards.main(ScoreRecipe.read(recipe("bare", **changes)))
    assert refused.value.fields == ("pair_table", "save_panel")


def test_a_shard_that_was_damaged_is_noticed(recipe, tmp_path):
    path = recipe("d")
    score_rewards.main(ScoreRecipe.read(path))
    first = sorted((tmp_path / "d").glob("*.parquet"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=f"{first.name}: missing or changed"):
        read_rewards(tmp_path / "d")
    score_rewards.main(ScoreRecipe.read(path))  # half a file is no file
    assert len(read_rewards(tmp_path / "d")) == 23


def test_an_unfinished_run_has_no_manifest(panel_file, tmp_path):
    panel = RewardPanel.from_pretrained(panel_file)
    rows = [LabelledResponse(None, str(i), {}) for i in range(6)]
    shards = plan_shards(panel, rows, tmp_path, 2)
    seen: list[tuple[int, int]] = []
    score_shards(panel, shards[:2], lambda done, whole: seen.append((done, whole)))
    assert write_manifest(panel, shards) is None
    assert seen[-1] == (4, 4) and all(whole == 4 for _, whole in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"panel": "absent.yaml"}, StorageError), ({"data": [{"path": "absent.jsonl"}]}, DataError)],
)
def test_missing_inputs_are_named(recipe, changes, error):
    with pytest.raises(error, match="absent"):
        score_rewards.main(ScoreRecipe.read(recipe("bad", **changes)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shard_sise": 3}, "shard_sise"),
        ({"shard_size": 0}, "shard_size"),
        ({"data": []}, "data"),
        ({"data": [{"path": "data.jsonl", "kinds": "pairs"}]}, "data.0.kinds"),
        ({"data": [{"path": "data.jsonl", "splits": ["train"]}]}, "data.0"),
        ({"save_panel": "x", "data": [{"path": "alone.jsonl"}]}, "save_panel"),
        ({"pair_table": True, "save_panel": "x"}, "pair_table"),
    ],
)
def test_a_setting_that_cannot_be_run_is_named(recipe, tmp_path, changes, field):
    (tmp_path / "alone.jsonl").write_text('{"response": "x", "split": "test"}\n')
    with pytest.raises(ConfigError) as refused:
        score_rewards.main(ScoreRecipe.read(recipe("bad", **changes)))
    assert refused.value.fields[0] == field
