"""Several models in one server, and the names they answer to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.lifecycle import ANSWER, QUESTION, replace_run
from support.server import RunningServer, serving, until
from windlass import EngineConfig
from windlass.demo import model_directory
from windlass.engine.state import EngineState
from windlass.errors import LoadError
from windlass.serve import build
from windlass.server.served import ModelSpec, ServedModels
from windlass.server.settings import ServerSettings

PATH = str(model_directory())
PLAIN = ModelSpec("plain", EngineConfig(num_threads=1), aliases=("windlass-demo",))
SMALL = ModelSpec("small", EngineConfig(model=PATH, num_threads=1, quantization="q4f16_1"), aliases=(PATH,))


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(PLAIN, SMALL) as running:
        yield running


def test_each_answers_to_its_names(server: RunningServer) -> None:
    names = {None: "plain", "plain": "plain", "windlass-demo": "plain", "small": "small", PATH: "small"}
    for given, name in names.items():
        answer = server.chat(QUESTION, temperature=0, **({} if given is None else {"model": given}))
        assert (answer.status, answer.json["model"]) == (200, name)
        assert answer.json["choices"][0]["message"]["content"] == ANSWER
    plain, small = (model.loaded for model in server.server.served.all)
    assert plain is not None
    assert small is not None
    assert (plain.engine_config.quantization, small.engine_config.quantization) == (None, "q4f16_1")


def test_the_list_has_names_only(server: RunningServer) -> None:
    assert [card["id"] for card in server.request("GET", "/v1/models").json["data"]] == ["plain", "small"]
    assert server.request("GET", f"/v1/models/{PATH}").json["id"] == "small"
    assert server.request("GET", "/v1/models/windlass-demo").json["id"] == "plain"


@pytest.mark.parametrize("name", ["gpt-9", "", "PLAIN", 5, ["plain"]])
def test_other_names_are_404_with_those_there_are(server: RunningServer, name: object) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ):
        refused = server.request("POST", path, {**body, "model": name})
        assert (refused.status, refused.json["error"]["code"]) == (404, "model_not_found")
        assert "plain, small" in refused.json["error"]["message"]


def test_names_must_differ_and_the_first_copy_has_the_alias() -> None:
    with pytest.raises(ValueError, match="two models have the same name"):
        ServedModels([PLAIN, PLAIN])
    other = ModelSpec("other", EngineConfig(), aliases=("windlass-demo", "plain"))
    served = ServedModels([PLAIN, other])
    assert [served.find(name).name for name in ("windlass-demo", "plain", "other")] == ["plain", "plain", "other"]


def test_a_refusal_for_memory_names_the_engines_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    available = iter([1 << 30, 1 << 10])
    monkeypatch.setattr(build, "available_bytes", lambda: next(available))
    failing = RunningServer([PLAIN, SMALL], ServerSettings(port=0))
    until(lambda: failing.error is not None)
    failing.join()
    assert isinstance(failing.error, LoadError)
    assert "MiB of memory are available; these engines hold memory" in str(failing.error)
    assert "windlass-demo: ready" in str(failing.error)


def test_one_that_fails_is_the_state_of_all() -> None:
    with serving(PLAIN, SMALL, failure_grace=20.0) as server:
        broken = server.server.served.all[1].loaded
        assert broken is not None
        replace_run(broken, _fail)
        failed = server.chat(QUESTION, model="small")
        assert (failed.status, failed.json["error"]["code"]) == (503, "engine_dead")
        assert failed.headers["x-should-retry"] == "false"
        until(lambda: server.server.served.state is EngineState.FAILED)
        assert server.request("GET", "/livez").status == 503
        assert server.request("GET", "/readyz").status == 503
        text = server.request("GET", "/metrics").body.decode()
        assert 'windlass_engine_state{model_name="small",state="failed"} 1' in text


def _fail(*_: object) -> None:
    raise OSError(5, "injected")
