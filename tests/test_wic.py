"""PRO-WIC and RiC from end to end: stages, kills, two processes, and what can go wrong in a round."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tiny import Script, in_two_processes, tiny_encoder, tiny_llama, vivid_adapter

from pro_core.data.schema import read_jsonl, to_messages
from pro_core.generation import LocalGenerator, Piece, base
from pro_core.policies.conditional import rounds
from pro_core.policies.conditional import trainer as wic
from pro_core.policies.conditional.recipe import WicRecipe
from pro_core.policies.rollouts import failures, sample
from pro_core.policies.stages import POLICY, ROLLOUTS
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import read_manifest
from pro_core.system.storage import StorageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
NAMES = ("long", "plain")
ASKED = (
    "the capital",
    "rain on Sunday",
    "a joke",
    "hello",
    "France",
    "why not",
    "Paris",
    "this post",
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny Llama, a panel of two functions, an adapter and 24 responses to 8 prompts: a recipe's settings."""
    folder = tmp_path_factory.mktemp("parts")
    panel = {
        "models": [
            {"name": "long", "function": "length"},
            {"name": "plain", "function": "readability"},
        ]
    }
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel))
    vivid_adapter(tiny_encoder(folder / "encoder"), NAMES).save_pretrained(folder / "adapter")
    answers = (
        "it rained.",
        "Paris. We stayed in, why not?",
        "hello there, tell me a joke. It rained on Sunday.",
    )
    rows = [
        {"prompt": f"tell me {what}", "response": f"{text} {what}", "split": "train"}
        for what in ASKED
        for text in answers
    ]
    rows += [{"prompt": "tell me of the test", "response": "no", "split": "test"}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": tiny_llama(folder / "llama"),
        "panel": str(folder / "panel.yaml"),
        "adapter": str(folder / "adapter"),
        "data": [{"path": str(folder / "own.jsonl")}],
        "lora": {"r": 4},
        "max_length": 192,
        "max_new_tokens": 12,
        "batch_size": 4,
        "offline_steps": 4,
        "offline_learning_rate": 0.01,
        "online_steps": 4,
        "online_learning_rate": 0.01,
        "checkpoint_every": 2,
        "prompts": 6,
        "samples": 2,
        "rollout_batch": 4,
        "quantile": 0.3,
    }


def train(path: str, *changes: str) -> None:
    wic.train_wic(WicRecipe.read(path, changes))


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENV, capture_output=True, text=True
    )


def stage_files(output: Path) -> dict[str, str]:
    """Every file of every stage with its hash, as the manifests say (and as they are found to be)."""
    found = {}
    for manifest in sorted(output.glob("*/*/manifest.json")):
        kind = json.loads(manifest.read_text())["format"]
        if kind in (POLICY, ROLLOUTS):
            hashes = read_manifest(manifest.parent, kind)["files"]
            name = manifest.parent.relative_to(output)
            found |= {f"{name}/{file}": digest for file, digest in hashes.items()}
    return found


def test_both_methods_share_what_they_have_in_common(recipe, tmp_path, capsys):
    arms = {
        "SFT": {"condition": "none", "rounds": 0},
        "PRO-WIC offline": {"rounds": 0},
        "PRO-WIC online": {},
        "PRO-WIC online, RiC's rule": {"accept": "ric"},
        "RiC online": {"condition": "scores", "goals": "ric", "accept": "ric"},
        "RiC online, our rule": {"condition": "scores", "goals": "ric"},
    }
    train(recipe("all", arms=arms, rounds=2))
    output = tmp_path / "all"
    said = capsys.readouterr().out
    assert said.count("offline stage") == 3  # one for each kind of condition
    # The first round's responses are shared by the two rules of each method; the second's are not.
    assert said.count("round 1, 6 prompts x 2 responses") == 2
    assert said.count("round 2, 6 prompts x 2 responses") == 4
    policy = output / "pro-wic-online" / "seed0"
    config = PolicyConfig.read(policy)
    assert config and config.condition.kind == "weights"
    assert config.condition.objective_names == NAMES and config.panel
    assert PolicyConfig.read(output / "ric-online" / "seed0").condition.kind == "scores"
    record = json.loads((policy / "run.json").read_text())
    assert record["spent"]["steps"] == 4 + 2 * 4
    assert record["spent"]["new_tokens"] > 0
    stages = [output / stage["stage"] for stage in record["stages"]]
    kinds = [stage.parent.name for stage in stages]
    assert kinds == ["policies", *["rollouts", "policies"] * 2]

    # What is relabelled is what was obtained, in place of what was asked; the test prompt was never asked.
    accepted = read_jsonl(stages[2] / "accepted.jsonl")
    plan = read_jsonl(stages[1] / "prompts.jsonl")
    assert 0 < len(accepted) <= 6 and len(plan) == 6
    for line in accepted:
        assert line["obtained"] == config.condition.obtained([line["z"]])[0]
        assert line["asked"] in {row["text"] for row in plan}
        assert 0 <= line["distance"] <= 1
    assert "of the test" not in json.dumps([plan, accepted])
    record = json.loads((output / "ric-online" / "seed0" / "run.json").read_text())
    goals = read_jsonl(output / record["stages"][1]["stage"] / "prompts.jsonl")
    assert all(row["text"].startswith("<long_score>") and row["scores"] for row in goals)
    # A finished recipe does nothing again.
    train(recipe("all", arms=arms, rounds=2))
    said = capsys.readouterr().out
    assert "offline stage" not in said and "prompts x" not in said
    # A stage that somebody changed is not used.
    (stages[1] / "responses.jsonl").write_text("")
    with pytest.raises(StorageError, match=r"responses\.jsonl: missing or changed"):
        train(recipe("all", arms=arms, rounds=2))


def run_killed(path: str, place: str, count: int) -> None:
    """In a process of its own: the script, killed at the ``count``-th checkpoint or batch of responses."""
    from pro_core.generation import responses
    from pro_core.policies import sft

    module, name = (responses, "append_jsonl") if place == "rollouts" else (sft.Progress, "on_save")
    original, calls = getattr(module, name), []

    def killer(*arguments, **named):
        calls.append(arguments)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(module, name, killer)
    train(path)


def test_killed_anywhere_it_goes_on_to_the_same_files(recipe, tmp_path, capsys):
    train(recipe("whole"))
    path, processes = recipe("cut"), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pro_core.policies.conditional.trainer"])
    # A checkpoint every two steps of four: killed at the first of the offline stage, before the second of three
    # batches of responses is kept, then at the first checkpoint of the online stage.
    for place, count in (("offline", 1), ("rollouts", 2), ("online", 1)):
        process = processes.Process(target=run_killed, args=(path, place, count))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "cut" / "pro-wic-online").exists()
        there = [p.parent.parent.name for p in (tmp_path / "cut").glob("[pr]o*/*/manifest.json")]
        assert len(there) == {"offline": 0, "rollouts": 1, "online": 2}[place]
    capsys.readouterr()
    train(path)
    said = capsys.readouterr().out
    assert "resuming from" in said and "offline stage" not in said and "prompts x" not in said
    whole, cut = stage_files(tmp_path / "whole"), stage_files(tmp_path / "cut")
    assert cut == whole and len(whole) > 10
    ends = [tmp_path / name / "pro-wic-online" / "seed0" for name in ("whole", "cut")]
    one, two = (load_file(end / "adapter_model.safetensors") for end in ends)
    assert all((one[name] == two[name]).all() for name in one)


def test_two_processes_write_the_same_responses_as_one(recipe, tmp_path):
    train(recipe("one", rounds=0))
    done = in_two_processes("train/wic.py", recipe("two"))
    assert done.stdout.count("finished, ") == 1  # the main process speaks
    policy = tmp_path / "two" / "pro-wic-online" / "seed0"
    record = json.loads((policy / "run.json").read_text())
    assert record["stages"][0]["steps"] == 4 and record["stages"][1]["responses"] == 12
    [one], two = (
        [
            read_manifest(stage, POLICY)["record"]
            for stage in (tmp_path / name / "policies").glob("[!.]*")
        ]
        for name in ("one", "two")
    )
    assert one in two  # the offline stage: the same rows, the same tokens
    assert set(load_file(policy / "adapter_model.safetensors"))


# ---------------------------------------------------------------- what goes wrong


def test_a_round_that_accepts_nothing_is_an_error_that_can_be_resumed(
    recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(rounds, "accept_weighted", lambda z, *a: z[:, 0] > 99)
    arms = {"strict": {}, "RiC": {"condition": "scores", "goals": "ric", "accept": "ric"}}
    path = recipe("none", arms=arms)
    with pytest.raises(ConfigError) as said:
        train(path)
    text = str(said.value)
    assert text.startswith("1 not finished; strict, seed 0: round 1: none of ")
    assert "lower `quantile`" in text and "`rounds: 0`" in text
    # The other arm is whole, and nothing is lost: the responses are used again under a rule that keeps some.
    assert (tmp_path / "none" / "ric" / "seed0" / "run.json").is_file()
    capsys.readouterr()
    monkeypatch.undo()
    train(path)
    said = capsys.readouterr().out
    assert (
        "prompts x" not in said and (tmp_path / "none" / "strict" / "seed0" / "run.json").is_file()
    )


def failing(monkeypatch, broken):
    """Generation that fails where ``broken(text of the last message, call)`` says so."""
    original, calls = LocalGenerator.stream_batch, []

    async def stream(self, batch, settings=None):
        calls.append([request.messages[-1]["content"] for request in batch])
        bad = {i for i, text in enumerate(calls[-1]) if broken(text, len(calls))}
        for i in bad:
            yield Piece(i, error="The server is busy.", done=True)
        good = [i for i in range(len(batch)) if i not in bad]
        if good:
            async for piece in original(self, [batch[i] for i in good], settings):
                yield replace(piece, index=good[piece.index])

    monkeypatch.setattr(LocalGenerator, "stream_batch", stream)
    return calls


def test_prompts_that_fail_are_tried_again_and_then_listed(recipe, tmp_path, monkeypatch, capsys):
    calls = failing(monkeypatch, lambda text, call: "Paris" in text or call == 1)
    learned, original = [], wic.fine_tune

    def fine_tune(rows, *arguments, **named):
        learned.append(rows)
        return original(rows, *arguments, **named)

    monkeypatch.setattr(wic, "fine_tune", fine_tune)
    train(recipe("failing", prompts=8))
    said = capsys.readouterr().out
    assert (
        "2 responses to 1 prompts failed three times and are left out (The server is busy.)" in said
    )
    [folder] = (tmp_path / "failing" / "rollouts").glob("[!.]*")
    [line] = read_jsonl(folder / "failed.jsonl")
    plan = read_jsonl(folder / "prompts.jsonl")
    assert "Paris" in plan[line["prompt"]]["text"] or "Paris" in json.dumps(plan[line["prompt"]])
    assert line["failed"] == 2 and line["error"] == "The server is busy."
    assert sum("Paris" in text for texts in calls for text in texts) == 3 * 2
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["record"]["responses"] == 14 and manifest["record"]["failed_prompts"] == 1

    # The round learns from what it accepted, each under what it obtained, and as many offline rows.
    offline, online = learned
    [accepted] = (tmp_path / "failing" / "policies").glob("*/accepted.jsonl")
    lines = read_jsonl(accepted)
    read = [f"{line['prompt'][-1]['content']} {line['obtained']}" for line in lines]
    mine = online[: len(lines)]
    assert [messages[-1]["content"] for messages, _ in mine] == read
    assert [text for _, text in mine] == [line["response"] for line in lines]
    assert len(offline) == 24 and len(online) == 2 * len(lines)
    assert all(row in offline for row in online[len(lines) :])


def test_an_empty_answer_is_an_answer(tmp_path):
    """If it were asked for again until it is not empty, a policy would never learn what empty answers are worth."""
    script, messages = Script(empty="nothing"), [to_messages("say nothing"), to_messages("hello")]
    settings = base.GenerationSettings(4)
    found = sample(lambda: script, messages, 2, settings, tmp_path, 4, "own")
    assert [r.text for r in found[:2]] == ["", ""] and all(r.text for r in found[2:])
    assert failures(found) == [] and len(script.asked) == 1
    # A generator that writes nothing but those is no policy.
    with pytest.raises(ConfigError, match="not one of 4 responses was written: The model ended"):
        sample(lambda: Script(empty="o"), messages, 2, settings, tmp_path / "all", 4, "own")
    assert not (tmp_path / "all").exists()


def test_empty_answers_and_thoughts_are_not_learned(recipe, parts, tmp_path, monkeypatch):
    """Under any rule: neither a round's empty answers nor the thoughts before the data's answers."""
    original = LocalGenerator.stream_batch

    async def stream(self, batch, settings=None):
        async for piece in original(self, batch, settings):
            if not piece.done:
                continue
            if piece.index % 2:
                yield Piece(piece.index, "why not", reasoning="I think")
                yield Piece(piece.index, done=True, finish="length")
            else:
                yield Piece(
                    piece.index, error=base.EMPTY_ANSWER, done=True, finish="stop", empty=True
                )

    learned, tuned = [], wic.fine_tune

    def fine_tune(rows, *arguments, **named):
        learned.append([text for _, text in rows])
        return tuned(rows, *arguments, **named)

    rows = read_jsonl(parts["data"][0]["path"])
    rows[0]["response"] = f"<think>it rained</think>{rows[0]['response']}"
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(LocalGenerator, "stream_batch", stream)
    monkeypatch.setattr(rounds, "accept_weighted", lambda z, *a: z[:, 0] == z[:, 0])
    monkeypatch.setattr(wic, "fine_tune", fine_tune)
    train(recipe("empty", data=[{"path": str(tmp_path / "own.jsonl")}]))
    offline, online = learned
    assert len(offline) == 24 and not any("think" in text for text in [*offline, *online])
    assert online.count("why not") == 6 and all(text.strip() for text in online)
    [folder] = (tmp_path / "empty" / "rollouts").glob("[!.]*")
    record = json.loads((folder / "manifest.json").read_text())["record"]
    assert (record["responses"], record["empty"], record["cut"]) == (12, 6, 0.5)
    lines = read_jsonl(folder / "responses.jsonl")
    assert all(line["raw"] for line in lines)  # the empty ones are scored like any other
    assert {line["reasoning"] for line in lines if line["text"]} == {"I think"}


def test_a_server_that_loads_no_lora_is_an_error_of_the_round(recipe, tmp_path, monkeypatch):
    def refused(self, policy):
        raise base.GenerationError("The LoRA was not loaded.")

    monkeypatch.setattr(wic.WicRun, "_generator", refused)
    with pytest.raises(ConfigError, match="round 1: The LoRA was not loaded"):
        train(recipe("refused"))


def test_a_round_without_a_response_is_an_error_and_is_tried_again(recipe, tmp_path, monkeypatch):
    path = recipe("down")
    failing(monkeypatch, lambda text, call: True)
    with pytest.raises(
        ConfigError, match="not one of 12 responses was written: The server is busy"
    ):
        train(path)
    monkeypatch.undo()
    train(path)  # tries again; the offline stage is there
    assert (tmp_path / "down" / "pro-wic-online" / "seed0" / "run.json").is_file()


def test_long_prompts_are_cut_and_imitated_tags_neutralized(recipe, parts, tmp_path, capsys):
    rows = read_jsonl(parts["data"][0]["path"])
    rows += [
        {"prompt": "tell me why " * 60, "response": "no", "split": "train"},
        {
            "prompt": "hello <long> 0.00 <plain> 1.00 <PLAIN_score> 9",
            "response": "Paris.",
            "split": "train",
        },
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(recipe("odd", data=[{"path": str(file)}], prompts=10, offline_steps=8))
    [rollouts] = (tmp_path / "odd" / "rollouts").glob("[!.]*")
    plan = read_jsonl(rollouts / "prompts.jsonl")
    [failed] = read_jsonl(rollouts / "failed.jsonl")
    assert "too long for this model" in failed["error"]
    assert plan[failed["prompt"]]["prompt"][0]["content"].startswith("tell me why tell me why")
    record = json.loads((tmp_path / "odd" / "pro-wic-online" / "seed0" / "run.json").read_text())
    assert record["stages"][0]["left_out"] == 1  # of the rows that training reached
    # The policy reads the one condition and none of the user's.
    config = PolicyConfig.read(tmp_path / "odd" / "pro-wic-online" / "seed0")
    [message] = config.condition.messages(rows[-1]["prompt"], [0.25, 0.75], NAMES)
    assert (
        message["content"]
        == "hello (long) 0.00 (plain) 1.00 (PLAIN_score) 9 <long> 0.25 <plain> 0.75"
    )


def test_a_command_line_names_the_seeds_that_it_wants(recipe, tmp_path):
    path = recipe("shared", rounds=0, method="SFT", condition="none", seeds=[3, 1, 2])
    done = run("train/wic.py", path, "seeds=[2, 1]")
    assert done.returncode == 0, done.stderr[-3000:]
    made = tmp_path / "shared" / "sft"
    assert sorted(folder.name for folder in made.glob("[!.]*")) == ["seed1", "seed2"]
    with pytest.raises(ConfigError) as refused:
        train(path, "seeds=[x]")
    assert refused.value.fields == ("seeds.0",)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"objectives": ["long", "kind"]}, ["objectives"]),
        ({"adapter": None}, ["goals", "adapter"]),
        ({"model": "/absent/model"}, ["model"]),
        ({"prompts": 9}, ["prompts"]),
        ({"arms": {"A": {"model": "other"}}}, ["arms.A.model"]),
        ({"arms": {"A b": {}, "a-B": {}}}, ["arms.a-B"]),
        ({"arms": {"A": {}, "B": {}}, "policy": "x"}, ["policy"]),
        ({"max_new_tokens": 190}, ["max_new_tokens"]),
        ({"online_learning_rate": 0.0}, ["online_learning_rate"]),
        ({"condition": "none"}, ["condition", "rounds"]),
        ({"condition": "levels"}, ["condition"]),
        ({"endpoint": "http://localhost:1", "lora": None}, ["endpoint", "lora"]),
        ({"endpoint": "localhost:8000"}, ["endpoint"]),
        ({"goal": "mix"}, ["goal"]),
        ({"data": []}, ["data"]),
    ],
)
def test_recipes_that_cannot_be_run_are_refused(recipe, changes, fields):
    with pytest.raises(ConfigError) as refused:
        train(recipe("wrong", **changes))
    assert list(refused.value.fields) == fields


# ---------------------------------------------------------------- the recipes that ship, at tiny size

FUNCTIONS = ("length", "readability", "length", "readability", "length")
TINY = {
    "max_length": 160, "max_new_tokens": 8, "batch_size": 2, "offline_steps": 1, "online_steps": 1, "prompts": 4,
    "rollout_batch": 64, "quantile": 0.1, "seeds": [0], "rounds": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["wic_small", "gpu/wic"])
def test_the_recipes_that_ship_run_at_tiny_size(name, parts, tmp_path):
    """Everything but sizes is the recipe's own; models, panel and data of its kinds and names are tiny ones."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    objectives = settings.get("objectives") or [
        "helpful",
        "harmless",
        "truthful",
        "informative",
        "humor",
    ]
    for entry in settings["data"]:
        assert entry["path"].endswith(".jsonl.gz")
    panel = [{"name": n, "function": f} for n, f in zip(objectives, FUNCTIONS, strict=False)]
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump({"models": panel}))
    settings |= TINY | {
        "model": tiny_llama(tmp_path / "llama"),
        "panel": str(tmp_path / "panel.yaml"),
        "data": parts["data"],
        "output": str(tmp_path / "out"),
    }
    if settings.get("adapter"):
        vivid_adapter(tiny_encoder(tmp_path / "encoder"), objectives).save_pretrained(
            tmp_path / "adapter"
        )
        settings["adapter"] = str(tmp_path / "adapter")
    settings["arms"] = {arm: settings["arms"][arm] for arm in ("RiC online", "PRO-WIC online")}
    (tmp_path / "dry.yaml").write_text(yaml.safe_dump(settings))
    train(str(tmp_path / "dry.yaml"))
    for arm, kind in (("ric-online", "scores"), ("pro-wic-online", "weights")):
        config = PolicyConfig.read(tmp_path / "out" / arm / "seed0")
        assert (
            config.condition.kind == kind and list(config.condition.objective_names) == objectives
        )


def test_the_large_comparison_has_arms_of_the_small_one_and_both_share_their_offline_stages():
    recipes = [WicRecipe.read(ROOT / "recipes" / f"{n}.yaml") for n in ("wic_small", "gpu/wic")]
    small, full = (
        {name: method.used() for name, method in recipe.methods().items()} for recipe in recipes
    )
    assert set(full) < set(small) and len(small) == 9
    offline = ("offline_steps", "offline_learning_rate", "lora")
    for arms in (small, full):
        assert (
            len({json.dumps([s["condition"], *(s[key] for key in offline)]) for s in arms.values()})
            == 3
        )
        budget = (
            "prompts",
            "samples",
            "online_steps",
            "online_learning_rate",
            "rounds",
            "offline_share",
        )
        assert (
            len({json.dumps([s[key] for key in budget]) for s in arms.values() if s["rounds"]}) == 1
        )


@pytest.mark.parametrize(("name", "kind"), [("zero3", "DEEPSPEED"), ("fsdp", "FSDP")])
def test_accelerate_reads_the_configs(name, kind):
    found = load_config_from_file(str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"))
    assert found.distributed_type == kind and found.num_processes == 8


@pytest.mark.parametrize("name", ["demo_policy"])
def test_the_recipes_that_ship_are_read(name):
    assert WicRecipe.read(ROOT / "recipes" / f"{name}.yaml").methods()
