"""`bramble serve` as its users meet it: a process of its own, asked by OpenAI's own client."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from agent.llm.answering import Sampling
from agent.llm.chat import ChatMessage
from agent.llm.runtime import Runtime
from agent.llm.seedling import SEEDLING_PATH
from tests.integration.processes import Running, bramble
from tests.models import Shape, write_model
from tests.serving.household import Household, make_household, serving

MODELS = ("base", "community", "community+personal")
QUESTION = "How does the owner of a device stop a program that runs?"
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Household:
    return make_household(tmp_path_factory.mktemp("serve") / "device")


@pytest.fixture(scope="module")
def url(household: Household) -> Iterator[str]:
    log = household.home.root.parent / "serve.log"
    with serving(log, "--home", household.home.root, "--queue", "1") as (_process, url):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: OpenAI, model: str, text: str = QUESTION, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, **options}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)


def said(client: OpenAI, model: str, text: str = QUESTION, **options: Any) -> str:
    return str(chat(client, model, text, **options).choices[0].message.content)


def post(url: str, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Send a request that OpenAI's client would not."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=20)
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request("POST", f"{where.path}/{path}", body, sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def alone(household: Household, model: str, text: str = QUESTION, tokens: int = 24) -> str:
    """What llama.cpp says with these adapters and nobody else about."""
    paths = household.adapters()[model]
    with Runtime(base_path=SEEDLING_PATH, n_ctx=512, n_threads=1, scoring=False) as runtime:
        runtime.use([(runtime.load_adapter(path), 1.0) for path in paths])
        prompt = runtime.render_chat([ChatMessage("user", text)])
        with runtime.answer(prompt, max_tokens=tokens, sampling=Sampling()) as answer:
            pieces = []
            while answer.finish is None:
                pieces.append(answer.step())
    return "".join(pieces)


def test_three_models_are_listed_and_each_answers_as_its_adapters_say(client: OpenAI, household: Household) -> None:
    assert [model.id for model in client.models.list()] == list(MODELS)
    assert client.models.retrieve("community+personal").id == "community+personal"
    answers = {model: chat(client, model) for model in MODELS}
    texts = {model: str(answer.choices[0].message.content) for model, answer in answers.items()}
    assert len(set(texts.values())) == 3
    for model, name in zip(MODELS, ("base", "community", "personal"), strict=True):
        assert texts[model] == alone(household, name)
        assert answers[model].model == model
    assert chat(client, "personal").model == "community+personal"
    assert len({answer.system_fingerprint for answer in answers.values()}) == 3


def test_answers_count_their_tokens_and_say_why_they_ended(client: OpenAI) -> None:
    short = chat(client, "base", max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert (short.usage.completion_tokens, short.usage.total_tokens) == (3, short.usage.prompt_tokens + 3)
    whole = said(client, "base")
    word = whole.split()[2]
    cut = chat(client, "base", stop=word)
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(word)]
    assert said(client, "base", stop=["never there", word]) == cut.choices[0].message.content
    text = client.completions.create(model="base", prompt="The owner of the", temperature=0)
    assert text.usage is not None
    assert text.usage.completion_tokens <= 16
    assert text.choices[0].text


def test_stream_says_the_same_in_pieces_and_ends_with_its_counts(client: OpenAI) -> None:
    whole = chat(client, "community")
    chunks = list(chat(client, "community", stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert len(deltas) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    pieces = list(client.completions.create(model="base", prompt="The", max_tokens=6, temperature=0, stream=True))
    once = client.completions.create(model="base", prompt="The", max_tokens=6, temperature=0)
    assert "".join(piece.choices[0].text for piece in pieces) == once.choices[0].text
    assert all(piece.usage is None for piece in pieces)


def test_raw_stream_ends_with_done(url: str) -> None:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=20)
    body = json.dumps({"model": "base", "prompt": "The", "max_tokens": 2, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    lines = response.read().decode().split("\n\n")
    connection.close()
    assert str(response.headers["content-type"]).startswith("text/event-stream")
    assert lines[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.2, "seed": 11}])
def test_two_clients_at_once_with_different_adapters_get_what_each_gets_alone(
    client: OpenAI, options: dict[str, Any]
) -> None:
    questions = {"community": "What is a program?", "community+personal": "Where is the text that I wrote?"}
    options = {**options, "max_tokens": 120}
    before = {model: said(client, model, text, **options) for model, text in questions.items()}
    ready = threading.Barrier(2)

    def listen(model: str) -> tuple[str, float, float]:
        ready.wait()
        times, pieces = [], []
        for chunk in chat(client, model, questions[model], stream=True, **options):
            times.append(time.monotonic())
            pieces.append(chunk.choices[0].delta.content or "")
        return "".join(pieces), times[0], times[-1]

    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            heard = dict(zip(questions, pool.map(listen, questions), strict=True))
            assert {model: text for model, (text, _, _) in heard.items()} == before
            (_, begins, ends), (_, other_begins, other_ends) = heard.values()
            if max(begins, other_begins) < min(ends, other_ends):
                return
    pytest.fail("the answers were never given at the same time")


def test_seed_repeats_an_answer_and_another_seed_does_not(client: OpenAI) -> None:
    first, again, other = (said(client, "base", temperature=1.3, seed=seed) for seed in (5, 5, 6))
    assert first == again != other


def test_second_question_of_a_conversation_is_not_read_from_the_start(client: OpenAI) -> None:
    long = "The device keeps the text that its owner wrote. " * 25
    before = chat(client, "community", long)
    turns = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": before.choices[0].message.content},
        {"role": "user", "content": "And then?"},
    ]
    after = client.chat.completions.create(model="community", messages=turns, temperature=0, max_tokens=8)
    assert after.usage is not None
    assert after.usage.prompt_tokens_details is not None
    assert after.usage.prompt_tokens_details.cached_tokens == before.usage.prompt_tokens // 128 * 128 > 0


def test_new_release_and_new_personal_adapter_are_used_without_a_restart(client: OpenAI, household: Household) -> None:
    before = said(client, "community")
    household.adopt(len(household.releases) + 30)
    after = said(client, "community")
    assert after != before
    assert after == alone(household, "community")
    mixed = said(client, "personal")
    household.personalise(len(household.releases) + 60)
    other = said(client, "personal")
    assert other not in {mixed, after}
    assert other == alone(household, "personal")
    (household.home.work / "adapters" / "personal.gguf").unlink()
    assert [model.id for model in client.models.list()] == ["base", "community"]
    with pytest.raises(openai.NotFoundError, match="community"):
        said(client, "personal")
    household.personalise(2)
    assert said(client, "personal") == alone(household, "personal")


def test_unknown_model_is_told_from_a_wrong_path(client: OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        said(client, "gpt-4o")
    assert unknown.value.code == "model_not_found"
    assert "community+personal" in unknown.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    status, answer, _ = post(url, "responses", b"{}")
    assert (status, answer["error"]["code"]) == (404, "unknown_url")


def test_conversation_longer_than_the_context_is_refused_by_its_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        said(client, "base", "word " * 2000)
    assert long.value.code == "context_length_exceeded"
    assert "512" in long.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("temperature", -1),
        ("max_tokens", 0),
    ],
)
def test_what_is_not_offered_is_refused_by_name(client: OpenAI, name: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        said(client, "base", **{name: value})
    assert refused.value.param == name
    assert name in refused.value.message


def test_bodies_that_are_no_request_are_refused(url: str) -> None:
    ask = b'{"model": "base", "prompt": "The"}'
    for body, headers, status, code in (
        (b"{", {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
        (b"3", {}, 400, "invalid_json"),
        (b'{"model": "base", "messages": []}', {}, 400, "invalid_value"),
        (b'{"model": "base"}', {}, 400, "missing_required_parameter"),
        (ask, {"Content_Type": "text/plain"}, 415, "unsupported_media_type"),
        (ask + b" " * (1 << 20), {}, 413, "request_too_large"),
    ):
        found, answer, _ = post(url, "chat/completions", body, **headers)
        assert (found, answer["error"]["code"]) == (status, code)
        assert answer["error"]["type"] == "invalid_request_error"


def test_name_that_was_made_to_mean_this_machine_is_refused(url: str) -> None:
    ask = b'{"model": "base", "prompt": "The", "max_tokens": 1}'
    for name in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"):
        status, answer, headers = post(url, "completions", ask, Host=name)
        assert (status, answer["error"]["code"]) == (403, "host_not_allowed")
    for name in ("localhost", "LOCALHOST:8077", "127.0.0.1", "[::1]:8077"):
        status, _, headers = post(url, "completions", ask, Host=name, Origin="https://evil.example")
        assert status == 200
        assert not [header for header in headers if header.startswith("access-control")]


def test_requests_beyond_slots_and_queue_are_told_to_come_back(client: OpenAI) -> None:
    ready = threading.Barrier(10)

    def ask(number: int) -> object:
        ready.wait()
        try:
            return chat(client, MODELS[number % 3], max_tokens=150, temperature=1.0, seed=1, stop=["zzz"]).usage
        except openai.APIStatusError as error:
            return error

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(ask, range(10)))
    refused = [result for result in results if isinstance(result, openai.APIStatusError)]
    assert 1 <= len(refused) <= 7  # two slots and one that waits are served, at least
    assert {(error.status_code, error.code) for error in refused} == {(503, "queue_full")}
    assert int(refused[0].response.headers["retry-after"]) >= 1
    assert said(client, "base")


# --- a slow model with one slot, behind a key ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose answers go on for a long time."""
    shape = Shape(layers=6, hidden=512, ffn=1024, heads=8, kv_heads=8, context=8192)
    return write_model(tmp_path_factory.mktemp("slow") / "slow.gguf", shape)


@pytest.fixture
def guarded(slow: Path, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    """One slot, no queue, a key, and little patience at the end."""
    options = ("--slots", "1", "--queue", "0", "--context", "8192", "--grace", "0.3")
    with serving(tmp_path / "log", "--base", slow, *options, environment={"BRAMBLE_API_KEY": KEY}) as found:
        yield found


def endless(client: OpenAI) -> Any:
    return client.completions.create(model="base", prompt="the", max_tokens=8000, temperature=0, stream=True)


def test_key_is_asked_for_a_client_that_leaves_frees_its_slot_and_the_end_is_orderly(
    guarded: tuple[Running, str],
) -> None:
    process, url = guarded
    for key in ("wrong", "", KEY[:-1], KEY + "x"):
        with (
            OpenAI(base_url=url, api_key=key or "-", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"
    assert post(url, "completions", b"{}")[0] == 401
    with OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        stream = endless(client)
        assert next(iter(stream)).choices[0].text is not None
        with pytest.raises(openai.InternalServerError) as busy:
            client.completions.create(model="base", prompt="the", max_tokens=1)
        assert busy.value.code == "queue_full"
        stream.close()
        ends = time.monotonic() + 20
        while True:
            try:
                client.completions.create(model="base", prompt="the", max_tokens=1)
                break
            except openai.InternalServerError:
                assert time.monotonic() < ends, "the slot of a client that left is still taken"
        stream = endless(client)
        next(iter(stream))
        process.process.terminate()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert process.wait_ended() == 0


def test_address_that_is_taken_or_not_safe_is_explained(slow: Path, url: str, tmp_path: Path) -> None:
    nobody = bramble("serve", "--home", tmp_path / "nothing")
    assert nobody.returncode == 11
    assert "bramble init" in nobody.stderr
    port = str(urlsplit(url).port)
    taken = bramble("serve", "--base", slow, "--port", port)
    assert taken.returncode == 91
    assert port in taken.stderr
    assert "--port" in taken.stderr
    open_to_all = bramble("serve", "--base", slow, "--host", "0.0.0.0", "--port", "0")
    assert open_to_all.returncode == 16
    assert "BRAMBLE_API_KEY" in open_to_all.stderr
