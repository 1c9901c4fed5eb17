"""Rewarded Soups: the soup is the average of the policies' parameters, exactly, saved or mixed as it writes."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import lora_policies, tiny_llama
from transformers import AutoModelForCausalLM

from pro_core.generation import (
    EndpointGenerator,
    GenerationSettings,
    LocalGenerator,
    Request,
    RequestError,
    collect,
)
from pro_core.generation.soup import Mixer
from pro_core.policies.soup_runs import SoupRecipe, make_soups
from pro_core.policies.soups import interpolate_lattice, interpolate_policies, lattice
from pro_core.prompting.policy_config import PolicyConfig, load_language_model
from pro_core.prompting.templates import Condition
from pro_core.runs.recipes import ConfigError
from pro_core.system.storage import StorageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("helpful", "harmless", "humor")
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Three LoRA policies with parameters large enough to matter, of different ranks, scales and modules."""
    folder = tmp_path_factory.mktemp("policies")
    base = tiny_llama(folder / "llama")
    kinds = (
        {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
        {"r": 3, "lora_alpha": 3, "target_modules": ATTENTION},
        {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
    )
    return base, lora_policies(folder, base, NAMES, kinds)


@pytest.fixture(scope="module")
def deltas(policies):
    """Each policy's change of every parameter, as PEFT itself merges it."""
    base, folders = policies
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    found = []
    for folder in folders.values():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
        found.append({name: merged[name] - plain[name] for name in plain})
    return found


def averaged(base: str, deltas, weights):
    """The base plus the weighted sum of the dense changes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for w, delta in zip(weights, deltas, strict=True):
                parameter += w * delta[name]
    return model.eval()


IDS = torch.tensor([[5, 17, 60, 33, 90], [8, 9, 10, 11, 12]])


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def mixing(policies, tmp_path_factory):
    """A soup that is mixed as it writes: its folder, and the model in fp32 with its mixer."""
    folder = tmp_path_factory.mktemp("soups") / "mixing"
    config = interpolate_policies(policies[1], folder)
    assert config.ranks == {"helpful": 2, "harmless": 3, "humor": 4}
    model, _, read = load_language_model(folder, dtype=torch.float32)
    assert read == config
    return folder, model.eval(), Mixer(model, config.ranks)


simplex = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1)


@settings(max_examples=15, deadline=None)
@given(simplex, simplex)
def test_the_soup_is_the_average_of_the_dense_changes(policies, deltas, mixing, one, two):
    """Saved under fixed weights and mixed as it writes, where rows of one batch have different weights."""
    base, folders = policies
    folder, model, mixer = mixing
    one, two = ([w / sum(v) for w in v] for v in (one, two))
    expected = torch.stack(
        [
            logits(averaged(base, deltas, w), ids[None])[0]
            for w, ids in zip((one, two), IDS, strict=True)
        ]
    )
    with mixer.mixed([one, two]):
        torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=1e-4)
    saved = folder.parent / "saved"
    assert not interpolate_policies(folders, saved, one).ranks
    fixed, _, _ = load_language_model(saved, dtype=torch.float32)
    torch.testing.assert_close(logits(fixed.eval())[0], expected[0], atol=2e-4, rtol=1e-4)


def test_pefts_linear_average_is_something_else(policies, deltas, tmp_path):
    """Why we do not use it: it averages A and B apart. (-B)(-A) is B A, but the average of A and -A is nothing."""
    base, folders = policies
    turned = tmp_path / "turned"
    shutil.copytree(folders["helpful"], turned)
    tensors = load_file(turned / "adapter_model.safetensors")
    save_file({name: -t for name, t in tensors.items()}, turned / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folders["helpful"], adapter_name="a")
    model.load_adapter(turned, adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "mean", combination_type="linear")
    model.set_adapter("mean")
    plain, helpful = (logits(averaged(base, deltas, [w, 0, 0])) for w in (0, 1))
    torch.testing.assert_close(logits(model), plain, atol=1e-4, rtol=1e-4)
    interpolate_policies({"a": folders["helpful"], "b": turned}, tmp_path / "soup", [0.5, 0.5])
    soup, _, _ = load_language_model(tmp_path / "soup", dtype=torch.float32)
    torch.testing.assert_close(logits(soup.eval()), helpful, atol=1e-4, rtol=1e-4)
    assert (plain - helpful).abs().max() > 0.1


def test_the_generator_writes_each_conversation_under_its_own_weights(policies, mixing, tmp_path):
    folder, _, _ = mixing
    generator = LocalGenerator(folder, device="cpu")
    messages = [{"role": "user", "content": "tell me a joke"}]
    rows = [[1, 0, 0], [0, 0, 1], [0.2, 0.3, 0.5], [1, 0, 0]]
    batch = [Request.weighted(messages, weights, NAMES) for weights in rows]
    greedy = GenerationSettings(12, temperature=0)
    texts = [written.text for written in collect(generator, batch, greedy)]
    assert texts[0] == texts[3] and texts[0] != texts[1]
    # The prompt is what it was: weights stand beside the text, not in it.
    assert batch[0].read_by(generator.policy).messages == messages
    for weights, text in zip(rows, texts, strict=True):
        interpolate_policies(policies[1], tmp_path / "fixed", weights)
        alone = LocalGenerator(tmp_path / "fixed", device="cpu")
        # bf16 rounds B before or after it is weighted: texts of a random model agree in their beginning.
        [fixed] = collect(alone, [Request(messages)], greedy)
        assert fixed.text[:3] == text[:3]
    # Where a prompt and its weights stand there several times, as in best-of-N, they are read once.
    twice = [request for request in batch[:3] for _ in range(2)]
    shared = [written.text[:3] for written in collect(generator, twice, greedy)]
    assert shared == [text[:3] for text in texts[:3] for _ in range(2)]
    # The app's objectives may be more than the soup's, and in another order.
    more = Request.weighted(
        messages, [0.5, 0, 0, 0.5], ("truthful", "humor", "harmless", "helpful")
    )
    mixed = more.read_by(generator.policy)
    assert mixed.weights == {"helpful": 1, "harmless": 0, "humor": 0}
    assert mixed.read_by(generator.policy) == mixed
    # Never silently something else.
    for wrong in (Request(messages), Request.weighted(messages, [0.5, 0.5], NAMES[:2])):
        [refused, right] = collect(generator, [wrong, batch[0]], greedy)
        assert refused.error and not refused.text and right.text[:3] == texts[0][:3]
        with pytest.raises(RequestError) as said:
            wrong.read_by(generator.policy)
        assert said.value.message == refused.error
    with pytest.raises(ValueError, match="a server cannot do"):
        EndpointGenerator("http://127.0.0.1:9", policy=PolicyConfig.read(folder))


def test_what_cannot_be_averaged_is_refused(policies, mixing, tmp_path):
    base, folders = policies
    other = tmp_path / "other"
    interpolate_policies(folders, other, [1, 0, 0])
    PolicyConfig(Condition("none", NAMES), "elsewhere").save(other)
    with pytest.raises(StorageError, match="got a LoRA of 'elsewhere', expected one of"):
        interpolate_policies({"helpful": folders["helpful"], "humor": other}, tmp_path / "soup")
    with pytest.raises(StorageError, match="is a soup itself"):
        interpolate_policies({"a": mixing[0], "b": folders["humor"]}, tmp_path / "soup")
    with pytest.raises(StorageError, match="no LoRA policy there"):
        interpolate_policies({"a": base, "b": folders["humor"]}, tmp_path / "soup")
    with pytest.raises(ValueError, match="sum to 0.5"):
        interpolate_policies(folders, tmp_path / "soup", [0.5, 0, 0])
    for key, value in (("use_dora", True), ("rank_pattern", {"q_proj": 3})):
        interpolate_policies(folders, other, [1, 0, 0])
        config = json.loads((other / "adapter_config.json").read_text())
        (other / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(StorageError, match=f"got .*{key}.*, expected a plain LoRA"):
            interpolate_policies({"a": other, "b": other}, tmp_path / "soup")
    interpolate_policies(folders, other, [1, 0, 0])
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.ones(2)}, other / "adapter_model.safetensors")
    with pytest.raises(StorageError, match=r"got \['lm_head.weight'\] beside"):
        interpolate_policies({"a": other, "b": other}, tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
    with pytest.raises(StorageError, match="something else than a policy is there"):
        interpolate_policies(folders, Path(folders["helpful"]).parent)  # it holds what is read
    with pytest.raises(StorageError, match="take the place of a policy that it is made of"):
        interpolate_policies(folders, folders["helpful"])


# ---------------------------------------------------------------- lattices, for servers


@given(st.integers(2, 5), st.integers(1, 4))
def test_a_lattice_holds_every_weighting_once(K, steps):
    names = ["helpful", "harmless", "humor", "truthful", "informative"][:K]
    points = lattice(names, steps)
    assert len(points) == math.comb(steps + K - 1, K - 1)
    assert len({tuple(weights) for weights in points.values()}) == len(points)
    for name, weights in points.items():
        assert sum(weights) == pytest.approx(1)
        assert all((weight * steps) % 1 == pytest.approx(0) for weight in weights)
        said = dict(part.rsplit("-", 1) for part in name.split("_"))
        assert {n: round(100 * w) for n, w in zip(names, weights, strict=True) if w} == {
            n: int(hundredths) for n, hundredths in said.items()
        }


def test_a_mixture_is_named_by_its_weights():
    assert list(lattice(["helpful", "humor"], 2)) == [
        "helpful-100",
        "helpful-050_humor-050",
        "humor-100",
    ]
    for names, steps, said in (
        (NAMES, 0, "a whole number from 1"),
        (NAMES, True, "a whole number from 1"),
        (NAMES, 2.5, "a whole number from 1"),
        (NAMES[:2], 150, "a whole number from 1 to 100"),
        (NAMES[:1], 2, "at least two"),
        ([f"o{i}" for i in range(9)], 9, "more than 200 mixtures"),
    ):
        with pytest.raises(ValueError, match=said):
            lattice(names, steps)


def test_every_mixture_of_a_lattice_is_the_average(policies, deltas, mixing, tmp_path):
    """Made of the policies, and of the soup that is mixed as it writes."""
    base, folders = policies
    config = interpolate_lattice(folders, tmp_path / "lattice", 2)
    assert PolicyConfig.read(tmp_path / "lattice") == config
    assert config.reads == "mixture" and len(config.mixtures) == 6
    again = interpolate_lattice(mixing[0], tmp_path / "again", 2)
    assert again.mixtures == config.mixtures
    for name, weights in config.mixtures.items():
        expected = logits(averaged(base, deltas, weights))
        for folder in (tmp_path / "lattice" / name, tmp_path / "again" / name):
            model, _, own = load_language_model(folder, dtype=torch.float32)
            assert own.training["weights"] == weights
            # Stored in bf16, where the products w s B are rounded; mixtures are some of 0.5 apart.
            torch.testing.assert_close(logits(model.eval()), expected, atol=0.01, rtol=0.01)
    alone = json.loads((tmp_path / "lattice/humor-100/adapter_config.json").read_text())
    assert alone["r"] == 4  # only the policies that have a weight in it


def test_a_lattice_is_refused_where_it_does_not_belong(policies, mixing, tmp_path):
    _, folders = policies
    interpolate_lattice(folders, tmp_path / "lattice", 1)
    with pytest.raises(StorageError, match="a lattice of 3 mixtures for a server"):
        load_language_model(tmp_path / "lattice")
    with pytest.raises(StorageError, match="take the place of what it is made of"):
        interpolate_lattice(mixing[0], mixing[0], 1)
    with pytest.raises(StorageError, match="no soup that is mixed as it writes"):
        interpolate_lattice(folders["humor"], tmp_path / "x", 1)
    file = tmp_path / "lattice/pro_policy.json"
    for wrong in ({"humor-100": [0.2, 0.2, 0.2]}, {"humor-100": [1]}, [1]):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mixtures": wrong}))
        with pytest.raises(StorageError, match=r"pro_policy\.json: "):
            PolicyConfig.read(tmp_path / "lattice")


def test_the_script_says_how_servers_hold_a_lattice(policies, mixing, tmp_path, capsys):
    recipe, folder = tmp_path / "lattice.yaml", tmp_path / "a lattice"
    content = {"policies": str(mixing[0]), "lattices": {str(folder): 2}}
    recipe.write_text(yaml.safe_dump(content))
    make_soups(SoupRecipe.read(recipe))
    first, vllm, sglang, tgi, app = capsys.readouterr().out.splitlines()
    assert "6 mixtures in steps of 1/2, LoRAs of rank 2 to 7" in first
    words = shlex.split(vllm)
    assert words[:3] == ["vllm", "serve", policies[0]]
    assert words[words.index("--max-lora-rank") + 1] == "8"
    held = dict(word.split("=", 1) for word in words[words.index("--lora-modules") + 1 :])
    assert list(held) == list(PolicyConfig.read(folder).mixtures)
    assert all(Path(place, "adapter_model.safetensors").is_file() for place in held.values())
    assert shlex.split(sglang)[-6:] == words[-6:]
    adapters = ",".join(f"{name}=/lattice/{name}" for name in held)
    words = shlex.split(tgi)
    assert f"LORA_ADAPTERS={adapters}" in words and f"{folder}:/lattice" in words
    assert f"PRO_POLICY='{folder}'" in app
    for wrong, fields in (
        ({"soups": {"x": None}}, ("policies",)),
        ({"lattices": {}}, ("soups", "lattices")),
        ({"lattices": {"x": 0}}, ("lattices.x",)),
        ({"seeds": [0, 1]}, ("seeds",)),
    ):
        recipe.write_text(yaml.safe_dump(content | wrong))
        with pytest.raises(ConfigError) as refused:
            make_soups(SoupRecipe.read(recipe))
        assert refused.value.fields == fields


def test_a_recipe_makes_soups_for_each_seed(policies, tmp_path, capsys):
    soups = {str(tmp_path / "fixed{seed}"): {"helpful": 1.0, "harmless": 0.0, "humor": 0.0}}
    soups[str(tmp_path / "mixing{seed}")] = None
    recipe = tmp_path / "soups.yaml"

    def run(**changes):
        content = {"policies": policies[1], "soups": soups, "seeds": [3]} | changes
        recipe.write_text(yaml.safe_dump(content, sort_keys=False))
        make_soups(SoupRecipe.read(recipe))

    run()
    assert "mixed as it writes" in capsys.readouterr().out
    made = PolicyConfig.read(tmp_path / "fixed3")
    assert made and made.training["weights"] == [1, 0, 0] and not made.ranks
    assert PolicyConfig.read(tmp_path / "mixing3").ranks
    for changes, fields in (
        ({"seeds": [0, 1]}, ("seeds",)),
        ({"policies": {"helpful": "x"}}, ("policies",)),
        ({"soups": {}}, ("soups", "lattices")),
        ({"soups": {str(tmp_path / "x"): {"helpful": 1.0}}}, ("soups",)),
    ):
        with pytest.raises(ConfigError) as refused:
            run(**changes)
        assert refused.value.fields == fields
    with pytest.raises(StorageError):
        run(policies={"a": "/absent", "b": "/absent"})


@pytest.mark.parametrize("name", ["soups_small", "gpu/soups", "demo_soup", "demo_lattice"])
def test_the_recipes_that_ship_are_read(name):
    assert SoupRecipe.read(ROOT / "recipes" / f"{name}.yaml").seeds
