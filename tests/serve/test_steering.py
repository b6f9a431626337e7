"""Steering vectors over HTTP: wherever a request names adapters, several at once, and batches that
requests with different vectors share.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.engine.scheduler import Scheduler
from alora_gguf.serve import Server
from tests.support.serving import exact_base, open_exact, serving
from tests.support.vectors import rows

SAID = [{"role": "user", "content": "When does the Bomel library open?"}]
_ASKED: dict[str, Any] = {"messages": SAID, "temperature": 0, "max_tokens": 24}


def _write(path: Path, seed: int, length: float = 400.0) -> Path:
    """A vector behind layer 3 of the demo model, so long that replies are others."""
    n_embd = ag.BaseFile.read(exact_base()).n_embd or 0
    row = rows(seed=seed, n=n_embd)
    part = ag.Directions(3, "block", "add", 1.0, length * row / np.linalg.norm(row))
    ag.write_vector(path, [part], architecture="granite")
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vectors")
    return {name: _write(folder / f"{name}.gguf", seed) for seed, name in enumerate(("one", "two"))}


def _open(vectors: dict[str, Path]) -> ag.Model:
    model = open_exact()
    for name, path in vectors.items():
        model.load_adapter(name, path)
    return model


@pytest.fixture(scope="module")
def server(vectors: dict[str, Path]) -> Iterator[Server]:
    with serving(lambda: _open(vectors)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def replies(vectors: dict[str, Path]) -> dict[str, str]:
    """What the library itself replies, in a model of its own."""
    asked: dict[str, ag.AdapterLike | None] = {
        "base": None,
        "one": "one",
        "half": {"one": 0.5},
        "both": {"one": 1.0, "two": -0.5},
        "beside": {"jailbreak": 1.0, "two": 1.0},
    }
    with _open(vectors) as model:
        found = {}
        for name, adapter in asked.items():
            with model.chat(messages=SAID) as chat:
                found[name] = chat.reply(max_tokens=24, temperature=0, adapter=adapter).text
    assert len(set(found.values())) == len(found)  # each does something else
    return found


def said(client: httpx.Client, **fields: Any) -> str:
    response = client.post("/v1/chat/completions", json={**_ASKED, **fields})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def refused(client: httpx.Client, **fields: Any) -> tuple[int, str]:
    response = client.post("/v1/chat/completions", json={**_ASKED, **fields})
    return response.status_code, str(response.json()["error"]["message"])


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, "base"),
        ({"steer": []}, "base"),
        ({"steer": {"one": 0}}, "base"),
        ({"steer": [{"name": "one"}]}, "one"),
        ({"steer": [{"name": "one", "scale": 1}]}, "one"),
        ({"steer": {"one": 0.5}}, "half"),
        ({"steer": {"one": 1, "two": -0.5}}, "both"),
        ({"steer": [{"name": "two", "scale": -0.5}, {"name": "one"}]}, "both"),
        ({"model": "demo:one"}, "one"),
        ({"adapter": "one"}, "one"),
        ({"adapter_id": "one"}, "one"),
        ({"chat_template_kwargs": {"adapter_name": "one"}}, "one"),
        ({"lora": [{"name": "one", "scale": 0.5}]}, "half"),
        ({"lora": [{"name": "one"}, {"name": "two", "scale": -0.5}]}, "both"),
        ({"lora": [{"name": "jailbreak"}, {"name": "two", "scale": 1}]}, "beside"),
        ({"adapter": "jailbreak", "steer": {"two": 1}}, "beside"),
        ({"model": "demo:one", "steer": {"two": -0.5}}, "both"),
    ],
)
def test_every_spelling_comes_to_the_same(
    fields: dict[str, Any], wanted: str, client: httpx.Client, replies: dict[str, str]
) -> None:
    assert said(client, **fields) == replies[wanted]


def test_by_the_ids_of_llama_server(client: httpx.Client, replies: dict[str, str]) -> None:
    listed = client.get("/lora-adapters").json()
    ids = {each["name"]: each["id"] for each in listed}
    assert {"one", "two"} <= ids.keys()
    every = [{"id": n, "scale": {"one": 1, "two": -0.5}.get(name, 0)} for name, n in ids.items()]
    assert said(client, lora=every) == replies["both"]
    assert said(client, steer=[{"id": ids["one"], "scale": 0.5}]) == replies["half"]
    both = {"id": ids["one"], "name": "one", "scale": 0.5}
    assert said(client, steer=[both]) == said(client, lora=[both]) == replies["half"]


def test_at_the_other_doors(client: httpx.Client, replies: dict[str, str]) -> None:
    steer = {"one": 0.5}
    found = client.post(
        "/v1/responses",
        json={"input": SAID[0]["content"], "temperature": 0, "max_output_tokens": 24,
              "steer": steer},
    ).json()  # fmt: skip
    assert found["output"][-1]["content"][0]["text"] == replies["half"]
    found = client.post(
        "/api/chat",
        json={"model": "demo", "messages": SAID, "stream": False, "steer": steer,
              "options": {"temperature": 0, "num_predict": 24}},
    ).json()  # fmt: skip
    assert found["message"]["content"] == replies["half"]
    asked = {"prompt": "The library", "temperature": 0, "max_tokens": 12}
    texts = {
        name: client.post("/v1/completions", json={**asked, **fields}).json()["choices"][0]["text"]
        for name, fields in {"base": {}, "steered": {"steer": steer}}.items()
    }
    assert texts["base"] != texts["steered"]
    embedded = [
        client.post("/v1/embeddings", json={"input": "a library", **fields}).json()["data"][0]
        for fields in ({}, {"steer": steer})
    ]
    assert embedded[0]["embedding"] != embedded[1]["embedding"]


def test_the_answer_says_who_computed_it(client: httpx.Client) -> None:
    found = client.post("/v1/chat/completions", json={**_ASKED, "steer": {"one": 1, "two": 1}})
    assert found.json()["model"] == "demo:one+two"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"steer": {"ome": 1}},
            "steer: 'ome' is none, expected a steering vector that is served here (there are: one, "
            "two); did you mean one?",
        ),
        (
            {"steer": {"jailbreak": 1}},
            "steer: 'jailbreak' is an adapter with weights, which adapter or lora names, expected "
            "a steering vector that is served here (there are: one, two)",
        ),
        ({"steer": [{"id": 99}]}, "steer: '99' is none, expected a steering vector"),
        ({"steer": "one"}, "steer: expected vectors as {"),
        ({"steer": ["one"]}, "steer[0]: expected vectors as {"),
        ({"steer": [{"name": "one", "scale": "1"}]}, "steer[0]: expected vectors as {"),
        ({"steer": [{"name": "one", "scale": True}]}, "steer[0]: expected vectors as {"),
        ({"steer": [{"scale": 1}]}, "steer[0]: expected vectors as {"),
        (
            {"steer": [{"name": "two"}, {"name": "one", "strength": 2}]},
            "steer[1]: has a field 'strength'; known are name, id, scale",
        ),
        (
            {"steer": [{"name": "one", "id": 0}]},
            "steer[0]: the name is 'one', but the id 0 is not its; give one of them",
        ),
        (
            {"lora": [{"name": "one", "id": 0, "scale": 1}]},
            "lora[0]: the name is 'one', but the id 0 is not its; give one of them",
        ),
        (
            {"steer": {"one": 1001}},
            "the scale of 'one' must be a finite number in [-1000.0, 1000.0], got 1001.0",
        ),
        ({"steer": [{"name": "one"}, {"name": "one"}]}, "steer: 'one' is named twice; give it one"),
        ({"steer": {"one": 1}, "adapter": "one"}, "steer: 'one' is named twice; give it one"),
        (
            {"lora": [{"name": "jailbreak"}, {"name": "answerability"}, {"name": "one"}]},
            "together they can have but one",
        ),
        ({"lora": [{"name": "one"}], "adapter": "two"}, "names two adapters: adapter says 'two'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], text: str, client: httpx.Client) -> None:
    status, message = refused(client, **fields)
    assert status == 400
    assert text in message


def test_a_vector_is_listed_as_one(client: httpx.Client, vectors: dict[str, Path]) -> None:
    listed = {each["name"]: each for each in client.get("/v1/adapters").json()["data"]}
    assert listed["one"] == {
        "name": "one",
        "kind": "vector",
        "sha256": ag.VectorFile.read(vectors["one"]).identity,
        "generation": 1,
        "rank": 1,
        "invocation": {"tokens": [], "text": None},
        "begins": "reply",
        "operation": "add",
        "hook": "block",
        "layers": [3],
        "intrinsic": False,
        "arguments": [],
    }
    assert listed["jailbreak"]["kind"] == "alora"
    assert client.get("/v1/models/demo:one").json()["root"] == "one.gguf"
    shown = client.post("/api/show", json={"model": "demo:one"}).json()
    assert shown["model_info"]["adapter.kind"] == "vector"


def test_a_vector_is_loaded_and_unloaded(vectors: dict[str, Path]) -> None:
    folder = vectors["one"].parent
    with (
        serving(open_exact, adapters_dir=folder) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        before = said(client)
        asked = {"lora_name": "formal", "lora_path": "one.gguf"}
        assert client.post("/v1/load_lora_adapter", json=asked).status_code == 200
        assert said(client, steer={"formal": 1}) != before
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "formal"}).is_success
        status, message = refused(client, steer={"formal": 1})
        assert (status, "there are: none" in message) == (400, True)


def test_several_under_one_name(vectors: dict[str, Path], replies: dict[str, str]) -> None:
    def opened() -> ag.Model:
        model = _open(vectors)
        model.combine("house", {"one": 1.0, "two": -0.5})
        model.combine("careful", {"jailbreak": 1.0, "one": 0.5})
        return model

    with (
        serving(opened) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert said(client, adapter="house") == replies["both"]
        assert said(client, model="demo:house") == replies["both"]
        listed = {each["name"]: each for each in client.get("/v1/adapters").json()["data"]}
        assert (listed["house"]["kind"], listed["house"]["begins"]) == ("combination", "reply")
        paths = {each["name"]: each["path"] for each in client.get("/lora-adapters").json()}
        assert (paths["house"], paths["one"]) == ("", "one.gguf")
        assert client.get("/v1/models/demo:house").json()["root"] == ""
        assert "demo:house" not in client.get("/api/tags").text  # a file each
        assert refused(client, steer={"house": 1}) == (
            400,
            "steer: 'house' is a combination, which adapter names, expected a steering vector that "
            "is served here (there are: one, two)",
        )
        status, message = refused(client, lora=[{"name": "careful"}, {"name": "answerability"}])
        assert (status, "together they can have but one" in message) == (400, True)


def test_adapters_with_weights_write_together(vectors: dict[str, Path]) -> None:
    paths = demo.adapter_paths()
    both = {"jailbreak": 0.5, "uncertainty": -1.0}

    def opened() -> ag.Model:
        model = open_exact()
        for name in both:
            model.unload_adapter(name)
            model.load_adapter(name, paths[name], from_start=True)
        return model

    with opened() as model, model.chat(messages=SAID) as chat:
        wanted = chat.reply(max_tokens=24, temperature=0, adapter=both).text
    with (
        serving(opened) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        alone = {said(client, lora=[{"name": name, "scale": at}]) for name, at in both.items()}
        asked = [{"name": name, "scale": at} for name, at in both.items()]
        assert said(client, lora=asked) == wanted
        assert said(client, lora=[*reversed(asked)]) == wanted
        assert wanted not in alone


def test_clients_with_different_vectors_share_batches(
    vectors: dict[str, Path], monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    """Each gets what it gets alone, and all of them are in one batch at some time."""
    asked: list[dict[str, Any]] = [
        {"steer": {"one": 1}},
        {"steer": {"one": 1, "two": -0.5}},
        {"steer": {"two": 1}, "adapter": "jailbreak"},
        {},
    ]
    sizes: list[int] = []
    real = Scheduler._compose

    def spy(self: Scheduler) -> Any:
        work = real(self)
        sizes.append(len(work.requests))
        return work

    with (
        serving(lambda: _open(vectors)) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        alone = [said(client, **fields) for fields in asked]
        assert len(set(alone)) == len(asked)
        monkeypatch.setattr(Scheduler, "_compose", spy)
        ready = threading.Barrier(len(asked))

        def ask(fields: dict[str, Any]) -> str:
            with httpx.Client(base_url=server.url, timeout=120) as own:
                ready.wait()
                return said(own, **fields)

        with ThreadPoolExecutor(len(asked)) as pool:
            assert list(pool.map(ask, asked)) == alone
    assert max(sizes) == len(asked)
