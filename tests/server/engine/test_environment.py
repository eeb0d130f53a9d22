"""What the engine process is told: a pure rule."""

import pytest

from millrace_server.engine.environment import SERVER_VARIABLES, engine_environment, is_secret
from millrace_server.settings import EngineSettings, ServerSettings


def test_of_the_settings_it_gets_those_that_it_reads() -> None:
    every = {
        "MODEL_NAME": "m",
        "DEVICE": "cpu",
        "MAX_BATCH_SIZE": "4",
        "CACHE_TYPE": "redis",
        "REDIS_URL": "redis://:hunter2@redis",
        "CACHE_SECRET": "s" * 16,
        "API_KEYS_FILE": "/keys",
        "PORT": "1",
    }
    told = engine_environment(ServerSettings.from_environment(every), every)
    assert told == {"MODEL_NAME": "m", "DEVICE": "cpu", "MAX_BATCH_SIZE": "4"}
    assert EngineSettings.from_environment(told).max_batch_size == 4


def test_no_setting_of_the_engine_is_a_secret() -> None:
    assert all(field.repr for field in EngineSettings.model_fields.values())
    assert {"REDIS_URL", "CACHE_SECRET", "API_KEYS_FILE"} <= SERVER_VARIABLES


def test_an_old_value_in_the_environment_does_not_come_back() -> None:
    told = engine_environment(ServerSettings(MODEL_NAME="m"), {"MODEL_NAME": "old", "DEVICE": "cpu"})
    assert told == {"MODEL_NAME": "m"}


@pytest.mark.parametrize(
    "variable",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "OPENAI_API_KEY", "DB_PASSWORD", "PG_PASS"),
        *("https_proxy", "HTTP_PROXY", "DATABASE_URL", "SENTRY_DSN", "GOOGLE_APPLICATION_CREDENTIALS", "REDIS_AUTH", "PIP_INDEX_URL"),
    ],
)
def test_a_secret_is_known_by_its_name(variable: str) -> None:
    assert is_secret(variable)


@pytest.mark.parametrize(
    "variable",
    [
        *(
            "PATH",
            "PYTHONPATH",
            "HOME",
            "LANG",
            "TMPDIR",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "OMP_NUM_THREADS",
            "KMP_BLOCKTIME",
            "MALLOC_CONF",
        ),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "HF_HOME", "HF_HUB_CACHE"),
    ],
)
def test_what_the_machine_is_told_is_passed_on(variable: str) -> None:
    assert engine_environment(ServerSettings(MODEL_NAME="m"), {variable: "x"})[variable] == "x"
