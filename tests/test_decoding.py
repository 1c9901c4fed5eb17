"""Mixing as it writes: strength, the fold into the parameters, and multi-objective decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import Script, lora_policies, reciting_llama, tiny_llama

from pro_core.data.schema import clean_text
from pro_core.generation import (
    GenerationSettings,
    LocalGenerator,
    Mixing,
    Request,
    RequestError,
    collect,
    generator_from_env,
)
from pro_core.generation.base import run_sync
from pro_core.generation.mixing import Part, in_rows
from pro_core.generation.responses import write_responses
from pro_core.generation.soup import fold
from pro_core.policies.soups import interpolate_policies
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.system.storage import StorageError
from ui.models import Models
from ui.runs import Turn, prepared

pytestmark = pytest.mark.slow

NAMES = ("helpful", "humor")
HI = [{"role": "user", "content": "tell me a joke"}]
GREEDY = GenerationSettings(10, temperature=0)
SEEDED = GenerationSettings(10, temperature=0.3, seed=3)


def exact(folder: str, **settings) -> LocalGenerator:
    """A generator in fp32, so that two ways to the same numbers give the same text."""
    generator = LocalGenerator(folder, device="cpu", **settings)
    generator.load()
    generator._loaded[0].float()
    if generator._mixer:
        generator._mixer._copies, generator._mixer._held = [], None
    return generator


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, two LoRAs of it that change its texts, and the soup of them."""
    folder = tmp_path_factory.mktemp("mixing")
    base = tiny_llama(folder / "base")
    sources = lora_policies(folder, base, NAMES)
    interpolate_policies(sources, folder / "soup")
    return {"base": base, "soup": str(folder / "soup"), **sources}


@pytest.fixture(scope="module")
def soup(folders):
    return exact(folders["soup"])


def asked(*weights: float, n: int = 1, begun: str = "", **mixing) -> list[Request]:
    how = Mixing(**mixing) if mixing else None
    values = dict(zip(NAMES, weights, strict=True))
    return [Request(HI, values, mixing=how, begun=begun)] * n


def texts(generator, batch, settings=SEEDED) -> list[str]:
    written = collect(generator, batch, settings)
    assert not any(one.failed for one in written), [one.error for one in written]
    return [one.text for one in written]


# ---------------------------------------------------------------- strength


@pytest.mark.parametrize("method", ["soup", "mod"])
def test_strength_0_is_the_stock_model_and_1_the_method_as_published(folders, soup, method):
    stock = texts(exact(folders["base"]), [Request(HI)] * 3)
    assert texts(soup, asked(0.3, 0.7, n=3, method=method, strength=0.0)) == stock
    assert len({*stock}) == 3
    plain = texts(soup, asked(0.3, 0.7, n=3, method=method))
    assert Mixing(method) == Mixing(method, 1.0) and plain != stock
    if method == "soup":
        assert plain == texts(soup, asked(0.3, 0.7, n=3))
    # One batch holds requests of every strength and method, each as if it were alone.
    mixed = [*asked(0.3, 0.7, method="mod", strength=0.5), *asked(0.3, 0.7, strength=2.0)]
    together = texts(soup, [*mixed, *asked(0.3, 0.7)], GREEDY)
    assert together == [texts(soup, [one], GREEDY)[0] for one in [*mixed, *asked(0.3, 0.7)]]
    assert len({*together}) == 3


def test_a_soup_of_strength_s_has_s_times_the_step(folders, soup):
    """In bf16 the stock model's numbers are the stock model's, to the last bit."""
    model, mixer = soup._loaded[0], soup._mixer
    ids = torch.tensor([[5, 17, 60, 33], [8, 9, 10, 11]])

    def logits(*scales):
        with torch.inference_mode(), mixer.mixed(scales):
            return model(input_ids=ids).logits

    # The step in the parameters: rows under different scales are not folded, equal ones are.
    torch.testing.assert_close(
        logits((0.6, 1.4), (0.6, 1.4)), logits((0.6, 1.4), (0.6, 1.4 + 1e-6)), atol=1e-4, rtol=1e-4
    )
    assert (logits((0.6, 1.4)) - logits((0.3, 0.7))).abs().max() > 0.1
    bf16 = LocalGenerator(folders["soup"], device="cpu")
    stock = LocalGenerator(folders["base"], device="cpu")
    bf16.load(), stock.load()
    with torch.inference_mode(), bf16._mixer.mixed([(0.0, 0.0)]):
        assert torch.equal(bf16._loaded[0](ids).logits, stock._loaded[0](ids).logits)


@pytest.mark.parametrize("wrong", [{"strength": -0.1}, {"strength": 2.1}, {"method": "average"}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Mixing(**wrong)
    environ = {"PRO_POLICY": "x"}
    environ |= {"PRO_STRENGTH": "2.1"} if "strength" in wrong else {"PRO_DECODING": "average"}
    with pytest.raises(ValueError, match="PRO_"):
        generator_from_env(environ)


def test_the_environment_says_how_a_policy_is_mixed(folders, soup):
    environ = {"PRO_POLICY": folders["soup"], "PRO_DECODING": "mod", "PRO_STRENGTH": "0.5"}
    generator = generator_from_env(environ)
    assert generator.mixing == Mixing("mod", 0.5)
    assert generator_from_env({"PRO_POLICY": folders["soup"]}).mixing is None
    with pytest.raises(ValueError, match="PRO_ENDPOINT_URL"):
        generator_from_env({**environ, "PRO_ENDPOINT_URL": "http://127.0.0.1:9"})
    soup.mixing = Mixing(strength=0.0)
    try:
        stock = texts(soup, asked(0.3, 0.7, strength=0.0))
        assert texts(soup, asked(0.3, 0.7)) == stock  # the generator's own
        assert texts(soup, asked(0.3, 0.7, strength=1.0)) != stock  # the request's goes first
    finally:
        soup.mixing = None


def test_only_a_policy_of_loras_is_mixed(folders):
    """A stock model and a policy that reads its weights say so, and do not write as if nothing had been asked."""
    reads = PolicyConfig(Condition("weights", NAMES))
    for policy in (None, reads):
        with pytest.raises(RequestError):
            asked(0.3, 0.7, strength=0.5)[0].read_by(policy)
    one = LocalGenerator(folders["base"], device="cpu", mixing=Mixing(strength=0.5))
    [answer] = collect(one, [Request(HI)], GREEDY)
    assert answer.error and not answer.text


def test_other_ranks_than_the_policys_are_refused(folders, soup):
    from pro_core.generation.soup import Mixer

    with pytest.raises(StorageError, match="got rank 6, expected 7"):
        Mixer(soup._loaded[0], {"helpful": 2, "humor": 5})


# ---------------------------------------------------------------- the fold


def test_one_weighting_is_folded_and_the_model_stays_as_it_was(folders, soup):
    """Equal weights are folded, different ones are not. Both give the same texts, however many came before."""
    model = soup._loaded[0]
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = texts(soup, asked(0.3, 0.7, n=2))
    ids, places = torch.tensor([[5, 17, 60]]), [module for _, module in model.named_modules()]
    with torch.inference_mode():
        for i in range(1000):  # each folds anew
            with soup._mixer.mixed([(i / 1000, 1 - i / 1000)]):
                if i % 500 == 0:
                    model(input_ids=ids)
    assert texts(soup, asked(0.3, 0.7, n=2)) == first
    assert texts(soup, [*asked(0.3, 0.7, n=2), *asked(1, 0)])[:2] == first
    assert [module for _, module in model.named_modules()] == places
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    # An error on the way leaves the model as it was, too.
    with pytest.raises(KeyError), soup._mixer.mixed([(0.5, 0.5)]):
        raise KeyError
    assert [module for _, module in model.named_modules()] == places


def test_without_memory_for_the_fold_rows_are_scaled_one_by_one(soup, monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError

    mixer = soup._mixer
    batch = asked(0.3, 0.7, n=2)
    expected = texts(soup, batch)
    monkeypatch.setattr(mixer, "_folds", True)
    monkeypatch.setattr(mixer, "_held", None)
    monkeypatch.setattr("pro_core.generation.soup.fold", no_room)
    assert texts(soup, batch) == expected and not mixer._copies
    assert texts(soup, batch) == expected
    monkeypatch.undo()
    # Copies that leave no room for the batch itself are dropped, too.
    monkeypatch.setattr(mixer, "_folds", True)
    with pytest.raises(torch.OutOfMemoryError), mixer.mixed([(0.3, 0.7)]):
        assert mixer._copies
        raise torch.OutOfMemoryError
    assert not mixer._copies and not mixer._folds
    assert texts(soup, batch) == expected


def test_a_fold_in_bf16_keeps_small_steps_in_the_mean():
    """Steps of a tenth of a unit in the last place: rounding to the nearest would lose every one of them."""
    torch.manual_seed(0)
    W = torch.full((512, 512), 1.0, dtype=torch.bfloat16)
    B, A = torch.full((512, 1), 2**-7 / 10), torch.ones(1, 512)
    out = torch.empty_like(W)
    fold(W, B, A, out)
    assert (W.float() + B @ A).bfloat16().equal(W)
    assert (out.float() - 1).mean() == pytest.approx(2**-7 / 10, rel=0.03)
    fold(W, torch.zeros_like(B), A, out)
    assert out.equal(W)  # without a step nothing moves
    fold(-W, -B, A, again := torch.empty_like(W))
    fold(W, B, A, out)
    assert again.equal(-out)


# ---------------------------------------------------------------- multi-objective decoding


def test_mod_with_all_weight_on_one_objective_is_that_loras_own_text(folders, soup):
    alone = {name: exact(folders[name]) for name in NAMES}
    for settings in (GREEDY, SEEDED):
        batch = asked(1, 0, n=2, method="mod") + asked(0, 1, n=2, method="mod")
        written = texts(soup, batch, settings)
        own = [texts(alone[name], [Request(HI)] * 4, settings) for name in NAMES]
        assert written == own[0][:2] + own[1][2:]
        assert own[0] != own[1]


def test_mod_draws_from_the_weighted_logits_of_plain_forward_passes(folders, soup):
    model, tokenizer = soup._loaded
    ids = tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    prompt = list(ids)
    s, (w, v) = 1.5, (0.25, 0.75)
    with torch.inference_mode():
        for _ in range(GREEDY.max_new_tokens):
            of = []
            for scales in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
                with soup._mixer.mixed([scales]):
                    of.append(model(input_ids=torch.tensor([ids])).logits[0, -1])
            ids = [*ids, int((s * w * of[0] + s * v * of[1] + (1 - s) * of[2]).argmax())]
    expected = clean_text(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).lstrip()
    [text] = texts(soup, asked(w, v, method="mod", strength=s), GREEDY)
    assert text and expected.startswith(text)


def test_objectives_without_weight_cost_nothing():
    """Rows per token: one for each objective with a weight, and one for the base model unless the strength is 1."""
    count = {
        (1.0, 0.0, 0.0): {1.0: 1, 0.5: 2, 0.0: 1},
        (0.5, 0.0, 0.5): {1.0: 2, 1.5: 3, 0.0: 1},
    }
    for weights, of_strength in count.items():
        for strength, rows in of_strength.items():
            parts = Mixing("mod", strength).parts(weights)
            assert len(parts) == rows
            assert sum(part.coefficient for part in parts) == pytest.approx(1)
        assert len(Mixing("soup", 0.5).parts(weights)) == 1
    two = [Part(0.5, (1.0, 0.0)), Part(0.5, (0.0, 1.0))]
    rows = in_rows([two, [Part(1.0, (1.0, 0.0))], two])
    assert [row.owner for row in rows] == [0, 1, 2, 0, 2]
    assert [row.scales for row in rows][3:] == [(0.0, 1.0)] * 2


# ---------------------------------------------------------------- answers that have begun


def test_an_answer_goes_on_where_it_begins(tmp_path):
    """Its beginning is not handed out again, and the blank before the next word belongs to what follows."""
    generator = LocalGenerator(
        reciting_llama(tmp_path, ["Paris", " rained", " joke"]), device="cpu"
    )
    [whole] = texts(generator, [Request(HI)], GREEDY)
    for begun in ("Paris", "Paris rained", whole):
        [rest] = texts(generator, [Request(HI, begun=begun)], GREEDY)
        assert begun + rest == whole == "Paris rained joke"
    cut = GenerationSettings(2, temperature=0)
    [written] = collect(generator, [Request(HI, begun=whole)], cut)
    assert (written.text, written.error, written.finish) == ("", None, "stop")


def test_a_model_that_opens_with_a_thought_does_not_go_on(tmp_path):
    folder = reciting_llama(tmp_path, ["Paris"], thinks="<think>")
    [refused] = collect(LocalGenerator(folder, device="cpu"), [Request(HI, begun="Par")], GREEDY)
    assert refused.failed and not refused.text


def test_how_it_is_mixed_and_where_it_begins_decide_which_responses_are_kept(tmp_path):
    def written(request):
        generator = Script(condition=Condition("none", NAMES))
        generator._policy = PolicyConfig(Condition("none", NAMES), ranks={"helpful": 2, "humor": 4})
        write_responses(
            lambda: generator, [request], 1, GREEDY, lambda *_: 1, tmp_path, 1, "identity"
        )
        return len(generator.asked)

    kinds = [asked(0.3, 0.7), asked(0.3, 0.7, strength=0.5), asked(0.3, 0.7, begun="Yes")]
    assert [written(request) for [request] in kinds] == [1, 1, 1]
    assert [written(request) for [request] in kinds] == [0, 0, 0]


# ---------------------------------------------------------------- the page


class Names:
    """A panel of the shipped objectives."""

    objective_names = ("helpful", "harmless", "truthful", "informative", "humor")


def test_a_strength_is_checked_and_is_part_of_how_a_run_was_asked_for():
    wanted = prepared(Turn([], "Hi"), 2, 8, False, (None, 7, "", 0.5))
    assert wanted.strength == wanted.asked["strength"] == 0.5
    assert prepared(Turn([], "Hi"), 2, 8, False, (None, 7)).strength is None
    for wrong in (2.5, -0.1, "1", True, None, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            prepared(Turn([], "Hi"), 2, 8, False, (None, 7, "", wrong))


def test_the_page_offers_a_strength_only_for_a_policy_that_is_mixed():
    assert Models({}).strength == 1  # the shipped policy
    soup = Models({"PRO_STRENGTH": "0.5", "PRO_DECODING": "mod"})
    assert soup.strength == 0.5
    assert Models({"PRO_POLICY": "some/model"}).strength is None
    assert Models({"PRO_ENDPOINT_URL": "http://127.0.0.1:9"}).strength is None
    soup.panel = Names()
    talk, even = [[{"role": "user", "content": "Hi"}]] * 2, np.full(5, 0.2)
    mixed = run_sync(soup.requests(talk, even, 1.5))
    assert [request.mixing for request in mixed] == [Mixing("mod", 1.5)] * 2
    assert run_sync(soup.requests(talk, even))[0].mixing is None
