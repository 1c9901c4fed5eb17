"""A soup behind a vLLM server: which LoRAs it is told to hold, and what they are. Without a real server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import lora_policies, tiny_llama

from pro_core.generation import (
    GenerationSettings,
    Mixing,
    Request,
    collect,
    generator_from_env,
)
from pro_core.generation.soup import Mixer
from pro_core.generation.vllm_lora import SoupEndpoint, hundredths, write_soup
from pro_core.policies.soups import interpolate_policies
from pro_core.prompting.policy_config import load_language_model
from tests.servers.scripted import says, scripted

pytestmark = pytest.mark.slow

NAMES = ("helpful", "humor")
HI = [{"role": "user", "content": "tell me a joke"}]
SHORT = GenerationSettings(4)


@pytest.fixture(scope="module")
def soup(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("soups")
    policies = lora_policies(folder, tiny_llama(folder / "base"), NAMES)
    interpolate_policies(policies, folder / "soup")
    return folder / "soup"


class Vllm:
    """Holds LoRAs by name, as vLLM does, and says which one wrote."""

    def __init__(self):
        self.loras: dict[str, Path] = {}
        self.told: list[str] = []

    def __call__(self, body):
        name = body.get("lora_name")
        if "lora_path" in body:
            self.told.append(f"load {name}")
            self.loras[name] = Path(body["lora_path"])
            assert load_file(self.loras[name] / "adapter_model.safetensors")
            return 201, [{}]
        if name:
            self.told.append(f"unload {name}")
            del self.loras[name]
            return 201, [{}]
        if body["model"] not in ("m", *self.loras):
            return 404, [{"error": {"message": "no such model"}}]
        return 200, [says(body["model"], "stop"), "[DONE]"]


def asked(*weights: float, **mixing) -> Request:
    how = Mixing(**mixing) if mixing else None
    return Request(HI, dict(zip(NAMES, weights, strict=True)), mixing=how)


def test_a_lora_for_each_weighting_is_held_while_it_is_used(soup, tmp_path):
    server = Vllm()
    with scripted(server) as (url, _):
        generator = SoupEndpoint(url, soup, tmp_path / "loras", most=2)
        first, same, other = collect(
            generator, [asked(0.3, 0.7), asked(0.301, 0.699), asked(1, 0)], SHORT
        )
        assert first.text.startswith("helpful-030_humor-070_strength-100_") and not first.error
        assert same.text == first.text != other.text
        assert len(server.told) == 2
        [weak, none] = collect(
            generator, [asked(0.3, 0.7, strength=0.5), asked(0.3, 0.7, strength=0.0)], SHORT
        )
        assert "strength-050" in weak.text and none.text == "m"  # the base model
        # Two stay: the least recently used was unloaded, and its folder is gone.
        assert len(server.loras) == len(list((tmp_path / "loras").iterdir())) == 2
        assert [word.split()[0] for word in server.told] == ["load"] * 3 + ["unload"]
        collect(generator, [asked(0.3, 0.7, strength=0.5)], SHORT)
        assert len(server.told) == 4
        server.loras.clear()  # the server was started anew
        lost, again = (collect(generator, [asked(0.3, 0.7, strength=0.5)], SHORT) for _ in "ab")
        assert lost[0].failed and again[0].text == weak.text
        assert collect(generator, [asked(0.3, 0.7, method="mod")], SHORT)[0].failed
    for wrong in ({"soup": soup.parent / "helpful"}, {"mixing": Mixing("mod")}):
        with pytest.raises(ValueError, match="expected"):
            SoupEndpoint(url, **{"soup": soup, "folder": tmp_path} | wrong)
    environ = {"PRO_ENDPOINT_URL": url, "PRO_POLICY": str(soup), "PRO_STRENGTH": "0.5"}
    environ |= {"PRO_LORA_FOLDER": str(tmp_path)}
    generator = generator_from_env(environ)
    assert isinstance(generator, SoupEndpoint) and generator.policy.reads == "mixture"
    for missing in ("PRO_ENDPOINT_URL", "PRO_POLICY"):
        with pytest.raises(ValueError):
            generator_from_env({k: v for k, v in environ.items() if k != missing})


def test_the_lora_of_a_weighting_is_the_soup_mixed_by_it(soup, tmp_path):
    write_soup(soup, [0.25, 0.5], tmp_path / "both")
    write_soup(soup, [0.0, 2.0], tmp_path / "one")
    model, _, config = load_language_model(soup, dtype=torch.float32)
    mixer, ids = Mixer(model.eval(), config.ranks), torch.tensor([[5, 17, 60, 33]])
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name, scales in (("both", (0.25, 0.5)), ("one", (0.0, 2.0))):
        base = AutoModelForCausalLM.from_pretrained(soup.parent / "base", dtype=torch.float32)
        lora = PeftModel.from_pretrained(base, tmp_path / name).eval()
        with torch.inference_mode(), mixer.mixed([scales]):
            torch.testing.assert_close(lora(ids).logits, model(ids).logits, atol=0.01, rtol=0.01)
    A = load_file(tmp_path / "one/adapter_model.safetensors")
    assert {t.shape[0] for n, t in A.items() if ".lora_A." in n} == {4}  # of humor alone


def test_a_lora_that_writes_is_not_unloaded(soup, tmp_path):
    """With room for one LoRA, two answers under different weights at once each keep theirs."""
    server, both = Vllm(), threading.Barrier(2, timeout=20)

    def answer(body):
        if "messages" in body:
            both.wait()
        return server(body)

    with scripted(answer) as (url, _):
        generator = SoupEndpoint(url, soup, tmp_path / "loras", most=1, model="m")
        answers = collect(generator, [asked(1, 0), asked(0, 1)], SHORT)
        assert not any(one.error for one in answers)
        assert not any("unload" in word for word in server.told)


def test_a_visitor_who_leaves_while_a_lora_loads_does_not_pin_it(soup, tmp_path):
    server, loading, go_on = Vllm(), threading.Event(), threading.Event()

    def answer(body):
        if "lora_path" in body and not loading.is_set():
            loading.set()
            go_on.wait(20)
        return server(body)

    async def leave(generator):
        async with aclosing(generator.stream_batch([asked(1, 0)], SHORT)) as pieces:
            first = asyncio.ensure_future(anext(pieces))
            await asyncio.to_thread(loading.wait, 20)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first

    with scripted(answer) as (url, _):
        generator = SoupEndpoint(url, soup, tmp_path / "loras", most=1, model="m")
        asyncio.run(leave(generator))
        go_on.set()
        [other] = collect(generator, [asked(0, 1)], SHORT)
        assert not other.error and list(server.loras) == [other.text]
        assert [word.split()[0] for word in server.told] == ["load", "load", "unload"]


def test_what_earlier_runs_and_failed_loads_left_does_not_stay(soup, tmp_path):
    server, folder = Vllm(), tmp_path / "loras"
    with scripted(server, server.loras) as (url, _):

        def started() -> SoupEndpoint:
            return SoupEndpoint(url, soup, folder, most=1, model="m")

        [first] = collect(started(), [asked(1, 0)], SHORT)
        [same] = collect(started(), [asked(1, 0)], SHORT)
        assert first.text == same.text and len(server.told) == 1  # taken over
        made_of = first.text.rsplit("_", 1)[1]
        (folder / f"humor-050_{made_of}").mkdir()  # of no LoRA that the server holds
        server.loras[f"humor-060_{made_of}"] = folder / "gone"
        [other] = collect(started(), [asked(0, 1)], SHORT)
        assert list(server.loras) == [one.name for one in folder.iterdir()] == [other.text]
    with scripted(lambda body: (400, [{"error": {"message": "no"}}])) as (url, _):
        assert collect(started(), [asked(0.5, 0.5)], SHORT)[0].failed
        assert not list(folder.glob("helpful-050*"))


def test_hundredths_sum_to_one():
    assert hundredths([1 / 3] * 3) == [34, 33, 33]
    assert hundredths([0.145, 0.145, 0.71]) == [15, 14, 71]
    assert hundredths([0.29, 0.71]) == [29, 71]
    assert sum(hundredths([1 / 7] * 7)) == 100
