"""Real servers with a real Redis between them: what one answered, the other one answers without its model."""

from pathlib import Path

from running_redis import PASSWORD, RunningRedis
from running_server import RunningServer

PROMPT = "a canary in the coal mine"


def ask(server: RunningServer) -> dict[str, object]:
    response = server.requests().infer(PROMPT, max_tokens=4, temperature=0)
    assert response.status_code == 200
    answer: dict[str, object] = response.json()
    return answer


def test_replicas_share_answers_and_outlive_their_redis(tmp_path: Path, tiny_model: Path) -> None:
    with RunningRedis(tmp_path) as redis:
        settings = {"CACHE_TYPE": "redis", "REDIS_URL": redis.url}
        with (
            RunningServer(tmp_path / "first", model=tiny_model, settings=settings) as first,
            RunningServer(tmp_path / "second", model=tiny_model, settings=settings) as second,
        ):
            first.wait_ready()
            second.wait_ready()
            fresh = ask(first)
            assert fresh["cached"] is False
            # Behind the answer, and on a busy machine not at once.
            shared = second.wait_for(lambda: answer if (answer := ask(second))["cached"] else None)
            assert shared["text"] == fresh["text"]

            stored = b" ".join([*redis.names(), *(redis.command("GET", name) for name in redis.names())])
            assert PROMPT.encode() not in stored

            redis.freeze()
            assert ask(second)["text"] == fresh["text"]
            redis.kill()
            assert ask(first)["text"] == fresh["text"]
            first.wait_for(lambda: first.requests().get("/metrics").json()["cache"]["state"] == "down")
            assert first.terminate() == second.terminate() == 0
            assert PASSWORD not in first.log() + second.log()
