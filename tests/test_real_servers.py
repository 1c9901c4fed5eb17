"""A real vLLM (its build for CPUs, in .venv-servers: `make test-servers`) with the small model and a lattice of LoRAs.

The commands are those of docs/endpoints.md and `train/soups.py`, except for what a CPU needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny import tiny_reward_qwen

from pro_core.generation import (
    EndpointGenerator,
    GenerationError,
    GenerationSettings,
    LocalGenerator,
    Request,
    collect,
    generator_from_env,
)
from pro_core.generation.vllm_lora import LoraEndpoint, SoupEndpoint
from pro_core.judges.judge import EndpointJudge, LocalJudge
from pro_core.policies.soups import greatest_rank, interpolate_lattice
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.batching import collate, encode
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.endpoint import HostedModel
from pro_core.rewards.judge import question
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scorers import EndpointError
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.bundled_models import SMOLLM2

pytestmark = [pytest.mark.servers, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-servers/bin/python"
NAMES = ("helpful", "harmless", "truthful", "informative", "humor")
LATE = "humor-100"
"""The mixture that the server is not started with."""
HI = [{"role": "user", "content": "How do I clean a cat?"}]
ASK = Request(HI)
GREEDY = GenerationSettings(max_new_tokens=16, temperature=0.0)


@pytest.fixture(scope="module")
def lattice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soups") / "lattice"
    interpolate_lattice(ROOT / "checkpoints/demo/policy", folder, 2)
    return folder


class Server:
    """A process that serves; `get` and `post` ask it without our client."""

    def __init__(self, url: str):
        self.url = url

    def get(self, route: str) -> httpx2.Response:
        return httpx2.get(self.url + route, timeout=60)

    def post(self, route: str, **body) -> httpx2.Response:
        return httpx2.post(self.url + route, json=body, timeout=60)

    def running(self) -> float:
        """How many answers vLLM is writing, by its own count."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:num_requests_running"))


@contextlib.contextmanager
def serving(log_folder: Path, *settings: str):
    """A vLLM with these settings, once it is ready."""
    if not PYTHON.is_file():
        pytest.skip("SERVER TESTS NOT RUN: no .venv-servers; make test-servers makes it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *settings]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    environ = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "",
    }
    log = (log_folder / "log").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ)
    server = Server(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 420
        while True:
            try:
                if server.get("/health").is_success:
                    break
            except httpx2.TransportError:
                pass
            log.seek(0)
            assert process.poll() is None, f"vLLM ended: {log.read()[-4000:]}"
            assert time.monotonic() < deadline, f"vLLM did not start: {log.read()[-4000:]}"
            time.sleep(0.5)  # a process that starts can only be polled
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def vllm(smollm2, lattice, tmp_path_factory):
    """vLLM with SmolLM2 and all mixtures but one."""
    names = [name for name in PolicyConfig.read(lattice).mixtures if name != LATE]
    settings = ["--model", smollm2, "--served-model-name", SMOLLM2, "--dtype", "bfloat16"]
    settings += ["--max-model-len", "1024", "--enable-lora", "--max-loras", "4"]
    settings += ["--max-cpu-loras", "16", "--max-lora-rank", str(greatest_rank(lattice))]
    settings += ["--lora-modules", *(f"{name}={lattice / name}" for name in names)]
    with serving(tmp_path_factory.mktemp("vllm"), *settings) as server:
        yield server


def alike(one: str, other: str) -> bool:
    """Whether two greedy answers begin alike; two programs in bf16 may part ways later."""
    return bool(one) and one[:12] == other[:12]


# ---------------------------------------------------------------- the model alone


def test_candidates_are_streamed_side_by_side(vllm):
    generator = EndpointGenerator(vllm.url)

    async def watch():
        settings = GenerationSettings(max_new_tokens=16)
        return [piece async for piece in generator.stream_batch([ASK, ASK], settings)]

    news = asyncio.run(watch())
    assert not any(piece.error for piece in news)
    order = [piece.index for piece in news if piece.text]
    assert len(order) > 8 and order != sorted(order)  # in pieces, by turns
    assert [piece.finish for piece in news if piece.done] == ["length", "length"]
    status = generator.status()
    assert (status["state"], status["detail"]) == ("ready", "openai dialect")
    assert generator.name == f"{SMOLLM2} at {vllm.url.removeprefix('http://')}"


def test_it_says_what_the_model_says(vllm, smollm2):
    here = LocalGenerator(smollm2).generate([ASK], GREEDY)[0]
    assert alike(EndpointGenerator(vllm.url).generate([ASK], GREEDY)[0], here)


def test_seeds_repeat_and_differ(vllm):
    generator = EndpointGenerator(vllm.url)
    settings = GenerationSettings(max_new_tokens=12, temperature=1.0, seed=5)
    first, second = (generator.generate([ASK, ASK], settings) for _ in range(2))
    assert first == second
    assert first[0] != first[1]


def test_leaving_stops_the_servers_work(vllm):
    """Nine hundred tokens would keep it busy for many seconds."""
    generator = EndpointGenerator(vllm.url)

    async def look_and_leave() -> tuple[float, float]:
        settings = GenerationSettings(max_new_tokens=900, temperature=1.0)
        async with aclosing(generator.stream_batch([ASK, ASK], settings)) as pieces:
            async for piece in pieces:
                if piece.text:
                    return await asyncio.to_thread(vllm.running), time.monotonic()

    busy, left = asyncio.run(look_and_leave())
    assert busy >= 1
    while vllm.running() and time.monotonic() < left + 5:
        pass  # its own count, a request each
    assert time.monotonic() < left + 5


def test_its_refusals_are_sentences(vllm):
    unknown = collect(EndpointGenerator(vllm.url, "no/such-model"), [ASK], GREEDY)[0]
    assert "does not know this model or address (404)" in unknown.error
    assert "`no/such-model` does not exist" in unknown.error
    long = [{"role": "user", "content": "word " * 1200}]
    answer = collect(EndpointGenerator(vllm.url), [Request(long), ASK], GREEDY)
    assert "does not accept this request (400)" in answer[0].error and "1024" in answer[0].error
    assert answer[1].text
    tgi = collect(EndpointGenerator(vllm.url, dialect="tgi"), [ASK], GREEDY)[0]
    assert "PRO_ENDPOINT" in tgi.error


def test_it_gives_probabilities_of_tokens(vllm):
    """What a judge by one token needs: the log-probabilities of the likeliest ones."""
    asked = {"messages": HI, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}  # fmt: skip
    choice = vllm.post("/v1/chat/completions", model=SMOLLM2, **asked).json()["choices"][0]
    [token] = choice["logprobs"]["content"]
    likeliest = token["top_logprobs"]
    assert len(likeliest) == 20
    assert token["logprob"] == max(one["logprob"] for one in likeliest) <= 0


def test_a_sentence_is_judged_there_as_it_is_here(vllm, smollm2):
    """The same log-probabilities of the first token, but for bf16."""
    spec = RewardModelSpec("brief", endpoint=vllm.url, judge="The answer is brief.")
    asked = question(spec, HI, "With warm water.")

    async def reply(judge):
        async with judge.session() as ask:
            return await ask(asked)

    there, here = (asyncio.run(reply(j)) for j in (EndpointJudge(vllm.url), LocalJudge(smollm2)))
    assert len(there.logprobs) > 10
    shared = set(there.logprobs) & set(here.logprobs)
    assert there.text in shared
    for token in shared:
        if here.logprobs[token] > -4:
            assert there.logprobs[token] == pytest.approx(here.logprobs[token], abs=0.4), token


# ---------------------------------------------------------------- reward models


TEXTS = [f"Answer {i}: " + WORDS * (1 + i % 4) for i in range(30) for WORDS in ("yes, ", "it is green ")]  # fmt: skip
"""Of 10 to 60 characters."""


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A random Qwen2 with five outputs, and a vLLM that serves it."""
    folder = tmp_path_factory.mktemp("rm") / "rm"
    tiny_reward_qwen(folder, 5)
    settings = ["--model", str(folder), "--served-model-name", "rm", "--runner", "pooling"]
    settings += ["--dtype", "float32", "--max-model-len", "256"]
    with serving(tmp_path_factory.mktemp("vllm"), *settings) as server:
        yield server, folder


def test_a_reward_model_scores_there_as_it_does_here(reward_model, tmp_path, monkeypatch):
    """Rank correlation at least .999. A panel here computes in bf16, which moves a score by at most a tenth of a
    deviation; in float32, as there, by at most a thousandth. The activation is off, and if it were on, that would be
    seen."""
    server, folder = reward_model
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = [
        RewardModelSpec(f"o{k}", str(folder), input_format="chat", logit=k, max_length=256)
        for k in range(5)
    ]
    there = [replace(spec, source="", endpoint=server.url) for spec in here]
    prompts = [f"Question {i % 7}?" for i in range(len(TEXTS))]
    local, hosted = (RewardPanel.build(specs, tmp_path).score(prompts, TEXTS) for specs in (here, there))  # fmt: skip
    network, tokenizer = load_reward_model(str(folder))
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = encode(tokenizer, turns, TEXTS, "chat", 256)
    with torch.inference_mode():
        exact = np.concatenate([network(**collate(tokenizer, [row])).logits for row in rows])
    for k in range(5):
        assert spearmanr(local[:, k], hosted[:, k]).statistic >= 0.999
        assert np.abs(local[:, k] - hosted[:, k]).max() <= 0.1 * exact[:, k].std()
        assert np.abs(exact[:, k] - hosted[:, k]).max() <= 0.001 * exact[:, k].std()
    model = HostedModel(there[0])
    probabilities = model.score(turns[:2], TEXTS[:2], activated=True)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-4)


def test_texts_are_classified_too_and_a_doubled_first_token_is_seen(reward_model, tmp_path):
    server, folder = reward_model
    spec = RewardModelSpec("o", endpoint=server.url, input_format="Q: {prompt} A: {completion}")
    scores = RewardPanel.build([spec], tmp_path).score(["Why?"] * 3, TEXTS[:3])[:, 0]
    local = replace(spec, endpoint="", source=str(folder), max_length=256)
    assert scores == pytest.approx(
        RewardPanel.build([local], tmp_path).score(["Why?"] * 3, TEXTS[:3])[:, 0], abs=0.2
    )
    model = HostedModel(spec)
    assert len(model.dialect.tokens(model.client, ("a b c d",))) == 2


def test_a_model_that_writes_is_no_reward_model(vllm, tmp_path):
    with pytest.raises(EndpointError):
        RewardPanel.build([RewardModelSpec("o", endpoint=vllm.url, input_format="chat")], tmp_path)


# ---------------------------------------------------------------- a policy that reads weights


def test_a_policy_that_reads_weights_has_them_in_its_prompt(vllm, smollm2, tmp_path):
    """Behind the server it reads what it reads in this process, and not what a stock model reads."""
    PolicyConfig(Condition("weights", ("helpful", "humor")), base=smollm2).save(tmp_path)
    environ = {"PRO_POLICY": str(tmp_path), "PRO_ENDPOINT_URL": vllm.url}
    there, here = generator_from_env(environ), LocalGenerator(smollm2)
    read = Request.weighted(HI, [0.35, 0.3, 0, 0.2, 0.15], NAMES)
    read = read.read_by(there.policy)
    assert read.messages[-1]["content"] == "How do I clean a cat? <helpful> 0.70 <humor> 0.30"
    with_weights, without = (here.generate([r], GREEDY)[0] for r in (read, ASK))
    assert with_weights[:24] != without[:24]  # they change this answer
    assert there.generate([read], GREEDY)[0][:24] == with_weights[:24]


# ---------------------------------------------------------------- a soup as a lattice


def weights(**given: float) -> list[float]:
    return [given.get(name, 0.0) for name in NAMES]


def test_each_candidate_is_written_by_the_nearest_mixture(vllm, lattice):
    soup = EndpointGenerator(vllm.url, policy=PolicyConfig.read(lattice))
    asked = {
        "harmless-100": weights(harmless=0.9, helpful=0.1),
        "helpful-050_truthful-050": weights(helpful=0.45, truthful=0.4, humor=0.15),
    }
    batch = [Request.weighted(HI, w, NAMES) for w in asked.values()]
    answers = collect(soup, batch, GREEDY)
    for name, answer in zip(asked, answers, strict=True):
        assert not answer.error
        assert alike(answer.text, LocalGenerator(str(lattice / name)).generate([ASK], GREEDY)[0])
    assert answers[0].text != answers[1].text
    assert "mixture harmless 1, the nearest of 15 that the server holds." in answers[0].notes[0]
    assert "mixture helpful .5, truthful .5, the nearest of 15" in answers[1].notes[0]


def test_a_mixture_that_comes_and_goes(vllm, lattice):
    """It is refused before it is there, written by once it is loaded, and missed when it is gone."""
    soup = EndpointGenerator(vllm.url, policy=PolicyConfig.read(lattice))
    funny = Request.weighted(HI, weights(humor=1), NAMES)

    def answer():
        return collect(soup, [funny], GREEDY)[0]

    assert "holds 14 of 15 mixtures" in soup.status()["detail"]
    assert f"lists 14 of the policy's 15 mixtures, and not {LATE}" in answer().error
    loaded = vllm.post("/v1/load_lora_adapter", lora_name=LATE, lora_path=str(lattice / LATE))
    assert loaded.is_success, loaded.text
    assert alike(answer().text, LocalGenerator(str(lattice / LATE)).generate([ASK], GREEDY)[0])
    assert "holds 15 of 15 mixtures" in soup.status()["detail"]
    assert vllm.post("/v1/unload_lora_adapter", lora_name=LATE).is_success
    assert "(404)" in answer().error  # vLLM itself says so
    assert f"and not {LATE}" in answer().error


def test_a_lora_of_a_run_is_loaded_found_again_and_refused(vllm, lattice, tmp_path):
    """A killed run that starts again meets a server that holds its LoRA, and refuses to load it twice."""
    here = LocalGenerator(str(lattice / LATE)).generate([ASK], GREEDY)[0]
    try:
        for _ in range(2):
            policy = LoraEndpoint(vllm.url)
            policy.use_lora(LATE, lattice / LATE)
            assert alike(policy.generate([ASK], GREEDY)[0], here)
        for name, folder in (("empty", tmp_path), (SMOLLM2, lattice / LATE)):
            with pytest.raises(GenerationError):
                policy.use_lora(name, folder)
            assert policy.model == LATE
    finally:
        vllm.post("/v1/unload_lora_adapter", lora_name=LATE)


def test_a_soup_is_loaded_under_the_weights_in_force(vllm, tmp_path):
    """It writes as the soup in this process does, and the server holds two LoRAs of it at most."""
    policy = ROOT / "checkpoints/demo/policy"
    soup, here = SoupEndpoint(vllm.url, policy, tmp_path, most=2), LocalGenerator(policy)

    def held() -> list[str]:
        names = [model["id"] for model in vllm.get("/v1/models").json()["data"]]
        return [name for name in names if "strength-" in name]

    for w in (weights(helpful=0.45, truthful=0.55), weights(humor=1), weights(harmless=1)):
        request = Request.weighted(HI, w, NAMES)
        [answer] = collect(soup, [request], GREEDY)
        assert not answer.error and alike(answer.text, here.generate([request], GREEDY)[0])
    assert len(held()) == 2 and not any("truthful" in name for name in held())


def test_one_mixture_is_a_model_like_any_other(vllm, lattice):
    """Fixed weights: PRO_ENDPOINT_MODEL names the LoRA."""
    one = EndpointGenerator(vllm.url, "harmless-100").generate([ASK], GREEDY)[0]
    assert alike(one, LocalGenerator(str(lattice / "harmless-100")).generate([ASK], GREEDY)[0])
