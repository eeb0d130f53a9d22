"""A model has further names, by which clients may call it."""

import httpx
import pytest

import fake_model
from millrace_server.app import client_app
from millrace_server.engine.stream import QuarantinedRequest
from millrace_server.settings import ServerSettings
from millrace_server.text import Text
from server.front.scripted import inference


async def test_an_alias_is_listed_and_asks_the_same_model() -> None:
    server, engine = inference(MODEL_ALIASES="chat, small")
    engine.surprise = QuarantinedRequest("as far as it needs to go")
    server.text = Text(fake_model.tokenizer())
    app = client_app(server, drain_began=lambda: None, keys=None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["tiny", "chat", "small"]
        assert (await client.get("/v1/models/chat")).json()["id"] == "chat"
        for name in ("tiny", "chat", "small"):
            await client.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 2})
        assert len(engine.submitted) == 3
        unknown = await client.post("/v1/completions", json={"model": "chat, small", "prompt": "a"})
        assert unknown.status_code == 404
        assert "the model is 'tiny'" in unknown.text


@pytest.mark.parametrize(("said", "names"), [(None, ("tiny",)), ("", ("tiny",)), ("a/b,c", ("tiny", "a/b", "c")), (" a , ", ("tiny", "a"))])
def test_aliases_are_words_between_commas(said: str | None, names: tuple[str, ...]) -> None:
    assert ServerSettings.model_validate({"MODEL_NAME": "tiny", "MODEL_ALIASES": said}).served_names == names
