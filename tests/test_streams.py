"""Streams of answers: every legal one is read, wherever its bytes are cut, in both dialects."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pro_core.generation import Written
from pro_core.generation.answers import SLACK, THOUGHT_SLACK, AnswerPieces
from pro_core.generation.dialect_openai import Chunks
from pro_core.generation.dialect_tgi import Tokens
from pro_core.http.events import MAX_EVENT, EventReader, TooLong
from pro_core.http.failures import Explainer, Failure
from tests.servers.scripted import says, token

BOM = "\ufeff".encode()


def events_of(*parts: bytes) -> list[tuple[str, str, bool]]:
    """(data, name, cut) of each event of a stream that comes in these parts."""
    reader = EventReader()
    found = [tuple(event) for part in parts for event in reader.push(part)]
    return [*found, *(tuple(event) for event in reader.end())]


def reader_of(dialect: str, tokens: int = 64):
    pieces = AnswerPieces(0, tokens)
    explain = Explainer("h", None, 1.0)
    return Chunks(pieces, explain) if dialect == "openai" else Tokens(pieces, explain, "\nHuman:")


def answer_of(dialect: str, *parts: bytes, tokens: int = 64):
    """(the pieces, the error) of a stream that comes in these parts, as an endpoint's answer is read."""
    events, reader = EventReader(), reader_of(dialect, tokens)
    pieces = []
    try:
        for batch in [*map(events.push, parts), events.end()]:
            for event in batch:
                pieces += reader.read(event)
        return [*pieces, *reader.end()], None
    except Failure as failure:
        return pieces, failure.message


def text_of(dialect: str, *parts: bytes, **options):
    """(the thought, the text, how it ended, the error)."""
    pieces, error = answer_of(dialect, *parts, **options)
    written = Written()
    for piece in pieces:
        written.add(piece)
    return written.reasoning, written.text, written.finish, error or written.error


def chunk(content=None, finish=None, **delta) -> bytes:
    event = says(content, finish, **delta)
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


# ---------------------------------------------------------------- events, to the standard


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data:a\n\ndata:  b\n\n", ["a", " b"]),  # one blank after the colon is none of it
        (b"data: a\ndata\ndata: b\n\n", ["a\n\nb"]),
        (b": ping\n\n:\ndata: a\n: ping\n\n", ["a"]),
        (b"id: 1\nretry: 5\n\nevent: x\n\ndata: a\nid: 2\n\n", ["a"]),
        (b"data\n\ndata:\n\n", ["", ""]),
        (b"DATA: no\ndata : no\nnothing\n{}\n\ndata: a\n\n", ["a"]),
        (BOM + b"data: a\n\n", ["a"]),
        (BOM + BOM + b"data: no\n\ndata: a\n\n", ["a"]),  # one is a mark, two are a name
        (b"\n\n\ndata: a\n\n\n\n", ["a"]),
        ("data: a\u2028b\u0085c\x0bd\x1ce\n\n".encode(), ["a\u2028b\u0085c\x0bd\x1ce"]),
        (b"data: \xff\xed\xa0\xbd\n\n", ["\ufffd" * 4]),
        (b"", []),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_events_are_read_as_the_standard_says(stream, data, end):
    assert [event[0] for event in events_of(stream.replace(b"\n", end))] == data


def test_lines_may_end_in_different_ways():
    stream = b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\r"
    assert [event[0] for event in events_of(stream)] == ["a\nb\nc", "d"]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_of_two_lines_may_be_cut_anywhere(end):
    stream = BOM + b"event: e\ndata: a\ndata: \xf0\x9f\x98\x80\n\n".replace(b"\n", end)
    for at in range(len(stream) + 1):
        assert events_of(stream[:at], b"", stream[at:]) == [("a\n😀", "e", False)]


def test_an_event_that_ends_in_cr_is_not_held_back():
    reader = EventReader()
    assert [event.data for event in reader.push(b"data: a\r\r")] == ["a"]
    assert [event.data for event in reader.push(b"\ndata: b\n\n")] == ["b"]  # its LF belongs to it


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r"])
def test_the_last_event_needs_no_blank_line_and_is_marked(end):
    assert events_of(b"data: a\n\n" + end) == [("a", "", False), ("[DONE]", "", True)]


def test_events_have_names_of_their_own():
    stream = b"event: error\ndata: a\n\ndata: b\n\nevent:ping\n\ndata: c\n\n"
    assert [event[:2] for event in events_of(stream)] == [("a", "error"), ("b", ""), ("c", "")]


@pytest.mark.parametrize("line", [b"data: ", b"x"])
def test_an_event_has_a_longest_length(line):
    reader = EventReader()
    with pytest.raises(TooLong):
        for _ in range(5):
            reader.push(line + b"x" * (MAX_EVENT // 4))
    many = EventReader()
    for _ in range(5):  # many events, and comments, are no long event
        many.push(b": " + b"x" * (MAX_EVENT // 2) + b"\n")
        many.push(b"data: " + b"x" * (MAX_EVENT // 2) + b"\n\n")


@given(
    st.lists(
        st.sampled_from([b"data: a", b"data", b":c", b"event: e", b"", b"id: 1", b"\xf0\x9f"])
    ),
    st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=1),
    st.data(),
)
def test_where_a_stream_is_cut_makes_no_difference(lines, ends, data):
    stream = b"".join(line + ends[i % len(ends)] for i, line in enumerate(lines))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert events_of(*parts) == events_of(stream)


# ---------------------------------------------------------------- answers, cut at every byte

HARD = "Grün 😀 \u2028\u0085 日本 \x1c</b>"


def openai_stream(ensure_ascii: bool) -> list[bytes]:
    events = [
        says(None, role="assistant"),
        says(None, reasoning_content=f"Hm {HARD}"),
        says("", ""),
        says(HARD),
        says([{"type": "text", "text": " a part"}]),
        says("\\ud83d"),
        says("\\ude00", "stop"),
    ]
    lines = [json.dumps(e, ensure_ascii=ensure_ascii).replace("\\\\ud", "\\ud") for e in events]
    usage = '{"choices": [], "usage": {"total_tokens": 9}}'
    return [f"data: {line}\n\n".encode() for line in [*lines, usage, "[DONE]"]]


def tgi_stream(ensure_ascii: bool) -> list[bytes]:
    tokens = [token(f"<think>Hm {HARD}"), token("</think>"), token(HARD), token(" a part\\ud83d")]
    tokens += [token("\\ude00\nHum"), token("an", whole="all", reason="eos_token")]
    lines = [json.dumps(t, ensure_ascii=ensure_ascii).replace("\\\\ud", "\\ud") for t in tokens]
    return [f"data:{line}\n\n".encode() for line in lines]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("stream", [openai_stream, tgi_stream])
def test_an_answer_is_the_same_wherever_its_bytes_are_cut(stream, ensure_ascii, end):
    dialect = "openai" if stream is openai_stream else "tgi"
    parts = stream(ensure_ascii)
    body = BOM + b": hello\n\n" + b": ping\n\n".join(parts)
    body = body.replace(b"\n", end)
    whole = answer_of(dialect, body)
    written = text_of(dialect, body)
    said = HARD.replace("\x1c", "")
    tail = "\nHuman" if dialect == "tgi" else ""
    assert written == (f"Hm {said}", f"{said} a part😀{tail}", "stop", None)
    for at in range(len(body) + 1):
        assert answer_of(dialect, body[:at], body[at:]) == whole
    assert answer_of(dialect, *(body[i : i + 1] for i in range(len(body)))) == whole


@pytest.mark.parametrize("stream", [openai_stream, tgi_stream])
def test_a_stream_that_ends_anywhere_is_whole_or_half_way(stream):
    """No cut makes a shorter answer look whole, and none is rubbish."""
    dialect = "openai" if stream is openai_stream else "tgi"
    body = b"".join(stream(False))
    whole = text_of(dialect, body)
    last = body.index(b'"stop"') if dialect == "openai" else body.index(b'"eos_token"')
    for at in range(len(body)):
        thought, text, finish, error = text_of(dialect, body[:at])
        if error is None:
            assert (thought, text, finish) == whole[:3] and at > last
        else:
            assert "half-way" in error or "empty answer" in error
            assert whole[0].startswith(thought) and whole[1].startswith(text)


@settings(deadline=None)
@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_any_text_in_any_pieces_is_that_text(text, cuts, ensure_ascii):
    """Also where a server cuts between the halves of a character, as those do that count in UTF-16."""
    units = text.encode("utf-16-le", "surrogatepass")
    places = sorted({min(2 * cut, len(units)) for cut in cuts})
    spans = zip([0, *places], [*places, len(units)], strict=True)
    halves = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in spans]
    split = any("\ud800" <= c <= "\udfff" for half in halves for c in half)
    assume(ensure_ascii or not split)  # UTF-8 holds no halves, JSON's escapes do

    def stream(*texts):
        events = [*map(says, texts), says("", "stop")]
        lines = [json.dumps(event, ensure_ascii=ensure_ascii) for event in events]
        return "".join(f"data: {line}\n\n" for line in lines).encode()

    assert text_of("openai", stream(*halves)) == text_of("openai", stream(text))


# ---------------------------------------------------------------- where an answer ends


@pytest.mark.parametrize(
    "end",
    [
        chunk("", "stop"),
        b"data: [DONE]\n\n",
        b"data:[DONE]\n\n",
        b"data: [DONE]",
        chunk("", "stop") + b"data: [DONE]\n\n",
        chunk("", "eos") + chunk(" too late") + b"data: [DONE]\n\n",
        chunk("", "stop") + b'data: {"error": {"message": "too late"}}\n\n',
        b"data: [DONE]\n\ndata: rubbish\n\n",
        chunk("", "stop") + b'data: {"choices": [], "usage": {}}\n\n',
        chunk("", "STOP"),
        chunk("", "tool_calls"),
    ],
)
@pytest.mark.parametrize("none", [None, ""])
def test_a_finish_reason_or_done_ends_an_answer_and_nothing_takes_it_back(end, none):
    body = chunk("Red,", none) + chunk(" green.", none) + end
    assert text_of("openai", body) == ("", "Red, green.", "stop", None)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *[("length", "length"), ("max_tokens", "length"), ("MAX_TOKENS", "length")],
        *[("content_filter", "filter"), ("SAFETY", "filter"), ("sensitive", "filter")],
        *[("SPII", "filter"), ("refusal", "filter")],
    ],
)
def test_a_limit_and_a_filter_are_no_normal_end(reason, finish):
    assert text_of("openai", chunk("Red"), chunk("", reason)) == ("", "Red", finish, None)


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_a_server_that_gives_up_does_not_end_the_answer(reason):
    assert "half-way" in text_of("openai", chunk("Red"), chunk("", reason))[3]
    choice = {"delta": {}, "finish_reason": "error", "error": {"message": "Provider is gone"}}
    event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
    assert "(Provider is gone)" in text_of("openai", chunk("Red"), event)[3]


@pytest.mark.parametrize("none", [None, ""])
def test_a_stream_without_an_end_is_half_an_answer(none):
    found = text_of("openai", chunk("Red,", none))
    assert found[:3] == ("", "Red,", None) and "half-way" in found[3]
    assert "half-way" in text_of("tgi", f"data: {json.dumps(token('Red,'))}\n\n".encode())[3]


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize("body", [b"", b"\n\n", b": ping\n\n", b"data: [DONE]\n\n"])
def test_a_stream_of_nothing_is_an_empty_answer(dialect, body):
    assert "sent an empty answer" in text_of(dialect, body)[3]


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize("body", [b"data: {not json\n\n", b"data: [1, 2]\n\n", b"data: 7\n\n"])
def test_rubbish_is_said_to_be_none(dialect, body):
    assert "is no answer" in text_of(dialect, body)[3]


@pytest.mark.parametrize(
    "ping",
    [
        *(b"data: \n\n", b"data\n\n", b"data:\ndata:\n\n", b"data: : keepalive\n\n"),
        *(b"data: null\n\n", b"event: ping\ndata: 12:30\n\n", b'data: {"type": "ping"}\n\n'),
    ],
)
@pytest.mark.parametrize("stream", [openai_stream, tgi_stream])
def test_what_keeps_a_stream_alive_is_no_part_of_an_answer(stream, ping):
    dialect = "openai" if stream is openai_stream else "tgi"
    parts = stream(False)
    whole = answer_of(dialect, *parts)
    assert whole[1] is None
    assert answer_of(dialect, ping + ping.join(parts)) == whole


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"detail": "boom"}, "ended the answer half-way (boom)."),
        ({"message": "boom"}, "ended the answer half-way (boom)."),
        ({"message": "boom", "code": 500}, "failed (500) (boom)."),
        ({"errors": [{"message": "boom", "status": 500}]}, "failed (500) (boom)."),
        ({"type": "error", "message": "boom"}, "failed while it wrote (boom)."),
    ],
)
@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_an_error_of_another_shape_is_explained(dialect, data, says):
    word = chunk("Red") if dialect == "openai" else f"data: {json.dumps(token('Red'))}\n\n".encode()
    event = f"data: {json.dumps(data)}\n\n".encode()
    found = text_of(dialect, word + event)
    assert found[1] == "Red" and found[3].endswith(says)
    assert "(boom)" in text_of(dialect, event)[3]


def test_words_beside_an_answer_that_ends_change_nothing():
    aside = b'data: {"message": "a hint", "usage": {}}\n\n'
    assert text_of("openai", chunk("Red.") + aside + chunk("", "stop")) == (
        "",
        "Red.",
        "stop",
        None,
    )


# ---------------------------------------------------------------- shapes of an answer


@pytest.mark.parametrize(
    ("content", "thought", "text"),
    [
        ([{"type": "text", "text": "Red"}, {"type": "text", "text": "."}], "", "Red."),
        (["Red", "."], "", "Red."),
        ({"type": "text", "text": "Red."}, "", "Red."),
        ([{"type": "output_text", "text": {"value": "Red."}}], "", "Red."),
        ([{"type": "refusal", "refusal": "I will not."}], "", "I will not."),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, "Red."],
            "Hm",
            "Red.",
        ),
        ([{"type": "reasoning", "text": "Hm"}, {"type": "text", "text": "Red."}], "Hm", "Red."),
    ],
)
def test_content_may_be_a_list_of_parts(content, thought, text):
    assert text_of("openai", chunk(content, "stop")) == (thought, text, "stop", None)


@pytest.mark.parametrize(
    "content", [7, True, [{"type": "image_url", "image_url": {}}], {"type": "text"}, [[None, 7]]]
)
def test_a_content_that_is_no_text_is_explained_and_not_dropped(content):
    found = text_of("openai", chunk("Red", None), chunk(content, "stop"))
    assert found[1] == "Red" and "check PRO_ENDPOINT_URL" in found[3]


def test_a_refusal_in_a_field_of_its_own_is_the_answer():
    body = chunk(None, refusal="I will") + chunk(None, refusal=" not.") + chunk(None, "stop")
    assert text_of("openai", body) == ("", "I will not.", "stop", None)


def test_older_servers_send_text_beside_no_delta():
    choices = [{"text": "Red"}, {"text": ".", "finish_reason": "stop"}]
    body = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices)
    assert text_of("openai", body.encode()) == ("", "Red.", "stop", None)


@pytest.mark.parametrize(
    ("dialect", "data"),
    [
        ("openai", {"choices": [{"message": {"content": "Red."}, "finish_reason": "stop"}]}),
        ("openai", {"choices": [{"message": {"content": "Red."}}]}),
        ("tgi", {"generated_text": "Red.\nHuman: more", "details": {"finish_reason": "length"}}),
        ("tgi", [{"generated_text": "Red."}]),
    ],
)
def test_a_whole_answer_is_an_answer(dialect, data):
    reader = reader_of(dialect)
    pieces = [*reader.whole(data), *reader.end()]
    assert "".join(piece.text for piece in pieces) == "Red."
    assert (pieces[-1].done, pieces[-1].error, pieces[-1].finish) == (True, None, "stop")


@pytest.mark.parametrize("data", [{}, {"id": 1}, [], 7, {"choices": []}, {"detail": "Not here"}])
@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_other_json_is_no_answer(dialect, data):
    with pytest.raises(Failure, match="no answer"):
        list(reader_of(dialect).whole(data))


# ---------------------------------------------------------------- a server that never stops


@pytest.mark.parametrize("field", ["content", "reasoning"])
def test_an_answer_has_a_longest_length(field):
    room = 16 * 8 + (SLACK if field == "content" else THOUGHT_SLACK)
    begin = chunk("Red.") if field == "reasoning" else b""
    body = begin + chunk(**{field: "x" * 1000}) * (room // 1000 + 5)
    thought, text, finish, error = text_of("openai", body, tokens=8)
    assert (finish, error) == ("length", None)
    assert len(thought if field == "reasoning" else text) == room


def test_text_that_turns_out_to_be_a_thought_leaves_its_room_to_the_answer():
    body = chunk("x" * 4000) + chunk("</think>") + chunk("y" * 4000, "stop")
    assert text_of("openai", body, tokens=8) == ("x" * 4000, "y" * 4000, "stop", None)


def test_a_thought_that_never_ends_is_an_answer_that_is_all_thought():
    body = chunk("<think>") + chunk("x" * 1000) * 200
    found = text_of("openai", body, tokens=8)
    assert "spent all 8 tokens on its reasoning" in found[3] and found[2] == "length"
