"""A Redis that is wrongly configured is refused by the name of its variable, and no message repeats a secret."""

import pytest

from millrace_server.cache import cache_for
from millrace_server.cache.keys import shared_secret
from millrace_server.settings import InvalidSettings, ServerSettings

PASSWORD = "hunter2"


def settings(**environment: str) -> ServerSettings:
    return ServerSettings.from_environment({"MODEL_NAME": "m", "CACHE_TYPE": "redis", **environment})


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"http://:{PASSWORD}@redis:6379", "it must begin with redis:// or rediss://"),
        (f":{PASSWORD}@redis:6379", "it must begin with redis:// or rediss://"),
        (f"redis://:{PASSWORD}@:6379", "it has no host"),
        (f"redis://:{PASSWORD}@redis:many", "its host or port cannot be read"),
        (f"redis://:{PASSWORD}@redis:99999", "its host or port cannot be read"),
        (f"redis://:{PASSWORD}@redis:0", "its port must be 1 to 65535"),
        (f"redis://:12{PASSWORD}#3@redis:6379", "its host or port cannot be read"),
        (f"redis://:{PASSWORD}@[redis:6379", "its host or port cannot be read"),
        (f"redis://:{PASSWORD}@redis:6379/first", "its path must be the number of a database"),
        (f"redis://:{PASSWORD}@redis:6379/²", "its path must be the number of a database"),
        (f"redis://:{PASSWORD}@redis:6379/0?decode_responses=true", "nothing may follow the number of the database"),
    ],
)
def test_a_wrong_redis_url_is_refused_by_name_and_without_its_password(url: str, problem: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        settings(REDIS_URL=url)
    assert str(refused.value).startswith(f"REDIS_URL is refused: {problem}; it looks like redis://")
    assert PASSWORD not in str(refused.value)


def test_a_redis_cache_needs_a_redis() -> None:
    with pytest.raises(InvalidSettings, match=r"^REDIS_URL is not set; CACHE_TYPE=redis needs it, for example redis://"):
        settings()


@pytest.mark.parametrize("url", ["redis://redis", "redis://:p%40ss@redis:6379/0", "rediss://user:word@10.0.0.1:6380/3", "redis://[::1]:1/"])
def test_a_right_redis_url_is_taken(url: str) -> None:
    assert settings(REDIS_URL=url).redis_url == url


def test_a_short_secret_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidSettings, match=r"^CACHE_SECRET is refused: ") as refused:
        settings(REDIS_URL="redis://redis", CACHE_SECRET=PASSWORD)
    assert PASSWORD not in str(refused.value)


def test_settings_do_not_show_their_secrets() -> None:
    shown = settings(REDIS_URL=f"redis://:{PASSWORD}@redis", CACHE_SECRET=PASSWORD * 3)
    assert PASSWORD not in f"{shown!r} {shown}"


def test_replicas_with_the_same_settings_have_the_same_secret() -> None:
    by_password = shared_secret(settings(REDIS_URL=f"redis://:{PASSWORD}@redis"))
    assert by_password == shared_secret(settings(REDIS_URL=f"rediss://:{PASSWORD}@elsewhere"))
    assert by_password != shared_secret(settings(REDIS_URL=f"redis://:{PASSWORD}2@redis"))
    by_secret = shared_secret(settings(REDIS_URL=f"redis://:{PASSWORD}@redis", CACHE_SECRET="s" * 16))
    assert by_secret != by_password
    assert by_secret == shared_secret(settings(REDIS_URL="redis://:another@redis", CACHE_SECRET="s" * 16))


async def test_without_any_secret_no_two_processes_share_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    caches = [cache_for(settings(REDIS_URL="redis://127.0.0.1:1")) for _ in range(2)]
    assert caches[0].key("prompt") != caches[1].key("prompt")
    assert "set CACHE_SECRET" in caplog.text
    for cache in caches:
        await cache.close()
