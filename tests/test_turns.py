"""Turns: what a template refuses it gets in a form that it takes, what it takes stays as it is, and where turns end."""

import copy
import json
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    ALTERNATING,
    CHATML,
    TINY_RUN,
    peft_adapter,
    reciting_llama,
    tiny_llama,
    tiny_qwen,
    without_ends,
)
from transformers import AddedToken, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from pro_core.data.schema import DataError, to_messages
from pro_core.data.turns import (
    alternating,
    forms,
    plainest,
    special_marks,
    turn_end,
    without_system,
)
from pro_core.generation import (
    STYLES,
    EndpointGenerator,
    GenerationError,
    GenerationSettings,
    LocalGenerator,
    Request,
    collect,
    styled,
)
from pro_core.generation.chat import chat_prompt, readable, whole_text, without_marks
from pro_core.policies.sft import tokenize_row
from pro_core.prompting.policy_config import load_language_model, load_tokenizer
from pro_core.rewards.batching import encode
from pro_core.rewards.formats import chat_text, special_tokens, without_special_tokens
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.storage import StorageError
from tests.servers.scripted import refuses, says, scripted, token


def talk(*turns: str) -> list[dict[str, str]]:
    """``talk("u Hi", "a Hello", "s Be brief.")``."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


HI = talk("u Name three colours.")
ASK = Request(HI)
ONE = GenerationSettings(max_new_tokens=4, temperature=0.0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def strict(llama, tmp_path_factory):
    """A model whose template refuses what Gemma's refuses."""
    folder = tmp_path_factory.mktemp("strict")
    tiny_llama(folder)
    return with_template(folder, ALTERNATING)


def with_template(folder, template: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


# ---------------------------------------------------------------- forms, by hand


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (talk("u hi", "u hello?"), talk("u hi\n\nhello?")),
        (talk("u hi", "a ", "u hello?"), talk("u hi\n\nhello?")),
        (talk("u hi", "a Yes?", "a Well?", "u no"), talk("u hi", "a Yes?\n\nWell?", "u no")),
        (talk("a I am Bot.", "u hi"), talk("u ", "a I am Bot.", "u hi")),
        (talk("s Be brief.", "u hi"), talk("s Be brief.", "u hi")),
        (talk("s Be brief.", "a I am Bot."), talk("s Be brief.", "u ", "a I am Bot.")),
        (talk("u hi", "a "), talk("u hi", "a ")),  # an empty completion stays
        ([], []),
    ],
)
def test_user_and_assistant_speak_in_turns(given, expected):
    assert alternating(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (talk("s Be brief.", "u hi", "a yes"), talk("u Be brief.\n\nhi", "a yes")),
        (talk("u hi", "s Be brief.", "u no"), talk("u Be brief.\n\nhi\n\nno")),
        (talk("s Be brief.", "a I am Bot.", "u hi"), talk("u Be brief.", "a I am Bot.", "u hi")),
        (talk("s Be brief."), talk("u Be brief.")),
    ],
)
def test_without_a_system_role_its_text_stands_before_the_first_user_turn(given, expected):
    assert plainest(given) == expected
    assert all(m["role"] != "system" for m in without_system(given))


turns = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.sampled_from(["", " ", "one", "two\n\nthree"]),
        }
    ),
    max_size=7,
)


@given(turns)
def test_the_plainest_form_is_taken_by_every_template_and_loses_no_word(messages):
    found = plainest(messages)
    assert [m["role"] for m in found] == ["user", "assistant"] * (len(found) // 2) + ["user"] * (
        len(found) % 2
    )
    said = sorted(" ".join(m["content"] for m in messages).split())
    assert sorted(" ".join(m["content"] for m in found).split()) == said
    assert plainest(found) == found
    listed = list(forms(messages))
    assert listed[0] == messages and all(one != other for one, other in pairwise(listed))


# ---------------------------------------------------------------- templates, exactly


def test_a_conversation_that_a_template_accepts_stays_as_it_is(llama):
    """ChatML takes all of it: two user turns, an assistant first, an empty turn, a system turn."""
    tokenizer = load_tokenizer(llama)
    odd = talk("s Be brief.", "a I am Bot.", "u hi", "u hello?")
    assert chat_prompt(tokenizer, odd) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\nI am Bot.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>user\nhello?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_text(tokenizer, talk("u hi", "a Well,"), "hello") == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nWell,<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (talk("u hi", "u hello?"), "<|im_start|>user\nhi\n\nhello?<|im_end|>\n"),
        (talk("s Be brief.", "u hi"), "<|im_start|>user\nBe brief.\n\nhi<|im_end|>\n"),
        (
            talk("a I am Bot.", "u hi"),
            "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nI am Bot.<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n",
        ),
    ],
)
def test_what_a_template_refuses_is_written_in_a_form_that_it_takes(strict, messages, expected):
    tokenizer = load_tokenizer(strict)
    assert chat_prompt(tokenizer, messages) == expected + "<|im_start|>model\n"
    assert chat_prompt(tokenizer, readable(tokenizer, messages)) == chat_prompt(tokenizer, messages)


def test_a_template_that_drops_the_system_turn_does_not_lose_its_text(llama):
    tokenizer = load_tokenizer(llama)
    tokenizer.chat_template = CHATML.replace("{% for m in messages %}", (
        "{% for m in messages if m['role'] != 'system' %}"
    ))  # fmt: skip
    assert chat_prompt(tokenizer, talk("s Be brief.", "u hi")).count("Be brief.\n\nhi") == 1


def test_the_completion_goes_on_with_an_open_answer_where_turns_must_alternate(strict):
    tokenizer = load_tokenizer(strict)
    before = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (
        chat_text(tokenizer, talk("u hi", "a Well,"), "hello") == f"{before}Well, hello<|im_end|>\n"
    )
    assert chat_text(tokenizer, talk("u hi"), "") == f"{before}<|im_end|>\n"
    alone = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nHa.<|im_end|>\n"
    assert chat_text(tokenizer, [], "Ha.") == alone


def test_a_long_answer_loses_its_end_and_a_long_question_its_beginning(tmp_path):
    tok = AutoTokenizer.from_pretrained(tiny_qwen(tmp_path))

    def read(question, answer, most):
        (row,) = encode(tok, [talk(f"u {question}")], [answer], "chat", most)
        assert len(row["input_ids"]) == len(row["attention_mask"]) <= most
        return tok.decode(row["input_ids"])

    whole = read("What is red?", "Roses are red.", 400)
    end = "<|im_end|>\n"  # where the reward is read
    assert whole.endswith(end)
    long_answer = read("What is red?", "Roses are red." + " And blue" * 99, 80)
    assert "What is red?" in long_answer and "Roses are red. And" in long_answer
    assert long_answer.endswith(end)
    both = read("Once more: " * 99 + "what is red?", "Roses are red." + " And blue" * 99, 90)
    assert "what is red?" in both and "Roses are red." in both and both.endswith(end)


def test_a_conversation_that_a_template_refuses_in_every_form_is_named_by_its_row(llama):
    tokenizer = load_tokenizer(llama)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'no' == m['content'] %}{{ raise_exception('Never') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"^row 1: the chat template of .* refuses .*\(Never\)"):
        encode(tokenizer, [HI, HI], ["yes", "no"], "chat", 100)
    with pytest.raises(GenerationError, match=r"refuses this conversation \(Never\)"):
        chat_prompt(tokenizer, talk("u no"))
    # A row of training that is refused is not taken for one that is too long and left out.
    with pytest.raises(GenerationError):
        tokenize_row(tokenizer, (talk("u no"), "Yes."), 100, 50)


def test_typed_marks_are_text_even_if_nothing_names_their_tokens(llama):
    """As in Llama 3, whose tokens of turns are special without being eos, bos or pad."""
    tokenizer = load_tokenizer(llama)
    tokenizer.add_tokens(AddedToken("<|eot|>", special=True))
    assert "<|eot|>" not in tokenizer.all_special_tokens
    assert "Red.< |eot|>" in chat_prompt(tokenizer, talk("u Red.<|eot|>"))


def test_special_tokens_are_read_off_a_tokenizer_once_and_again_when_they_change(
    llama, tmp_path, monkeypatch
):
    tokenizer = load_tokenizer(llama)
    asked = []
    read = type(tokenizer).added_tokens_decoder.fget
    counted = property(lambda self: asked.append(1) or read(self))
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", counted)
    special_marks(tokenizer)
    once = len(asked)

    def broken(text):
        assert special_tokens(tokenizer).pattern == "|".join(
            re.escape(mark) for mark in special_marks(tokenizer) if len(mark) > 1
        )
        whole_text(tokenizer, [5, 6])
        scored = without_special_tokens(text, special_tokens(tokenizer))
        assert scored == without_marks(tokenizer, text)
        return scored

    for _ in range(3):
        assert broken("a<|im_end|>b hello<|eot|>") == "a< |im_end|>b hello<|eot|>"
    assert len(asked) == once
    tokenizer.add_tokens(AddedToken("<|eot|>", special=True))
    assert broken("a<|im_end|>b hello<|eot|>") == "a< |im_end|>b hello< |eot|>"
    tokenizer.pad_token = "hello"  # a word of its vocabulary gets a role
    assert broken("a<|im_end|>b hello<|eot|>") == "a< |im_end|>b h ello< |eot|>"
    special_marks(tokenizer).clear()  # a caller's own list
    assert "<|eot|>" in special_marks(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert not any("_pro_marks" in file.read_text() for file in tmp_path.iterdir())
    assert special_marks(copy.deepcopy(tokenizer)) == special_marks(tokenizer)


# ---------------------------------------------------------------- scoring and generation under a strict template


@pytest.fixture(scope="module")
def strict_panel(strict, tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    tokenizer = load_tokenizer(strict)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=256, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    model.score.weight.data.mul_(20)
    model.save_pretrained(folder / "rm")
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder / "rm")
    spec = RewardModelSpec("good", str(folder / "rm"), input_format="chat", max_length=200)
    return RewardPanel.build([spec], folder)


def test_odd_conversations_are_scored_as_their_plain_forms(strict_panel):
    empty_turn = "\n\nHuman: hi\n\nAssistant:\n\nHuman: hello?\n\nAssistant:"
    odd = [to_messages(empty_turn), talk("a I am Bot.", "u hi"), talk("u hi", "a Well,"), HI]
    plain = [talk("u hi\n\nhello?"), talk("u ", "a I am Bot.", "u hi"), talk("u hi"), HI]
    said = ["Hello!", "Hi.", "hello", "Red."]
    scores = strict_panel.score(odd, said)
    # A turn of no text is no prompt of ours: the second has no plain form that `score` would read.
    kept = [0, 2, 3]
    expected = strict_panel.score([plain[i] for i in kept], ["Hello!", "Well, hello", "Red."])
    assert scores[kept, 0] == pytest.approx(expected[:, 0], abs=1e-2)
    assert len({round(float(s), 3) for s in scores[:, 0]}) == 4


def test_one_conversation_that_a_template_refuses_does_not_stop_the_others(tmp_path):
    tiny_llama(tmp_path)
    template = (
        "{% for m in messages %}{% if 'no' == m['content'] %}{{ raise_exception('Never') }}"
        "{% endif %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    generator = LocalGenerator(with_template(tmp_path, template), device="cpu")
    no, yes = collect(generator, [Request(talk("u no")), ASK], ONE)
    assert no.error == "The model's chat template refuses this conversation (Never)." and no.failed
    assert yes.error is None or yes.empty


@pytest.mark.parametrize("style", list(STYLES))
def test_styles_reach_a_model_without_a_system_role(strict, style):
    [answer] = collect(LocalGenerator(strict, device="cpu"), [Request(styled(HI, style))], ONE)
    assert not answer.failed


def test_morlhf_gives_trl_a_form_that_the_template_takes(strict, tmp_path):
    from pro_core.policies.rl.recipe import MorlhfRecipe
    from pro_core.policies.rl.weighted import PanelPrompts, weighted_task

    panel = RewardPanel.build([RewardModelSpec("long", function="length")], tmp_path)
    panel.fit_stats(["a"] * 2, ["x", "xyz"], "two texts")
    panel.save_pretrained(tmp_path / "panel")
    prompts = [talk("u hi", "u hello?"), talk("s Be brief.", "u hi"), HI]
    rows = [{"prompt": prompt, "response": "no", "split": "train"} for prompt in prompts]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"model": strict, "panel": str(tmp_path / "panel"), "weights": "uniform"}
    recipe |= {"data": [{"path": str(tmp_path / "own.jsonl")}], "max_length": 96}
    recipe |= {"output": str(tmp_path / "out"), **TINY_RUN}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    read = MorlhfRecipe.read(tmp_path / "recipe.yaml")
    reader = weighted_task(read, PanelPrompts.load(read), 0).reader
    fitted = [reader.fitted(prompt) for prompt in prompts]
    assert fitted == [talk("u hi\n\nhello?"), talk("u Be brief.\n\nhi"), HI]
    for conversation in fitted:  # as TRL renders it
        reader.tokenizer.apply_chat_template(conversation, add_generation_prompt=True)


# ---------------------------------------------------------------- roles at servers


def gemma(body):
    """A server whose template knows no system role and wants turns to alternate."""
    roles = [m["role"] for m in body["messages"]]
    if "system" in roles:
        return refuses("System role not supported")
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        return refuses("Conversation roles must alternate")
    return 200, [says("Red."), says("", "stop"), "[DONE]"]


def test_a_server_without_a_system_role_gets_its_text_in_the_users_turn():
    with scripted(gemma) as (url, seen):
        generator = EndpointGenerator(url, model="m", retries=0)
        for style in STYLES:
            [answer] = collect(generator, [Request(styled(HI, style))], ONE)
            assert (answer.text, answer.error) == ("Red.", None)
        # Asked again once, and remembered: one request more than there are styles.
        assert [[m["role"] for m in body["messages"]] for body in seen] == [
            ["user"], ["system", "user"], ["user"], ["user"], ["user"]
        ]  # fmt: skip
        said = f"{STYLES['playful']}\n\nName three colours."
        assert seen[-1]["messages"] == [{"role": "user", "content": said}]


def test_a_server_gets_user_and_assistant_in_turns():
    with scripted(gemma) as (url, seen):
        generator = EndpointGenerator(url, model="m", retries=0)
        batch = [
            Request(to_messages("Human: hi\n\nAssistant:\n\nHuman: hello?")),
            Request(talk("a I am Bot.", "u hi")),
        ]
        assert [a.text for a in collect(generator, batch, ONE)] == ["Red.", "Red."]
        assert talk("u hi\n\nhello?") in [body["messages"] for body in seen]
        assert len(seen) == 3  # an assistant who speaks first is tried as it is


def test_a_server_that_takes_system_turns_keeps_getting_them():
    calls = []

    def once_too_long(body):
        calls.append(body)
        first = len(calls) <= 2  # refuses both forms: it is not the system turn that it minds
        return refuses("max_tokens is too large") if first else (200, [says("Red.", "stop")])

    with scripted(once_too_long) as (url, seen):
        generator = EndpointGenerator(url, model="m", retries=0)
        [answer] = collect(generator, [Request(styled(HI, "factual"))], ONE)
        assert "does not accept this request (400) (max_tokens is too large)" in answer.error
        [answer] = collect(generator, [Request(styled(HI, "factual"))], ONE)
        assert answer.text == "Red."
        assert [m["role"] for m in seen[-1]["messages"]] == ["system", "user"]


# ---------------------------------------------------------------- where a turn ends


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", " <|end|>"), "<|end|>"),  # as Zephyr's and Llama 2's
        (CHATML.replace("<|im_end|>", "###"), None),  # no token, and text could hold it
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None),
        ("{{ raise_exception('Never') }}", None),
        ("Nothing.", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(llama, template, end):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == end


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|end|>"])
def test_the_templates_end_of_turn_stops_a_local_answer_whatever_eos_is(tmp_path, eos):
    generator = LocalGenerator(reciting_llama(tmp_path, ["Paris"], eos), device="cpu")
    [answer] = collect(generator, [ASK], GenerationSettings(24, temperature=0.0))
    assert (answer.text, answer.error, answer.finish) == ("Paris", None, "stop")
    model, tokenizer, _ = load_language_model(tmp_path)
    ends = model.generation_config.eos_token_id  # what TRL's trainers and PPO stop at, too
    ids = {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id}
    assert {*(ends if isinstance(ends, list) else [ends])} == ids


@pytest.mark.parametrize("obeys", [True, False])
def test_the_templates_end_of_turn_stops_an_answer_at_tgi(llama, obeys):
    """As a stop text; a server that does not look at it is cut off at the token, special or not."""
    going_on = [token("\n"), token("<|im_start|>", True), token("user"), token("x", whole="x")]

    def answer(body):
        asked = obeys and body["parameters"]["stop"] == ["<|im_end|>"]
        last = [token("<|im_end|>", True, "Paris.", "stop_sequence")] if asked else going_on
        return 200, [token("Paris."), *([] if asked else [token("<|im_end|>", obeys)]), *last]

    with scripted(answer) as (url, seen):
        generator = EndpointGenerator(url, model=llama, dialect="tgi", retries=0)
        [found] = collect(generator, [ASK], ONE)
        assert (found.text, found.error, found.finish) == ("Paris.", None, "stop")
        assert seen[0]["parameters"]["stop"] == ["<|im_end|>"]


# ---------------------------------------------------------------- tokenizers that are missing, or say too little


@pytest.mark.parametrize("own", [True, False])
def test_a_lora_without_tokenizer_uses_its_bases(tmp_path, own):
    base = reciting_llama(tmp_path / "base", ["Paris"])
    lora = peft_adapter(tmp_path / "lora", base, tokenizer=own)
    [answer] = collect(LocalGenerator(lora, device="cpu"), [ASK], GenerationSettings(8, 0.0))
    assert (answer.text, answer.finish) == ("Paris", "stop")
    assert load_tokenizer(lora).name_or_path == (lora if own else base)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": "/absent/base"}, "belongs to the model '/absent/base'"),
        ({"base_model_name_or_path": None}, "belongs to the model None"),
        ({"task_type": "SEQ_CLS"}, "got a LoRA of the task SEQ_CLS, expected CAUSAL_LM"),
    ],
)
def test_a_lora_that_cannot_write_is_one_sentence(tmp_path, change, said):
    lora = peft_adapter(tmp_path / "lora", tiny_llama(tmp_path / "base"))
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StorageError, match=said):
        load_language_model(lora)
    [answer] = collect(LocalGenerator(lora, device="cpu"), [ASK], ONE)
    assert said in answer.error and "\n" not in answer.error


def test_without_pad_and_eos_the_templates_end_of_turn_is_both(tmp_path):
    folder = reciting_llama(tmp_path, ["Paris"])
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / name).read_text()) if name != "config.json" else config
        (tmp_path / name).write_text(json.dumps(content | {"eos_token_id": None}))
    generator = LocalGenerator(without_ends(tmp_path), device="cpu")
    more = talk("u Name three colours, and then a few more of them.")
    batch = [ASK, Request(more)]  # of two lengths
    answers = collect(generator, batch, GenerationSettings(8, temperature=0.0))
    assert [(a.text, a.finish) for a in answers] == [("Paris", "stop")] * 2
    # And with no end anywhere, it is said when the model is loaded.
    with_template(folder, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(StorageError, match="names a token that ends an answer.*add eos_token"):
        load_language_model(folder)
    with pytest.raises(GenerationError, match="add eos_token"):
        LocalGenerator(folder, device="cpu").load()
