"""How the evaluation kit asks policies: where weights enter, responses as files, and how likely a text is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import Script, conditioned_qwen

from pro_core.data.schema import to_messages
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.recipe import PolicyEntry
from pro_core.evaluation.policy.responses import GeneratorPolicy, best_answer, respond
from pro_core.evaluation.policy.text_quality import LanguageModel
from pro_core.generation import GenerationSettings, LocalGenerator, Request
from pro_core.prompting.templates import Condition
from pro_core.rewards.best_of_n import Candidate, rank
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from pro_core.runs.recipes import ConfigError

NAMES = ("helpful", "harmless")
SETTINGS = GenerationSettings(max_new_tokens=6, temperature=0.7)
RIC = Condition("scores", NAMES, score_range=((-1, 2), (-2, 3)))


# ---------------------------------------------------------------- where weights enter


@pytest.mark.parametrize(
    ("condition", "weights", "read"),
    [
        (Condition("weights", NAMES), [0.62, 0.38], "<helpful> 0.62 <harmless> 0.38"),
        (Condition("weights", NAMES[::-1]), [0.62, 0.38], "<harmless> 0.38 <helpful> 0.62"),
        # RiC: w / norm * (high - low) + low, here (.6, .8) of the ranges (-1, 2) and (-2, 3).
        (RIC, [3 / 7, 4 / 7], "<helpful_score> 0.8 <harmless_score> 2.0"),
        (Condition("none", NAMES), [0.62, 0.38], ""),
    ],
)
def test_a_conditioned_checkpoint_is_asked_in_its_own_way(qwen, tmp_path, condition, weights, read):
    """Its own objectives in its own order; what a visitor types is no tag; an SFT model reads the prompt alone."""
    policy = named(name="own", model=conditioned_qwen(tmp_path / "own", qwen, condition))
    (turn,) = policy.reads(request("Tell me <helpful> 1.00 a joke.", weights)).messages
    said = "(helpful)" if condition else "<helpful>"
    assert turn["content"] == f"Tell me {said} 1.00 a joke. {read}".strip()


def named(names=NAMES, **entry):
    """A recipe's only policy, under weights."""
    policies = NamedPolicies.under_weights([PolicyEntry(**entry)], names)
    return policies(entry["name"], 0)


def request(prompt, weights):
    return Request.weighted(to_messages(prompt), np.float32(weights), NAMES)


def test_a_stock_model_under_levels_is_asked_in_the_words_of_the_trained(qwen):
    condition = Condition("levels", NAMES, level_counts=(3, 2))
    policies = NamedPolicies.under_levels([PolicyEntry(name="stock", model=qwen)], condition)
    asked = Request(to_messages("Hi <helpful 3>"), levels={"harmless": 2})
    (turn,) = policies("stock", 0).reads(asked).messages
    assert turn["content"] == "<harmless 2> Hi (helpful 3)"


def test_an_endpoint_is_asked_as_the_checkpoint_that_it_serves(qwen, tmp_path):
    folder = conditioned_qwen(tmp_path / "own", qwen, Condition("weights", NAMES))
    stock = {"name": "served", "endpoint": "http://localhost:9/v1", "model": "lora"}
    ask = request("Hi", [0.62, 0.38])
    policy, plain = named(**stock, policy=folder), named(**stock)
    assert policy.reads(ask).messages[0]["content"] == "Hi <helpful> 0.62 <harmless> 0.38"
    assert plain.reads(ask).messages[0]["content"] == "Hi"
    assert plain.identity(ask) != policy.identity(ask)
    for wrong in ({"policy": qwen}, {"endpoint": "x y"}):
        with pytest.raises(ConfigError) as refused:
            named(**stock | wrong)
        assert refused.value.fields == ("policies",)


def test_a_checkpoint_for_other_objectives_is_refused(qwen, tmp_path):
    model = conditioned_qwen(tmp_path / "own", qwen, Condition("weights", NAMES))
    with pytest.raises(ConfigError) as refused:
        named(("humor", "helpful"), name="own", model=model)
    assert refused.value.fields == ("policies",)


def function_panel():
    """Length against brevity of form: two objectives that need no model."""
    specs = [
        RewardModelSpec("helpful", function="length"),
        RewardModelSpec("harmless", function="rule", pattern=r"\bsorry\b"),
    ]
    panel = RewardPanel.build(specs, ".")
    panel.fit_stats(["a"] * 4, ["x", "x" * 21, "sorry", "sorry, no"], "four texts")
    return panel


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (0.5, 0.5), (0.9, 0.1)])
def test_best_of_n_takes_what_the_app_would(weights):
    panel, texts = function_panel(), ["yes of course, gladly", "sorry", "sorry, I cannot", "no"]
    ranked = rank(panel, [], [Candidate(t) for t in texts], np.float32(weights), "given")
    z = panel.standardized(["a"] * 4, texts)
    assert texts[best_answer(z, weights)] == ranked.best.text


def test_best_of_n_takes_nothing_without_scores():
    assert best_answer([[np.nan, 1], [0, 0]], [0.5, 0.5]) == 1
    assert best_answer([[1, 1], [1, 1]], [0.5, 0.5]) == 0  # the first of equals
    assert best_answer([[np.nan, 1]], [0.5, 0.5]) is None
    assert best_answer(np.empty((0, 2)), [0.5, 0.5]) is None


# ---------------------------------------------------------------- responses as files


PROMPTS = ["one", "two", "three", "four", "five"]


def asked(generator, folder, weights=(0.5, 0.5), seed=0, source="script", n=1):
    policy = GeneratorPolicy("p", lambda: generator, source, n)
    requests = [Request.weighted(to_messages(prompt), weights, NAMES) for prompt in PROMPTS]
    return respond(policy, requests, SETTINGS, seed, folder, batch_size=2)


def texts_of(answers):
    return [[a.text for a in mine] for mine in answers]


def test_responses_are_written_once_and_read_ever_after(tmp_path):
    script, reader = Script(), Script(condition=Condition("weights", NAMES))
    first = asked(script, tmp_path)
    # Short prompts beside short ones; the answers come back in the prompts' order.
    assert script.asked == [["one", "two"], ["four", "five"], ["three"]]
    assert [t.split()[0] for (t,) in texts_of(first)] == [f"[{p}]" for p in PROMPTS]
    assert asked(script, tmp_path) == first and len(script.asked) == 3
    asked(script, tmp_path, weights=(1, 0))
    assert len(script.asked) == 3  # it does not look at its weights: no need to ask again
    for weights in ((1, 0), (0, 1), (1, 0)):
        asked(reader, tmp_path, weights=weights)
    assert len(reader.asked) == 6 and reader.asked[0][0] == "one <helpful> 1.00 <harmless> 0.00"
    asked(script, tmp_path, source="another checkpoint")
    assert len(script.asked) == 6
    asked(script, tmp_path, seed=1)
    assert len(script.asked) == 9 and not set(script.seeds[:3]) & set(script.seeds[6:])


def test_every_policy_and_weighting_gets_the_same_random_numbers(tmp_path):
    script = Script(condition=Condition("weights", NAMES))
    for weights in ((1, 0), (0, 1)):
        asked(script, tmp_path, weights=weights)
    asked(script, tmp_path, source="another checkpoint")
    assert script.seeds[:3] == script.seeds[3:6] == script.seeds[6:]
    assert len(set(script.seeds[:3])) == 3  # but each batch its own


def test_a_killed_run_goes_on_to_the_same_texts(tmp_path, qwen):
    """A batch that was not finished is written again whole, under its own seed: the real generator, tiny."""
    whole = asked(LocalGenerator(qwen, device="cpu"), tmp_path / "whole", n=2)
    [file] = (tmp_path / "whole").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5 and len(texts_of(whole)[0]) == 2
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / file.name).write_bytes(b"".join(lines[:2]) + lines[2][:50])
    assert asked(LocalGenerator(qwen, device="cpu"), tmp_path / "killed", n=2) == whole


def test_what_fails_is_tried_again_and_the_rest_stands(tmp_path):
    script = Script({"two": 1, "four": 3})
    answers = asked(script, tmp_path)
    assert texts_of(answers)[1][0].startswith("[two]")  # at the second try
    # Half a text is none.
    assert answers[3][0].text is None and answers[3][0].error == "four failed"
    assert script.asked[3:] == [["two", "four"], ["four"]]
    assert len(set(script.seeds)) == len(script.seeds)  # another draw for each try
    again = asked(script, tmp_path)
    assert again[3][0].text.startswith("[four]") and again[:3] == answers[:3]
    count = len(script.asked)
    asked(script, tmp_path)
    assert len(script.asked) == count


class Soup:
    """Another kind of policy: the weights choose the writer, as in Rewarded Soups."""

    name, candidates = "soup", 1

    def __init__(self):
        self.writers = {}

    def identity(self, request):
        return f"soup {request.weights}"

    def generator(self, request):
        return self.writers.setdefault(self.identity(request), Script())

    def reads(self, request):
        return Request(request.messages)


def test_a_policy_may_have_a_writer_for_each_weighting(tmp_path):
    soup = Soup()
    rows = [[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]]
    requests = [
        Request.weighted(to_messages(prompt), weights, NAMES)
        for prompt, weights in zip(PROMPTS, rows, strict=True)
    ]
    answers = respond(soup, requests, SETTINGS, 0, tmp_path, batch_size=2)
    assert [a[0].text.split()[0] for a in answers] == [f"[{p}]" for p in PROMPTS]
    assert [w.asked for w in soup.writers.values()] == [
        [["one", "four"], ["three"]],
        [["two", "five"]],
    ]


# ---------------------------------------------------------------- how likely a text is


def test_surprise_is_the_models_own_log_probability(qwen):
    """Against one plain forward pass a response; the prompt's cache, padding and batches change nothing."""
    scorer = LanguageModel(qwen, "cpu", token_budget=20)
    model, tokenizer = scorer._loaded
    model.float()
    prompts = ["hello there", "hello there", "tell me a joke", "hello there"]
    responses = ["Paris. it rained on Sunday", "", "why not?", "hello"]
    found = scorer.surprise(prompts, responses)
    for prompt, response, (nats, tokens) in zip(prompts, responses, found, strict=True):
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert tokens == len(said)
        with torch.no_grad():
            log_p = model(torch.tensor([before + said])).logits[0].log_softmax(-1)
        expected = -sum(float(log_p[len(before) - 1 + i, t]) for i, t in enumerate(said))
        assert nats == pytest.approx(expected, abs=1e-3)
