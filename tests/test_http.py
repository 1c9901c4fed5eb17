"""The client of servers: addresses, proxies, TLS, what failures say, asking again, and letting go."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import httpx2
import pytest

from pro_core.http import Client, Patience, persist
from pro_core.http.addresses import address_of, is_loopback, proxy_of
from pro_core.http.client import MAX_BODY
from pro_core.http.error_bodies import MAX_SAID, code_of, kind_of, named_by, parsed, said_by
from pro_core.http.failures import MAX_WORDS, Explainer, Failure, _retry_after, masked
from tests.servers.faulty import Fault, faulty_server
from tests.servers.scripted import scripted

ELSEWHERE = "http://gpu-box.invalid:8000"  # a name that is nobody's, by RFC 2606


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def failure_of(client, method="POST", path="/fine"):
    with pytest.raises(Failure) as caught:
        client.ask(method, path, {})
    return caught.value


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://host", ("https://host", "", "host")),
        (" http://Host:8080/v1/ \n", ("http://host:8080", "/v1", "host:8080")),
        ("http://host//", ("http://host", "", "host")),
        ("http://[::1]:8000/api", ("http://[::1]:8000", "/api", "[::1]:8000")),
        ("http://[::1]", ("http://[::1]", "", "[::1]")),
        ("https://bücher.example/v1", ("https://bücher.example", "/v1", "bücher.example")),
    ],
)
def test_the_parts_of_an_address(url, parts):
    assert address_of(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "host",
            "host:80",
            "ftp://host",
            "http://",
            "http://[::1",
            "http://h:x",
            "http://h:0x1",
        ),
        *("http://u:secret@h", "http://h?key=secret", "http://h#secret", "http://h:99999"),
        *(f"http://{'a' * 70}.example", "http://h\x00st", "http://a b"),
    ],
)
def test_an_invalid_address_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match="^MY_URL ") as caught:
        address_of(url, "MY_URL")
    assert "secret" not in str(caught.value).replace("secret in", "")


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *[(h, True) for h in ("localhost", "127.0.0.1", "127.8.9.10", "::1", "x.localhost")],
        *[(h, True) for h in ("0.0.0.0", "::", "::ffff:127.0.0.1")],
        *[(h, False) for h in ("host", "128.0.0.1", "10.0.0.1", "localhost.example", "::2")],
    ],
)
def test_loopback_hosts_are_this_machine(host, here):
    assert is_loopback(host) == here


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://h", {"http_proxy": "http://p:1"}, "http://p:1"),
        ("http://h", {"http_proxy": "p:1"}, "http://p:1"),
        ("https://h", {"http_proxy": "http://p:1"}, None),
        ("https://h", {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://h", {"all_proxy": "socks5://p:1"}, "socks5://p:1"),
        ("http://h", {"http_proxy": "http://p:1", "no_proxy": "x,h"}, None),
        ("http://a.h", {"http_proxy": "http://p:1", "no_proxy": ".h"}, None),
        ("http://h:80", {"http_proxy": "http://p:1", "no_proxy": "h:80"}, None),
        ("http://h:81", {"http_proxy": "http://p:1", "no_proxy": "h:80"}, "http://p:1"),
        ("http://h", {"http_proxy": "http://p:1", "no_proxy": "*"}, None),
        ("http://10.1.2.3:80", {"http_proxy": "http://p:1", "no_proxy": "x, 10.0.0.0/8"}, None),
        ("http://11.1.2.3", {"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "http://p:1"),
        ("http://[fd00::5]:80", {"http_proxy": "http://p:1", "no_proxy": "fd00::/8"}, None),
        *[
            (f"http://{h}:8000", {"http_proxy": "http://p:1", "all_proxy": "http://p:1"}, None)
            for h in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]", "0.0.0.0")
        ],
    ],
)
def test_the_proxy_is_the_environments_but_never_for_this_machine(
    monkeypatch, url, environment, proxy
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(address_of(url)) == proxy


def test_this_machine_is_asked_directly_and_others_through_the_proxy(monkeypatch):
    with faulty_server({"proxy": Fault(body=b'{"a": 1}')}) as proxy, faulty_server() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert Client(server.url).ask("GET", "/fine").success
        assert proxy.requests == []
        assert Client(ELSEWHERE, "the-token").ask("GET", "/x") == (
            200,
            {"a": 1},
            "text/event-stream",
        )
        [(path, headers, _)] = proxy.requests
        assert path == f"{ELSEWHERE}/x"
        assert headers["authorization"] == "Bearer the-token"


def test_errors_of_a_proxy_name_the_proxy(monkeypatch):
    answers = {
        "proxy": [Fault("502 Bad Gateway", "text/html"), Fault("407 No", headers={"X": "y"})],
        "connect": Fault("407 Proxy Authentication Required"),
    }
    with faulty_server(answers) as proxy:
        host = proxy.url.removeprefix("http://")
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", f"http://me:secret@{host}")
        client = Client(ELSEWHERE)
        answer = client.ask("GET", "/x")
        assert f"failed (502), asked through the proxy {host}." in (
            client.explain.answer(answer.status, answer.data).message
        )
        answer = client.ask("GET", "/x")
        assert f"The proxy {host} asks for a name and a password (407)" in (
            client.explain.answer(answer.status, answer.data).message
        )
        tunnel = failure_of(Client(ELSEWHERE.replace("http:", "https:")))
    assert f"The proxy {host} does not let us through to gpu-box.invalid:8000" in tunnel.message
    assert "secret" not in tunnel.message
    assert tunnel.again is None
    gone = failure_of(client)  # the server is closed: nobody listens at the proxy's port
    assert f"The proxy {host}, used for gpu-box.invalid:8000, cannot be reached" in gone.message
    monkeypatch.setenv("no_proxy", "*")
    assert "The endpoint gpu-box.invalid:8000 cannot be found" in failure_of(client).message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("http://h:port", "http_proxy, https_proxy and all_proxy"),
        ("ftp://h:1", "http_proxy, https_proxy and all_proxy"),
        ("http://[::1", "http_proxy, https_proxy and all_proxy"),
        ("socks5://127.0.0.1:1", "SOCKS proxy, which needs the package socksio"),
    ],
)
def test_an_invalid_proxy_setting_is_one_sentence(monkeypatch, value, says):
    monkeypatch.setenv("http_proxy", value)
    assert says in failure_of(Client(ELSEWHERE)).message
    with faulty_server() as server:
        assert Client(server.url).ask("GET", "/fine").success


# ---------------------------------------------------------------- TLS, names, refusals


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) of a server at 127.0.0.1 that signed itself."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-keyout", folder / "key", "-out", folder / "cert", "-subj", "/CN=nobody"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    return folder / "cert", folder / "key"


@pytest.fixture(scope="module")
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with faulty_server(tls=context) as server:
        yield server


def test_an_unknown_certificate_is_refused_and_a_named_one_accepted(tls, certificate, monkeypatch):
    refused = failure_of(Client(tls.url))
    assert "cannot be trusted: its TLS certificate is not valid" in refused.message
    assert refused.again is None
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert Client(tls.url).ask("GET", "/fine").success
    assert (
        "cannot be trusted" in failure_of(Client(tls.url.replace("127.0.0.1", "localhost"))).message
    )


@pytest.mark.parametrize("there", [True, False])
def test_unreadable_certificates_are_one_sentence(tls, tmp_path, monkeypatch, there):
    file = tmp_path / "none.pem"
    if there:
        file.write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert (
        "SSL_CERT_FILE or SSL_CERT_DIR names no certificates" in failure_of(Client(tls.url)).message
    )


def test_the_wrong_scheme_an_unknown_host_and_a_refused_connection_are_told_apart(tls):
    with scripted(lambda body: (200, [])) as (plain, _):
        wrong = failure_of(Client(plain.replace("http:", "https:")))
    assert "does not speak TLS with us" in wrong.message
    other_way = failure_of(Client(tls.url.replace("https:", "http:")))
    assert "broke off" in other_way.message
    unknown = failure_of(Client(ELSEWHERE))
    assert "gpu-box.invalid:8000 cannot be found: no address is known" in unknown.message
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        refused = failure_of(Client(f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert "the connection was refused" in refused.message
    assert [f.again for f in (wrong, other_way, unknown, refused)] == [None, None, None, "busy"]


@pytest.mark.parametrize("fault", [Fault(reset=True, body=b'{"a"'), Fault(cut=True, body=b'{"a"')])
def test_a_broken_connection_is_not_retried(fault):
    with faulty_server({"x": fault}) as server:
        broken = failure_of(Client(server.url), path="/x")
    assert "broke off" in broken.message
    assert broken.again is None


def test_a_silent_server_and_one_that_sends_too_much():
    answers = {"hold": Fault(hold=True), "much": Fault(drip=(b"x" * 2**20, 0.0))}
    with faulty_server(answers) as server:
        client = Client(server.url, timeout=0.2)
        assert "sent nothing for 0.2 seconds" in failure_of(client, path="/hold").message
        more = failure_of(Client(server.url), path="/much")
    assert "more than an answer can hold" in more.message
    assert MAX_BODY < 2**25


def test_rare_exceptions_have_sentences_too():
    explain = Explainer("h", None, 5)

    def chained(outer, inner):
        outer.__cause__ = inner
        return outer

    for error, says in [
        (httpx2.ConnectTimeout(""), "connecting took too long"),
        (chained(httpx2.ConnectError(""), OSError(101, "")), "its network"),
        (
            chained(httpx2.ConnectError(""), ExceptionGroup("", [ConnectionRefusedError()])),
            "refused",
        ),
        (httpx2.DecodingError(""), "not in the encoding"),
        (httpx2.RemoteProtocolError(""), "broke off"),
        (ValueError("a secret"), "something that is no answer"),
    ]:
        assert says in explain.exception(error).message


def test_the_text_of_an_exception_is_never_shown():
    error = httpx2.ReadError("http://user:secret@h with Bearer secret")
    assert "secret" not in Explainer("h", None, 5).exception(error).message


def test_redirects_are_not_followed_and_cookies_not_kept():
    jump = {"Location": "http://127.0.0.1:9/", "Set-Cookie": "a=b"}
    with faulty_server({"jump": Fault("307 Temporary Redirect", headers=jump)}) as server:
        client = Client(server.url, "the-token")
        assert client.ask("POST", "/jump", {}).status == 307
        client.ask("GET", "/fine")
        assert "cookie" not in server.requests[-1][1]


@pytest.mark.parametrize("offline", ["1", None])
def test_the_client_works_with_the_hub_switched_off_and_with_ipv6(monkeypatch, offline):
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with faulty_server() as server:
        assert Client(server.url).ask("GET", "/fine").success
    with socket.socket(socket.AF_INET6) as free:
        try:
            free.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        refused = failure_of(Client(f"http://[::1]:{free.getsockname()[1]}/v1"))
    assert refused.message.startswith("The endpoint [::1]:") and "refused" in refused.message


# ---------------------------------------------------------------- what servers say


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "out of memory"}, "out of memory"),
        ({"error": {"message": "no", "code": 400}}, "no"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "quota"}}},
         "Provider returned error: quota"),
        ({"error": {"message": "Provider", "metadata": {"raw": '{"error": {"message": "quota"}}'}}},
         "Provider: quota"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too big"}, {"msg": "bad"}]}, "too big; bad"),
        ({"object": "error", "message": "no such model", "code": 404}, "no such model"),
        ({"errors": [{"message": "one", "code": 1}, {"message": "two"}]}, "one; two"),
        ({"error": "Input validation", "error_type": "validation"}, "Input validation"),
        ({"error": {"error": {"error": "deep"}}}, "deep"),
        ({"error": '{"message": "inside"}'}, "inside"),
        ([{"error": {"message": "Gemini's list"}}], "Gemini's list"),
        ("plain text\n of\ttwo lines", "plain text of two lines"),
        ({"error": {"code": 5}}, ""),
        ({"error": True}, ""),
        (None, ""),
        ("a\x00b\x1b[31mc\u202ed", "ab[31mcd"),
    ],
)  # fmt: skip
def test_error_bodies_of_every_shape_are_read(body, said):
    raw = body if isinstance(body, str) else json.dumps(body)
    assert said_by(parsed(raw.encode())) == said


def test_bodies_that_are_hostile_or_no_words():
    assert parsed(b"<html><h1>502</h1></html>") == ""
    assert said_by(parsed(b"[" * 100_000)) == said_by("[" * 100_000) != ""
    deep = {}
    for _ in range(500):
        deep = {"error": deep}
    assert said_by(deep) == ""
    assert len(said_by("x" * 10**6)) == MAX_SAID
    assert len(Explainer("h", None, 1).status(500, b"x" * 10**6).message) < MAX_WORDS + 60


@pytest.mark.parametrize(
    ("data", "code", "kind", "named"),
    [
        ({"error": {"code": 503, "type": "Overloaded"}}, 503, "overloaded", ""),
        ({"error": {"code": "429"}}, 429, "", ""),
        ({"error": {"code": "unsupported_parameter", "param": "max_tokens"}}, None, "", "max_tokens"),
        ({"object": "error", "code": 400, "type": "BadRequestError", "param": None}, 400,
         "badrequesterror", ""),
        ({"error": "x", "error_type": "overloaded"}, None, "overloaded", ""),
        ({"detail": [{"loc": ["body", "seed"], "type": "extra_forbidden"}]}, None,
         "extra_forbidden", "seed"),
        ({"error": {"code": 12, "status": 404}}, 404, "", ""),
        ("text", None, "", ""),
    ],
)  # fmt: skip
def test_an_error_object_names_its_code_kind_and_parameter(data, code, kind, named):
    assert (code_of(data), kind_of(data), named_by(data)) == (code, kind, named)


TOKEN = "sk-abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    "echo",
    [
        *(TOKEN, f"Bearer {TOKEN}", f"'{TOKEN}'", f"{TOKEN},{TOKEN}", f"x{TOKEN}x"),
        *("sk-abcde", "uvwxyz", "klmnopq", "sk-ab***wxyz", "sk-a...wxyz", "sk-***", "****wxyz"),
        *("sk-ab…", "sk-ab••••yz", "sk-XXXXXXwxyz", "sk-abcdefgh************wxyz"),
    ],
)
def test_the_token_and_parts_of_it_are_masked(echo):
    found = masked(f"Incorrect key: {echo}. See the page.", TOKEN)
    assert "(token)" in found
    assert found.startswith("Incorrect key: ") and found.endswith(". See the page.")
    for i in range(len(TOKEN) - 5):
        assert TOKEN[i : i + 6] not in found
    for part in ("sk-a", "wxyz", "yz"):
        assert part not in found


@pytest.mark.parametrize(
    "text", ["", "nothing of it", "abc de", "wait...", "a ** b", "2***3", "**bold** and more..."]
)
def test_other_words_are_left_alone(text):
    assert masked(text, TOKEN) == masked(text, None) == text


def test_a_short_token_is_masked_as_a_word():
    assert masked("key t1 of t12", "t1") == "key (token) of t12"


@pytest.mark.parametrize("code", [400, 403, 404, 422, 429, 500, 503])
def test_no_sentence_contains_a_part_of_the_token(code):
    body = json.dumps({"error": {"message": f"key sk-ab***wxyz, {TOKEN[:12]}"}}).encode()
    failure = Explainer("h", TOKEN, 1).status(code, body)
    for text in (failure.message, failure.words):
        assert "wxyz" not in text and "sk-ab" not in text
    assert "(token)" in failure.message


# ---------------------------------------------------------------- asking again


def test_retry_after_as_seconds_and_as_a_date():
    assert _retry_after({"retry-after": "7"}) == 7
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for value in ("soon", "", "-1", "1e9", "٣"):
        assert _retry_after({"retry-after": value}) is None
    assert _retry_after({}) is None


@pytest.mark.parametrize(
    ("code", "again"),
    [(429, "busy"), (529, "busy"), (503, "waking"), (202, "waking")]
    + [(code, None) for code in (301, 400, 401, 403, 404, 405, 407, 422, 500, 502, 504)],
)
def test_busy_and_waking_statuses_are_retried(code, again):
    assert Explainer("h", None, 1).status(code).again == again


def persisting(failures, patience=None):
    """(what came of it, the pauses, what was told) of a server that fails like this, then answers."""
    left, pauses, told = list(failures), [], []

    async def ask():
        if left:
            raise left.pop(0)
        return "answer"

    async def sleep(seconds):
        pauses.append(seconds)

    def waiting(failure, waited):
        told.append(waited)

    async def run():
        try:
            return await persist(ask, patience or Patience(), sleep, waiting)
        except Failure as failure:
            return failure.message

    return asyncio.run(run()), pauses, told


def busy(wait=None):
    return Failure("busy", "busy", wait)


def waking(wait=None):
    return Failure("waking", "waking", wait)


def test_a_busy_server_is_retried_a_few_times():
    assert persisting([busy()] * 3) == (
        "answer",
        [0.5, 1.0, 2.0],
        pytest.approx([0, 0.5, 1.5], abs=0.2),
    )
    assert persisting([busy()] * 4)[:2] == ("busy", [0.5, 1.0, 2.0])
    assert persisting([busy(7)])[:2] == ("answer", [5, 2])
    assert persisting([busy(11)])[:2] == ("busy", [])
    assert persisting([Failure("no")])[:2] == ("no", [])


def test_a_waking_server_is_retried_while_patience_lasts():
    answer, pauses, told = persisting([waking()] * 50)
    assert answer == "answer"
    assert pauses == [0.5, 1.0, 2.0, 4.0] + [5.0] * 46
    assert told == pytest.approx([sum(pauses[:i]) for i in range(50)], abs=0.5)
    answer, pauses, _ = persisting([waking()] * 500, Patience(waking=60))
    assert answer == "waking" and 50 < sum(pauses) <= 60
    assert persisting([waking()], Patience(waking=0))[:2] == ("waking", [])


def test_the_pause_that_a_server_names_is_kept_and_reported():
    assert persisting([waking(12)])[:2] == ("answer", [5, 5, 2])
    assert persisting([waking(0)])[:2] == ("answer", [0.5])
    assert persisting([waking(3600)])[:2] == ("waking", [])


def test_busy_retries_after_waking_up_are_counted_separately():
    assert persisting([waking()] * 20 + [busy()] * 3)[0] == "answer"


# ---------------------------------------------------------------- letting go


async def cancelled(work, begun):
    """How long it takes to end work once ``begun`` says that it waits for somebody else."""
    task = asyncio.ensure_future(work)
    while not begun():
        await asyncio.sleep(0.01)
    assert not task.done()
    left = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - left


@pytest.mark.parametrize(
    "fault",
    [
        Fault(hold=True),
        Fault(stall=True),
        Fault(body=b"data: a\n\n", stall=True),
        Fault(body=b'{"a"', stall=True),
    ],
)
def test_leaving_closes_every_connection_at_once(fault):
    async def read(session):
        async with session.post("/x", {}) as reply:
            if await reply.is_json():
                await reply.json()
            while await reply.more() is not None:
                pass

    async def leave(client):
        async def all_of_them():
            async with client.session() as session:
                await asyncio.gather(*(read(session) for _ in range(8)))

        assert await cancelled(all_of_them(), lambda: len(server.requests) == 8) < 0.5
        for _ in range(8):  # while this loop still runs: no end of it closes them
            assert await asyncio.to_thread(server.hung_up.acquire, timeout=1)

    with faulty_server({"x": fault}) as server:
        asyncio.run(leave(Client(server.url)))


def test_leaving_does_not_wait_for_the_address_of_a_host(monkeypatch):
    asked, found = threading.Event(), threading.Event()

    def look_up(*arguments, **options):
        asked.set()
        found.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "")

    async def leave():
        async with Client(ELSEWHERE).session() as session:
            try:
                return await cancelled(session.ask("GET", "/x"), asked.is_set)
            finally:
                found.set()

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert asyncio.run(leave()) < 0.5


@pytest.mark.parametrize("outcome", ["models", Failure("no")])
def test_concurrent_look_ups_run_once(outcome):
    looks = []

    async def look_up():
        looks.append(1)
        await asyncio.sleep(0)
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    async def run():
        async with Client(ELSEWHERE).session() as session:
            asks = [session.shared("models", look_up) for _ in range(3)]
            found = await asyncio.gather(*asks, return_exceptions=True)
            assert found == [outcome] * 3 and len(looks) == 1
            await asyncio.gather(session.shared("models", look_up), return_exceptions=True)
            assert len(looks) == 2  # one that comes later asks again

    asyncio.run(run())


def test_leaving_ends_a_shared_look_up():
    ended = []

    async def look_up():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def leave():
        async with Client(ELSEWHERE).session() as session:
            waiting = [session.shared("models", look_up) for _ in range(3)]
            task = asyncio.gather(*waiting)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            assert ended == [1]

    asyncio.run(leave())


def test_one_client_serves_many_event_loops():
    with faulty_server() as server:
        client = Client(server.url)

        async def ask():
            async with client.session() as session:
                return (await session.ask("GET", "/fine")).status

        assert [asyncio.run(ask()) for _ in range(3)] == [200] * 3
        assert client.ask("GET", "/fine").status == 200
