"""Kill every training script with SIGKILL at random moments, start it again until it is done, compare its files.

    python tests/crash_trials.py                          # all scripts, 20 kills each: an hour on one core
    python tests/crash_trials.py --kills 5 wic classifier

A trial is a fresh output folder and one command, killed after a random time and started again until it ends by itself.
At the end every file must be the same, byte by byte, as those of a run that nobody killed; of results rows all but the
clock. Everything is small: random models of two layers, a few rows of made-up data. Exit status 1 where files differ.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
MOST_STARTS = 60
"""Of one trial: a script that needs more makes no progress between two kills."""


@dataclass
class Script:
    """One command, and the folder that it fills."""

    command: list[str]
    output: Path


@dataclass
class Outcome:
    """What the trials of one script came to.

    Attributes:
        seconds: of the run that nobody killed. differing: files that were not the same at the end, by trial.
    """

    name: str
    seconds: float
    kills: int
    trials: int
    files: int
    differing: list[str]


# ---------------------------------------------------------------- small recipes


def small_parts(folder: Path) -> dict[str, Path]:
    """Models, data and what is trained beforehand, for all scripts."""
    from test_moslim import write_classifier
    from test_train_scripts import own_pairs, write_rows
    from tiny import panel_of_functions, tiny_encoder, tiny_llama, vivid_adapter

    names = ("long", "plain")
    write_rows(folder / "pairs.jsonl", own_pairs())
    tiny_encoder(folder / "encoder")
    tiny_llama(folder / "llama")
    vivid_adapter(str(folder / "encoder"), names).save_pretrained(folder / "adapter")
    panel_of_functions(folder, ["hello there.", "it rained on Sunday", "why"])
    write_classifier(folder / "classifier")
    answers = ("it rained.", "Paris. We stayed in, why not?", "hello there, tell me a joke.")
    rows = [
        {
            "prompt": f"tell me {what}",
            "response": f"{text} {what}",
            "split": split,
            "labels": labels,
        }
        for i, what in enumerate(
            ("the capital", "a joke", "hello", "France", "why", "Paris", "it", "rain", "Sunday")
        )
        for split in ["train" if i < 5 else "validation" if i < 7 else "test"]
        for j, text in enumerate(answers)
        for labels in [{"helpful": 1 + j, "truthful": j % 2, "informative": 1}]
    ]
    write_rows(folder / "own.jsonl", rows)
    for kind in ("helpful", "harmless"):
        start = f"\n\nHuman: Is this {kind}?\n\nAssistant: "
        lines = [{"chosen": f"{start}yes {i}", "rejected": f"{start}no {i}"} for i in range(9)]
        (folder / "hh" / f"{kind}-base").mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (folder / "hh" / f"{kind}-base" / "train.jsonl.gz").write_bytes(gzip.compress(text))
    return {path.name: path for path in folder.iterdir()}


def write(path: Path, recipe: dict) -> str:
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def scripts(folder: Path, output: Path) -> dict[str, Callable[[], Script]]:
    """Each script's small recipe; ``output`` is where it is trained, ``folder`` holds its parts."""
    from tiny import TINY_RUN

    data = {"data": [{"path": "own.jsonl"}], "data_dir": str(folder)}
    policy = {"model": str(folder / "llama"), "output": str(output), "max_length": 96} | data
    rewarded = policy | {"panel": str(folder / "panel"), "adapter": str(folder / "adapter")}
    encoder = str(folder / "encoder")

    def python(script: str, name: str, recipe: dict) -> Script:
        path = write(folder / f"{name}.yaml", recipe)
        return Script([sys.executable, *f"train/{script}".split(), path], output)

    panel = {
        "objectives": ["helpful", "harmless"],
        "model": encoder,
        "output": str(output),
        "data_dir": str(folder),
        "data": [{"path": "pairs.jsonl", "epochs": 2}],
        "batch_size": 16,
        "max_length": 48,
        "folds": 2,
        "checkpoint_every": 3,
    }
    wic = {"lora": {"r": 4}, "max_new_tokens": 12, "batch_size": 4, "checkpoint_every": 1}
    wic |= {"offline_steps": 4, "online_steps": 4, "prompts": 4, "samples": 2, "rollout_batch": 4}
    wic |= {"offline_learning_rate": 0.01, "online_learning_rate": 0.01, "quantile": 0.3}

    pairs = {
        "data": [{"path": "own.jsonl", "kind": "labels", "objectives": ["helpful"]}],
        "lora": {"r": 4},
        "max_new_tokens": 12,
        "batch_size": 4,
        "checkpoint_every": 1,
        "sft_steps": 2,
        "steps": 12,
        "trials": [{"learning_rate": 0.01, "beta": 0.5}],
        "arms": {name: {"algorithm": name} for name in ("kto", "adpo", "pro_dpo")},
    }

    def trained_pairs() -> Path:
        """The panel and the scores that the adapter is fitted on, made once."""
        made = folder / "panel_run"
        if not made.exists():
            recipe = write(folder / "once.yaml", panel | {"output": str(made)})
            beforehand("reward_models.py", recipe)
        return made

    def adapter_recipe(place: Path, **changes) -> dict:
        made = trained_pairs()
        return {
            "scores": str(made / "scores.parquet"),
            "panel": str(made / "panel"),
            "output": str(place),
            "encoder": encoder,
            "train_encoder": True,
            "epochs": 2,
            "batch_size": 16,
            "seeds": [0],
            "folds": 2,
            "targets": [
                {"target": "pairwise", "temperature": 1.0},
                {"target": "paper_z", "temperature": 1.0},
            ],
        } | changes

    def convergence() -> Script:
        made, recipe = folder / "adapters", folder / "fitted.yaml"
        if not made.exists():
            write(recipe, adapter_recipe(made, train_encoder=False))
            beforehand("adapter.py", recipe)
        settings = yaml.safe_load((ROOT / "recipes/convergence.yaml").read_text())
        settings |= {"responses": ["own.jsonl"], "data_dir": str(folder), "encoder": encoder}
        settings |= {"adapter": str(recipe), "panel_folds": str(trained_pairs() / "folds")}
        settings |= {"output": str(output), "results": str(output / "convergence.jsonl")}
        settings |= {"figure": str(output / "figure.svg"), "seeds": [0, 1], "every": 4, "steps": 6}
        settings |= {"prompt_components": 1, "response_components": 2, "batch_size": 2}
        settings |= {"betas": [0.1, 1.0], "learning_rates": [0.01]}
        return python("convergence.py", "convergence", settings)

    def morlhf(algorithm: str) -> Callable[[], Script]:
        steps = {"steps": 4, "checkpoint_every": 1, "algorithm": algorithm}
        if algorithm == "online_dpo":
            steps |= {"round_steps": 2}
        return lambda: python("morlhf.py", algorithm, rewarded | TINY_RUN | steps)

    classifier = {
        "objectives": {"helpful": {"range": [1, 3], "thresholds": [2, 3]}},
        "model": encoder,
        "output": str(output),
        "data_dir": str(folder),
        "data": [{"path": "own.jsonl", "labels": ["helpful"], "epochs": 8}],
        "losses": ["joint", "per_head"],
        "batch_size": 4,
        "max_length": 32,
        "checkpoint_every": 3,
    }
    scoring = {"panel": str(folder / "panel"), "output": str(output), "shard_size": 2} | data
    evaluation = {
        "experiment": "trial",
        "panel": str(folder / "panel"),
        "judge": None,
        "heldout_panel": None,
        "output": str(output),
        "base": "base",
        "weights": 3,
        "prompts": 2,
        "data": [{"path": "own.jsonl", "kind": "labels", "objectives": ["helpful"]}],
        "data_dir": str(folder),
        "seeds": [0, 1],
        "reference_candidates": 2,
        "max_new_tokens": 12,
        "policies": [
            {"name": "base", "model": str(folder / "llama")},
            {"name": "best of 2", "model": str(folder / "llama"), "candidates": 2},
        ],
    }
    theorem = yaml.safe_load((ROOT / "recipes/theorem.yaml").read_text()) | {
        "responses": "own.jsonl",
        "data_dir": str(folder),
        "panel": str(folder / "panel"),
        "encoder": encoder,
        "output": str(output),
        "results": str(output / "theorem.jsonl"),
        "figure": str(output / "figure.svg"),
        "seeds": [0, 1],
        "betas": [0.1],
        "spreads": [0.5, 1],
        "sizes": [2, 4],
        "components": 2,
        "steps": 10,
    }
    return {
        "reward_models": lambda: python("reward_models.py", "panel", panel),
        "separate models": lambda: python("reward_models.py", "k", panel | {"shared_trunk": False}),
        "adapter": lambda: python("adapter.py", "adapter", adapter_recipe(output)),
        "frozen adapter": lambda: python(
            "adapter.py", "frozen", adapter_recipe(output, train_encoder=False)
        ),
        "classifier": lambda: python("classifier.py", "classifier", classifier),
        "score_rewards": lambda: python("score_rewards.py", "scoring", scoring),
        "wic": lambda: python("wic.py", "wic", rewarded | wic),
        "morlhf grpo": morlhf("grpo"),
        "morlhf rloo": morlhf("rloo"),
        "morlhf ppo": morlhf("ppo"),
        "morlhf online_dpo": morlhf("online_dpo"),
        "moslim": lambda: python(
            "moslim.py", "moslim", policy | TINY_RUN | {"classifier": str(folder / "classifier")}
        ),
        "preference": lambda: python("preference.py", "preference", rewarded | pairs),
        "soups": lambda: soups(folder, output, rewarded | TINY_RUN),
        "theorem": lambda: python("theorem.py", "theorem", theorem),
        "convergence": convergence,
        "evaluate policies": lambda: python(
            f"evaluate.py --results {output} --figures {output} policies", "evaluation", evaluation
        ),
        "prepare_data": lambda: Script(
            [sys.executable, "train/prepare_data.py", str(output), "hh_pairs", "--source",
             f"hh_pairs={folder / 'hh'}"],
            output,
        ),
    }  # fmt: skip


def soups(folder: Path, output: Path, rewarded: dict) -> Script:
    """Two single-objective policies, trained once, and their soups."""
    made = folder / "alone"
    names = ("long", "plain")
    if not made.exists():
        arms = {f"{name} alone": {"weights": {name: 1.0}} for name in names}
        recipe = write(folder / "alone.yaml", rewarded | {"output": str(made), "arms": arms})
        beforehand("morlhf.py", recipe)
    recipe = {
        "policies": {name: str(made / f"{name}-alone/seed0") for name in names},
        "soups": {str(output / "mixed"): None, str(output / "even"): [0.5, 0.5]},
    }
    path = write(folder / "soups.yaml", recipe)
    return Script([sys.executable, "train/soups.py", path], output)


def beforehand(script: str, recipe: str | Path) -> None:
    """Train what a script takes as given."""
    run_to_the_end(Script([sys.executable, f"train/{script}", str(recipe)], Path(recipe).parent))


# ---------------------------------------------------------------- trials


def finished_files(output: Path) -> dict[str, str]:
    """Every file with a hash of what must be the same: rows of results without the clock, caches and locks left out."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if (
            path.suffix in (".lock", ".sqlite", ".svg")
            or path.name == ".clock.json"
            or not path.is_file()
        ):
            continue
        content = path.read_bytes()
        if path.suffix == ".jsonl" and b'"wall_s"' in content:
            rows = [json.loads(line) for line in content.splitlines()]
            for row in rows:
                row.pop("wall_s")
            rows.sort(key=json.dumps)
            content = json.dumps(rows).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def run_to_the_end(script: Script) -> float:
    """The seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(script.command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(script.command)}\n{done.stdout}{done.stderr}")
    return time.monotonic() - started


def killed_after(script: Script, seconds: float) -> bool:
    """Start it and kill it after so many seconds; whether it was killed before it ended."""
    process = subprocess.Popen(
        script.command, cwd=ROOT, env=ENV, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"{' '.join(script.command)}\n{said}")
    return False


def try_script(name: str, script: Script, kills: int, rng: random.Random) -> Outcome:
    """Trials of one script, until it has been killed so often."""
    shutil.rmtree(script.output, ignore_errors=True)
    seconds = run_to_the_end(script)
    expected = finished_files(script.output)
    outcome = Outcome(name, seconds, 0, 0, len(expected), [])
    while outcome.kills < kills:
        shutil.rmtree(script.output, ignore_errors=True)
        outcome.trials += 1
        for _ in range(MOST_STARTS):
            last = outcome.kills == kills
            # The first third of a run imports and loads; most kills should come while something is written.
            after = None if last else rng.uniform(0.3, 1.0) * seconds
            if last:
                run_to_the_end(script)
                break
            if not killed_after(script, after):
                break
            outcome.kills += 1
        else:
            outcome.differing.append(f"trial {outcome.trials}: not done after {MOST_STARTS} starts")
        found = finished_files(script.output)
        for file in sorted(expected.keys() | found.keys()):
            if expected.get(file) != found.get(file):
                outcome.differing.append(f"trial {outcome.trials}: {file}")
    return outcome


def table(outcomes: list[Outcome]) -> str:
    lines = [
        "| script | seconds | kills | runs that ended | files | files that differ |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {o.name} | {o.seconds:.0f} | {o.kills} | {o.trials} | {o.files} | {len(o.differing)} |"
        for o in outcomes
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="which scripts; default: all")
    parser.add_argument("--kills", type=int, default=20, help="of each script")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trials-") as place:
        folder = Path(place) / "parts"
        folder.mkdir()
        small_parts(folder)
        known = scripts(folder, Path(place) / "output")
        if wrong := sorted(set(options.names) - set(known)):
            parser.error(f"got {wrong}, expected some of {list(known)}")
        outcomes = []
        for name in options.names or known:
            rng = random.Random(f"{options.seed}:{name}")
            outcomes.append(try_script(name, known[name](), options.kills, rng))
            print(table(outcomes[-1:]).splitlines()[-1], flush=True)
            for line in outcomes[-1].differing:
                print(f"  {line}", flush=True)
    print(f"\n{table(outcomes)}")
    sys.exit(any(o.differing for o in outcomes))


if __name__ == "__main__":
    main()
