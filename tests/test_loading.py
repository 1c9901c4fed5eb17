"""What holds for every model once it is loaded: one padding token, a greatest length, scores that do not depend on
their neighbours; and none of its code was run."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import (
    ROOT,
    tiny_bart,
    tiny_classifier,
    tiny_deberta,
    tiny_distilbert,
    tiny_encoder,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen,
    tokenizer,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    FNetConfig,
    FNetModel,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from pro_core.adapter.encoder import PromptEncoder
from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.schema import PreferencePair
from pro_core.prompting.policy_config import load_language_model
from pro_core.rewards.batching import check_scoring, encode
from pro_core.rewards.bradley_terry import tokenize_pairs
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.classifier_training import RatedResponses, tokenize_rated
from pro_core.rewards.length import share_cut
from pro_core.rewards.levels import IntensityScale
from pro_core.rewards.models import new_reward_model, save_reward_model
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.storage import StorageError, local_folder

QUESTION = "What is the capital of France?"
ANSWERS = ["Paris.", "hello there! it rained on Sunday and we stayed in. " * 3, "why not?", ""]
ENDS_IN_EOS = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture
def exact(monkeypatch):
    """Scoring in fp32, so that only what is computed counts, not how bf16 rounds it."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: nullcontext())


def change(file: Path, **changes) -> None:
    """Set keys of a JSON file; None takes one out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def loud(model) -> None:
    """Random parameters large enough that scores differ by far more than they are rounded."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)


def llama_reward(folder: Path, template: str | None = None, **config) -> str:
    """A random Llama with a reward head behind :func:`tiny_llama`'s tokenizer."""
    tiny_llama(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    tok.chat_template = template or tok.chat_template
    sizes = {"vocab_size": len(tok), "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
    sizes |= {"max_position_embeddings": 256, "num_labels": 1, "bos_token_id": None}
    model = LlamaForSequenceClassification(LlamaConfig(**(sizes | config)))
    loud(model)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def one(source: str, input_format: str = "chat", max_length: int = 200, **settings) -> RewardPanel:
    spec = RewardModelSpec("good", source, None, input_format, max_length=max_length, **settings)
    return RewardPanel.build([spec], ".")


def scores(panel: RewardPanel, answers=ANSWERS) -> np.ndarray:
    """Each answer's score in one batch, after a look that it is its score alone."""
    together = panel.score([QUESTION] * len(answers), answers)[:, 0]
    alone = [panel.score([QUESTION], [answer])[0, 0] for answer in answers]
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=1e-4)
    assert np.ptp(together) > 0.05
    return together


# ---------------------------------------------------------------- one padding token


@pytest.mark.parametrize("of_tokenizer", ["<|end|>", None])
@pytest.mark.parametrize("of_config", [0, None, 1, 5, -1])
def test_a_score_is_read_at_the_last_token_whatever_the_pad(
    tmp_path, exact, of_config, of_tokenizer
):
    """Config and tokenizer name the same pad, another one (a mark, a word), none, or -1."""
    source = llama_reward(tmp_path / "rm", pad_token_id=of_config)
    change(tmp_path / "rm" / "tokenizer_config.json", pad_token=of_tokenizer)
    panel = one(source)
    found = scores(panel)
    model, tok = panel.models[source]
    assert model.config.pad_token_id == tok.pad_token_id
    for answer, score in zip(ANSWERS, found, strict=True):
        [row] = encode(tok, [[{"role": "user", "content": QUESTION}]], [answer], "chat", 200)
        with torch.no_grad():
            states = model.model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state
            expected = model.score(states[0, -1]).item()
        assert score == pytest.approx(expected, abs=1e-4), answer


@pytest.mark.parametrize("of_config", [None, 2, 0])
def test_a_score_is_the_same_in_any_batch_if_the_end_token_is_the_pad(tmp_path, exact, of_config):
    """Then the last token that is none counts, alone too: as TRL trains such models."""
    source = llama_reward(tmp_path / "rm", ENDS_IN_EOS, pad_token_id=of_config)
    change(tmp_path / "rm" / "tokenizer_config.json", pad_token="<|im_end|>")
    scores(one(source))


@pytest.mark.parametrize(
    "build", [tiny_gpt2, tiny_distilbert, tiny_bart, tiny_deberta, tiny_classifier]
)
@pytest.mark.parametrize("named", ["as they are", "another", "none"])
def test_every_architecture_scores_alone_as_in_a_batch(tmp_path, exact, build, named):
    source = build(tmp_path / "rm", 1)
    if named == "another":
        change(tmp_path / "rm" / "config.json", pad_token_id=7)
    elif named == "none":
        (tmp_path / "rm" / "special_tokens_map.json").unlink(missing_ok=True)
        change(tmp_path / "rm" / "tokenizer_config.json", pad_token=None)
    scores(one(source, "pair"))


def test_empty_texts_and_texts_of_pads_are_scored(tmp_path, exact):
    source = tiny_gpt2(tmp_path / "rm")  # its tokenizer adds nothing to a text
    answers = ["", " ", "<|endoftext|>", "Paris.<|endoftext|><|endoftext|>", "we stayed in " * 5]
    scores(one(source, "{completion}"), answers)


def test_a_model_of_texts_and_images_pads_by_its_nested_config(tmp_path, exact):
    """Its head asks the text's config, and the image's table of positions says nothing about texts."""
    tiny_llama(tmp_path)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    text = sizes | {"vocab_size": len(tok), "num_hidden_layers": 2, "head_dim": 16}
    text |= {"num_key_value_heads": 1, "max_position_embeddings": 300, "pad_token_id": 5}
    image = sizes | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    model = Gemma3ForSequenceClassification(
        Gemma3Config(text_config=text, vision_config=image, num_labels=1, mm_tokens_per_image=4)
    )
    loud(model)
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    panel = one(str(tmp_path), max_length=300)
    scores(panel)
    assert panel.models[str(tmp_path)][0].config.get_text_config().pad_token_id == tok.pad_token_id


def test_without_a_pad_or_an_end_the_model_is_refused_by_name(tmp_path):
    source = llama_reward(tmp_path / "rm", pad_token_id=None)
    change(tmp_path / "rm" / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(StorageError, match="'.*/rm': neither .* set pad_token in") as error:
        one(source)
    assert "\n" not in str(error.value)


def test_a_pad_without_an_embedding_is_replaced(tmp_path, exact):
    """People add a [PAD] to the tokenizer and forget to resize the embeddings."""
    source = llama_reward(tmp_path / "rm", pad_token_id=None)
    tok = AutoTokenizer.from_pretrained(source)
    tok.add_special_tokens({"pad_token": "[PAD]"})
    tok.save_pretrained(source)
    panel = one(source)
    scores(panel)
    assert panel.models[source][1].pad_token == "<|im_end|>"


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    source = llama_reward(tmp_path / "rm")
    tokenizer().save_pretrained(source)  # BERT's, of 30,522 tokens
    with pytest.raises(StorageError, match="they belong to different models"):
        one(source, "pair")


# ---------------------------------------------------------------- a score and its neighbours


class Average(BertForSequenceClassification):
    """A pooling with the usual mistake: a mean over the padding too."""

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        logits = self.classifier(states.mean(dim=1))
        return type("Output", (), {"logits": logits})()


def test_pooling_over_the_padding_is_detected(tmp_path):
    source = tiny_classifier(tmp_path / "rm", 1)
    model, tok = load_reward_model(source)
    check_scoring(model, tok, "pair", 128)
    model.__class__ = Average
    with pytest.raises(ValueError, match="reads the padding"):
        check_scoring(model, tok, "pair", 128)


def xlnet(folder: Path) -> str:
    """XLNet's classifier reads the last position, padded or not: it wants its padding on the left."""
    tiny_llama(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    config = XLNetConfig(
        vocab_size=len(tok), d_model=32, n_layer=2, n_head=2, d_inner=64, num_labels=1
    )
    model = XLNetForSequenceClassification(config)
    loud(model)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def test_a_panel_names_the_model_that_reads_the_padding_and_the_objectives(tmp_path):
    good, bad = tiny_classifier(tmp_path / "good", 1), xlnet(tmp_path / "bad")
    specs = [RewardModelSpec("helpful", good, max_length=64)]
    specs += [RewardModelSpec(name, bad, max_length=64) for name in ("humor", "brief")]
    with pytest.raises(StorageError, match=r"^humor, brief: .*/bad: .* reads the padding"):
        RewardPanel.build(specs, tmp_path)


def test_a_classifier_that_reads_the_padding_is_refused_at_load(tmp_path):
    scale = IntensityScale("helpful", 0, 1)
    folder = tmp_path / "own"
    model, tok = load_reward_model(xlnet(folder / "model"))
    RewardClassifier((scale,), model, tok, folder, "joint", "pair", 64).save_pretrained(folder)
    with pytest.raises(StorageError, match="model: .* reads the padding"):
        RewardClassifier.from_pretrained(folder)


def test_an_encoder_that_reads_the_padding_is_refused_at_load(tmp_path):
    tiny_llama(tmp_path)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    model = FNetModel(FNetConfig(vocab_size=len(tok), **sizes))  # no attention, so no mask
    loud(model)
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    with pytest.raises(StorageError, match="adapter's encoder .* reads the padding"):
        PromptEncoder(str(tmp_path))


def test_an_encoder_without_a_pad_that_pads_on_the_left_gives_the_same_weights(tmp_path):
    """GPT-2 counts positions from the left; its tokenizer names no pad."""
    source = tiny_gpt2(tmp_path / "gpt2")
    change(tmp_path / "gpt2" / "tokenizer_config.json", padding_side="left")
    torch.manual_seed(0)
    adapter = PreferenceAdapter(PromptEncoder(source), ("a", "b"), hidden=8).eval()
    prompts = ["Hi", QUESTION * 4]
    alone = np.vstack([adapter.predict([p]) for p in prompts])
    np.testing.assert_allclose(adapter.predict(prompts), alone, atol=1e-5)


# ---------------------------------------------------------------- how much a model can read


def tiny_roberta(folder: Path) -> str:
    """RoBERTa gives out positions from its pad's number on: of 66 it can use 64."""
    source = tiny_bart(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tok), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=1, num_labels=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config)
    loud(model)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    change(folder / "tokenizer_config.json", tokenizer_class="RobertaTokenizer")
    return source


LONG = "hello there what is the capital of France? tell me a joke, why not? " * 300


@pytest.mark.parametrize(
    ("build", "positions"),
    [
        (lambda folder: tiny_distilbert(folder, 1), 512),
        (lambda folder: tiny_classifier(folder, 1), 512),
        (tiny_roberta, 64),
        (tiny_gpt2, 1024),
        (lambda folder: tiny_bart(folder, 1), 1026),
        (llama_reward, 256),
    ],
    ids=["distilbert", "bert", "roberta", "gpt2", "bart", "llama"],
)
def test_a_model_reads_up_to_its_positions_and_is_refused_beyond(tmp_path, build, positions):
    source = build(tmp_path / "rm")
    panel = one(source, "pair", positions)
    [row] = encode(
        panel.models[source][1], [[{"role": "user", "content": LONG}]], [LONG], "pair", positions
    )
    assert positions - 4 <= len(row["input_ids"]) <= positions
    assert np.isfinite(panel.score([LONG], [LONG])).all()
    said = f"got max_length {positions + 1}, expected at most the {positions} tokens"
    with pytest.raises(StorageError, match=said):
        one(source, "pair", positions + 1)


def test_relative_positions_have_no_end(tmp_path):
    panel = one(tiny_deberta(tmp_path / "rm"), "pair", 1500)
    assert np.isfinite(panel.score([LONG], [LONG])).all()


def test_a_recipe_that_asks_for_more_is_refused_before_training(tmp_path):
    _, tok = new_reward_model(tiny_encoder(tmp_path / "base"), 1)
    none = RatedResponses([], [], [], np.zeros((0, 1), int), np.zeros((0, 1), int), {}, [], [])
    pair = PreferencePair([{"role": "user", "content": QUESTION}], "Paris.", "Rome.", "helpful")
    with pytest.raises(StorageError, match="got max_length 1024, expected at most the 512 tokens"):
        tokenize_pairs(tok, [pair], ["helpful"], [1], 1, 1024, 0)
    with pytest.raises(StorageError, match="got max_length 1024, expected at most the 512 tokens"):
        tokenize_rated(tok, none, 1, 1024, 0)


def test_texts_that_are_cut_are_counted_at_the_greatest_length_too(tmp_path):
    panel = one(tiny_classifier(tmp_path / "rm", 1), "pair", 512)
    user = [{"role": "user", "content": QUESTION}]
    pairs = [PreferencePair(user, good, "Rome.", "good") for good in ("Paris.", LONG)]
    assert share_cut(panel, pairs) == 0.25


def test_an_encoder_of_fewer_positions_than_the_adapter_reads_is_refused(tmp_path):
    encoder = tiny_encoder(tmp_path)
    with pytest.raises(StorageError, match="got max_length 513, expected at most the 512 tokens"):
        PromptEncoder(encoder, max_length=513)
    adapter = PreferenceAdapter(PromptEncoder(encoder, max_length=512), ("a", "b"), hidden=8)
    assert np.isfinite(adapter.predict([LONG])).all()


# ---------------------------------------------------------------- what PEFT saved


def peft_reward(folder: Path, base: str, texts=("x",)) -> list[float]:
    """Save a LoRA with a reward head, as TRL's trainer does; the logits of texts by PEFT itself."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, ignore_mismatched_sizes=True
    )
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    model = get_peft_model(model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tok = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        return [model(**tok(text, return_tensors="pt")).logits.item() for text in texts]


@pytest.mark.parametrize("build", [tiny_qwen, lambda folder: tiny_classifier(folder, 2)])
def test_a_peft_adapter_scores_as_peft_does(tmp_path, exact, build):
    """On a language model and on another classifier, whose pooler it keeps and whose head it does not."""
    texts = ["Paris.", "we stayed in. " * 9, "why not?"]
    expected = peft_reward(tmp_path / "lora", build(tmp_path / "base"), texts)
    found = one(str(tmp_path / "lora"), "{completion}").score([[]] * 3, [t.strip() for t in texts])
    np.testing.assert_allclose(found[::2, 0], expected[::2], rtol=1e-3, atol=1e-3)
    assert np.ptp(expected) > 0.1
    shutil.move(tmp_path / "base", tmp_path / "lora" / "base")
    change(tmp_path / "lora" / "adapter_config.json", base_model_name_or_path="base")
    again = one(str(tmp_path / "lora"), "{completion}").score([[]], ["Paris."])
    np.testing.assert_allclose(again, found[:1], rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("another task", "has the task 'CAUSAL_LM'"),
        ("no head", "adapter_model.safetensors has no head"),
        ("a part", r"does not fit .*layers.0.*lora_A"),
        ("no base", "its base '.*base'"),
        ("pickled", "save_pretrained"),
        ("random pooler", "neither .* nor its base .* has bert.pooler"),
    ],
)
def test_an_incomplete_adapter_is_refused(tmp_path, case, said):
    base, lora = tiny_qwen(tmp_path / "base"), tmp_path / "lora"
    if case == "random pooler":  # a language model of BERT's has none, and PEFT does not save it
        base = tiny_classifier(tmp_path / "bert", 1)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        model.bert.pooler = None
        model.save_pretrained(base)
    peft_reward(lora, base)
    file = lora / "adapter_model.safetensors"
    if case == "another task":
        change(lora / "adapter_config.json", task_type="CAUSAL_LM")
    elif case in ("no head", "a part"):
        gone = "score" if case == "no head" else "layers.0"
        save_file({k: v for k, v in load_file(file).items() if gone not in k}, file)
    elif case == "no base":
        shutil.rmtree(base)
    elif case == "pickled":
        file.rename(lora / "adapter_model.bin")
    with pytest.raises(StorageError, match=said) as error:
        load_reward_model(str(lora))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["lora", "heads"])
def test_parameters_that_the_base_model_lacks_are_saved(tmp_path, exact, method):
    """The pooler of a BERT that was a language model: random, and another one with every seed."""
    base = tiny_classifier(tmp_path / "bert", 1)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model.bert.pooler = model.classifier = None
    model.save_pretrained(base)
    recipe = {"base": base, "num_labels": 1, "method": method, "upper_layers": 1, "lora": None}
    recipe |= {"pooling": "own"}
    model, tok = new_reward_model(**recipe, seed=7)
    save_reward_model(model, tmp_path / "saved", recipe)
    again, _ = load_reward_model(str(tmp_path / "saved"))
    inputs = tok(ANSWERS, return_tensors="pt", padding=True)
    with torch.no_grad():
        found, expected = again(**inputs).logits, model.eval()(**inputs).logits
    np.testing.assert_allclose(found, expected, atol=0.01 * np.ptp(expected.numpy()))


# ---------------------------------------------------------------- no code, no pickles

OURS = {"RewardPanel", "PreferenceAdapter", "RewardClassifier"}
LOADS = """
import sys
from pro_core.adapter.encoder import PromptEncoder
from pro_core.prompting.policy_config import load_language_model
from pro_core.rewards.models import new_reward_model
from pro_core.rewards.panel import RewardPanel
where = sys.argv[1]
for load in (
    lambda: RewardPanel.from_pretrained(where + "/panel"),
    lambda: new_reward_model(where + "/base", 1),
    lambda: PromptEncoder(where + "/base"),
    lambda: load_language_model(where + "/base"),
):
    try:
        load()
        print("loaded")
    except ValueError as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""


@pytest.mark.slow
def test_a_models_own_code_never_runs(tmp_path):
    """transformers asks on the terminal whether to run it; here the answer is always yes."""
    base, marker = tmp_path / "base", tmp_path / "marker"
    tiny_encoder(base)
    names = (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    )
    auto_map = dict.fromkeys(names, "own.Own")
    change(base / "config.json", model_type="own-model", auto_map=auto_map)
    change(
        base / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.Own", None]},
    )
    (base / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    panel = {"format": "pro-panel", "objective_names": ["helpful"]}
    panel["models"] = [{"name": "helpful", "source": str(base)}]
    (tmp_path / "panel").mkdir()
    (tmp_path / "panel" / "panel.json").write_text(json.dumps(panel))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path)],
        input="y\n" * 50, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert not marker.exists(), done.stdout
    assert len(lines) == 4 and "Do you wish" not in done.stdout + done.stderr, (
        done.stdout + done.stderr
    )
    assert all("StorageError" in line for line in lines[:3]), lines
    assert all("custom code" in line for line in lines), lines


def test_a_checkpoint_of_pickles_only_is_refused_and_says_how_to_convert_it(tmp_path):
    def pickled(folder: str) -> str:
        (Path(folder) / "model.safetensors").unlink()
        torch.save({}, Path(folder) / "pytorch_model.bin")
        return folder

    source = pickled(tiny_classifier(tmp_path / "rm", 1))
    encoder = pickled(tiny_encoder(tmp_path / "encoder"))
    policy = pickled(tiny_llama(tmp_path / "policy"))
    for load in (
        lambda: one(source, "pair"),
        lambda: new_reward_model(encoder, 1),
        lambda: PromptEncoder(encoder),
        lambda: load_language_model(policy),
    ):
        with pytest.raises(StorageError, match="pickles.*save_pretrained"):
            load()


def test_a_policys_pickled_lora_is_refused(tmp_path):
    base = tiny_llama(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    load_language_model(tmp_path / "lora")
    shutil.copytree(tmp_path / "lora", tmp_path / "second")
    (tmp_path / "lora" / "adapter_model.safetensors").rename(
        tmp_path / "lora" / "adapter_model.bin"
    )
    with pytest.raises(StorageError, match="pickles.*save_pretrained"):
        load_language_model(tmp_path / "lora")
    # an unrelated file of parameters beside it changes nothing: PEFT would take the pickle all the same
    save_file({"x": torch.zeros(1)}, tmp_path / "lora" / "optimizer.safetensors")
    with pytest.raises(StorageError, match="pickles.*save_pretrained"):
        load_language_model(tmp_path / "lora")
    # nor is it read as another LoRA's base
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "second")
    config = tmp_path / "second" / "adapter_config.json"
    change(config, base_model_name_or_path=str(tmp_path / "lora"))
    with pytest.raises(StorageError, match="pickles.*save_pretrained"):
        load_language_model(tmp_path / "second")
    (tmp_path / "lora" / "adapter_model.bin").unlink()
    with pytest.raises(StorageError, match="adapter_config.json and no adapter_model.safetensors"):
        load_language_model(tmp_path / "lora")


def test_a_hub_snapshot_contains_no_pickles(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kw: asked.update(kw) or str(tmp_path)
    )
    assert local_folder("some/panel") == tmp_path
    assert {"*.bin", "*.pt", "*.pkl"} <= set(asked["ignore_patterns"])


def sources() -> list[tuple[Path, ast.Module]]:
    folders = [ROOT / name for name in ("pro_core", "train", "ui", "spaces")]
    files = [
        ROOT / "app.py",
        *(file for folder in folders for file in sorted(folder.rglob("*.py"))),
    ]
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def called(node: ast.Call) -> tuple[str, str]:
    """(object, method) of a call ``object.method(...)``; the object is empty in ``method(...)``."""
    function = node.func
    if isinstance(function, ast.Attribute):
        return ast.unparse(function.value), function.attr
    return "", getattr(function, "id", "")


def test_every_from_pretrained_refuses_code_and_pickles():
    """``**SAFE`` for configs and tokenizers, ``**SAFE_MODEL`` for models; a GGUF file is no pickle."""
    found = 0
    for file, tree in sources():
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        for scope in (tree, *functions):
            calls = [n for n in ast.walk(scope) if isinstance(n, ast.Call)]
            for call in calls:
                owner, method = called(call)
                if method != "from_pretrained" or owner in OURS:
                    continue
                found += 1
                where = f"{file.relative_to(ROOT)}:{call.lineno}"
                named = {k.arg for k in call.keywords}
                spread = {ast.unparse(k.value) for k in call.keywords if k.arg is None}
                if owner == "PeftModel":  # it runs no code, but takes pickles: looked at before
                    checks = {called(c)[1] for c in calls}
                    assert checks & {"refuse_pickles", "load_file"}, where
                elif owner in ("AutoConfig", "AutoTokenizer") or "gguf_file" in named:
                    assert "SAFE" in spread, where
                else:
                    assert "SAFE_MODEL" in spread, where
    assert found > 8


@pytest.mark.slow
def test_nothing_is_unpickled():
    for file, tree in sources():
        for node in ast.walk(tree):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", "")}
                assert not names & {"pickle", "joblib", "dill", "cloudpickle", "shelve"}, where
            elif isinstance(node, ast.Call):
                settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
                owner, method = called(node)
                assert settings.get("allow_pickle", "False") == "False", where
                if (owner, method) == ("torch", "load"):
                    assert settings.get("weights_only") == "True", where
                assert not (owner in ("pd", "pandas") and method == "read_pickle"), where
