"""Panels of other people's models: the YAML specs, on small random models of the same architectures."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import tiny_bart, tiny_classifier, tiny_deberta, tiny_distilbert, tiny_encoder, tiny_gpt2
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pro_core.rewards.panel import RewardPanel
from pro_core.system.storage import StorageError

PANELS = Path(__file__).resolve().parent.parent / "recipes" / "panels"
BUILDERS = {
    "Ray2333/gpt2-large-harmless-reward_model": tiny_gpt2,
    "Ray2333/gpt2-large-helpful-reward_model": tiny_gpt2,
    "mohameddhiab/humor-no-humor": tiny_distilbert,
    "Tristan/gpt2_reward_summarization": tiny_gpt2,
    "CogComp/bart-faithful-summary-detector": tiny_bart,
    "OpenAssistant/reward-model-deberta-v3-large-v2": tiny_deberta,
}
POST = "We stayed in.\nIt rained on Sunday."
PROMPTS = [f"Summarize this text.\n\n{POST}", "What is the capital of France?"] * 2
COMPLETIONS = ["It rained.", "Paris. ", "We stayed in. " * 8, "<|endoftext|> no </s> [SEP] idea"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The recipes' panels, unchanged, in a folder where each hub id is a small random model."""
    folder = tmp_path_factory.mktemp("hub")
    for seed, (source, build) in enumerate(BUILDERS.items()):
        build(folder / source, seed=seed)
    for path in PANELS.glob("ric_*.yaml"):
        (folder / path.name).write_text(path.read_text())
    return folder


@pytest.fixture
def exact(monkeypatch):
    """Scoring in fp32, so that only what is computed counts, not how bf16 rounds it."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: nullcontext())


def ric_text(name: str, prompt: str, response: str, tokenizer) -> tuple:
    """What RiC's own code hands to the tokenizer (ric/multi_reward_models.py), for prompts of ours."""
    post = prompt.removeprefix("Summarize this text.\n\n").replace("\n", " ")
    return {
        "harmless": (f"\n\nHuman: {prompt} \n\nAssistant:", response),
        "humor": (response,),
        "summary": (response + " " + str(tokenizer.bos_token) + " " + post,),
        "faithful": (response, post),
        "deberta": (
            "### Instruction: Generate a one-sentence summary of this post. "
            f"### Input: {post} ### Response: ",
            response,
        ),
    }["harmless" if name == "helpful" else name]


@pytest.mark.parametrize("panel", ["ric_assistant", "ric_summary"])
def test_a_panel_scores_as_rics_code_does(hub, exact, panel):
    loaded = RewardPanel.from_pretrained(hub / f"{panel}.yaml")
    scores = loaded.score(PROMPTS[:3], COMPLETIONS[:3])
    assert scores.shape == (3, 3)
    for k, spec in enumerate(loaded.specs):
        tokenizer = AutoTokenizer.from_pretrained(hub / spec.source)
        labels = 2 if spec.name in ("humor", "faithful") else 1  # RiC's num_labels and sub_position
        model = AutoModelForSequenceClassification.from_pretrained(
            hub / spec.source, num_labels=labels
        )
        for i in range(3):
            text = ric_text(spec.name, PROMPTS[i], COMPLETIONS[i].strip(), tokenizer)
            inputs = tokenizer(*text, return_tensors="pt", truncation=True, max_length=1024)
            with torch.no_grad():
                expected = model.eval()(**inputs).logits[0][labels - 1].item()
            assert scores[i, k] == pytest.approx(expected, abs=1e-4, rel=1e-4), spec.name
        assert np.ptp(scores[:, k]) > 0.01, spec.name


@pytest.mark.parametrize("panel", ["ric_assistant", "ric_summary"])
def test_scores_do_not_depend_on_the_batch(hub, exact, panel):
    """No padding token (GPT-2), the padding token inside a text (summary), end marks that are counted (BART)."""
    loaded = RewardPanel.from_pretrained(hub / f"{panel}.yaml")
    together = loaded.score(PROMPTS, COMPLETIONS)
    alone = np.vstack([loaded.score([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=1e-4)


def test_a_yaml_panel_gets_statistics_and_is_saved_beside_its_models(hub, tmp_path):
    panel = RewardPanel.from_pretrained(hub / "ric_summary.yaml")
    with pytest.raises(ValueError, match="no statistics"):
        panel.standardized(PROMPTS, COMPLETIONS)
    panel.fit_stats(PROMPTS, COMPLETIONS, "four texts", remove_length=True)
    panel.save_pretrained(tmp_path / "mine")
    again = RewardPanel.from_pretrained(tmp_path / "mine")
    assert again.objective_names == ("summary", "faithful", "deberta")
    np.testing.assert_array_equal(
        again.standardized(PROMPTS, COMPLETIONS), panel.standardized(PROMPTS, COMPLETIONS)
    )
    assert (
        again.fingerprint() == RewardPanel.from_pretrained(hub / "ric_summary.yaml").fingerprint()
    )
    assert (
        again.fingerprint() != RewardPanel.from_pretrained(hub / "ric_assistant.yaml").fingerprint()
    )


def test_functions_stand_beside_models(tmp_path):
    panel = RewardPanel.from_pretrained(PANELS / "demo_functions.yaml")
    demo = RewardPanel.from_pretrained(PANELS.parent.parent / "checkpoints/demo/panel")
    texts = [
        "As an AI, I cannot. I am sorry.",
        "Yes.",
        "Incomprehensible organizational considerations.",
    ]
    prompts = ["Is it raining?"] * 3
    scores = panel.score(prompts, texts)
    np.testing.assert_allclose(scores[:, :2], demo.score(prompts, texts)[:, :2], atol=0.05)
    np.testing.assert_array_equal(scores[:, 2], [-len(t) for t in texts])
    assert scores[1, 3] > scores[2, 3]
    np.testing.assert_array_equal(scores[:, 4], [-1, 0, 0])
    panel.fit_stats(prompts, texts, "three texts")
    panel.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "panel.json").read_text())
    assert config["models"][4]["pattern"] == r"(?i)\bas an ai\b"
    again = RewardPanel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.score(prompts, texts), scores)


def test_a_panel_of_functions_alone_needs_no_model(tmp_path):
    write(tmp_path, [{"name": "short", "function": "length", "direction": -1}])
    panel = RewardPanel.from_pretrained(tmp_path / "p.yaml")
    done = []
    scores = panel.score(["Hi"] * 2, ["aa", "b"], lambda part, whole: done.append((part, whole)))
    np.testing.assert_array_equal(scores, [[-2], [-1]])
    assert done[-1] == (2, 2)


# ---------------------------------------------------------------- what cannot be loaded


def write(folder: Path, models) -> None:
    (folder / "p.yaml").write_text(yaml.safe_dump({"models": models}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("models: [", "not YAML"),
        ("[]", "expected one key, 'models'"),
        ("{models: [], stats: 1}", "expected one key, 'models'"),
        ("models: helpful", "expected a list of specs"),
        ("models: []", "no objective names"),
        ("models: [{name: helpful}]", "expected one of them"),
        ("models: [{name: helpful, source: a, function: length}]", "expected one of them"),
        ("models: [{name: helpful, source: a, dirction: 1}]", "dirction"),
        ("models: [{name: helpful, source: a, direction: 2}]", "expected 1 or -1"),
        ("models: [{name: Helpful, source: a}]", "lower-case"),
        ("models: [{name: helpful, function: eval}]", "expected one of .'length'"),
        ("models: [{name: helpful, function: rule}]", "a rule has one"),
        ("models: [{name: helpful, function: length, pattern: a}]", "a rule has one"),
        ("models: [{name: helpful, function: rule, pattern: '('}]", "unterminated"),
        ("models: [{name: a, function: length}, {name: a, function: length}]", "two objectives"),
        ("models: [{name: helpful, source: ./absent}]", "cannot load the reward model"),
    ],
)
def test_a_wrong_yaml_says_what_is_wrong(tmp_path, content, said):
    if content is not None:
        (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(StorageError, match=said):
        RewardPanel.from_pretrained(tmp_path / "p.yaml")


def test_a_model_without_a_reward_head_is_refused(tmp_path):
    tiny_encoder(tmp_path / "trunk")
    write(tmp_path, [{"name": "helpful", "source": "trunk"}])
    with pytest.raises(StorageError, match="lacks classifier"):
        RewardPanel.from_pretrained(tmp_path / "p.yaml")


def test_a_spec_gives_the_outputs_that_a_config_leaves_out(tmp_path):
    tiny_bart(tmp_path / "bart")  # two outputs; a BART config that does not say so means three
    specs = [{"name": "faithful", "source": "bart", "logit": 1}]
    write(tmp_path, specs)
    with pytest.raises(StorageError, match="outputs"):
        RewardPanel.from_pretrained(tmp_path / "p.yaml")
    write(tmp_path, [specs[0] | {"outputs": 2}])
    assert RewardPanel.from_pretrained(tmp_path / "p.yaml").score(["a"], ["b"]).shape == (1, 1)


def test_one_model_in_two_revisions_is_refused(tmp_path):
    tiny_classifier(tmp_path / "m", 2)
    both = [{"name": "a", "source": "m"}, {"name": "b", "source": "m", "revision": "v2"}]
    write(tmp_path, both)
    with pytest.raises(StorageError, match="v2"):
        RewardPanel.from_pretrained(tmp_path / "p.yaml")
