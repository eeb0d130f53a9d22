"""Settings survive the way through a pod's environment, whatever their values."""

from hypothesis import given
from hypothesis import strategies as st

from millrace_server.settings import CacheType, Device, DType, ServerSettings

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@given(
    st.fixed_dictionaries(
        {"model_name": NAMES, "redis_url": st.sampled_from(["redis://redis", "rediss://user:p%40ss@10.0.0.1:6380/3"])},
        optional={
            "device": st.sampled_from(Device),
            "device_fallback": st.booleans(),
            "dtype": st.sampled_from(DType),
            "max_length": st.none() | st.integers(16, 10_000),
            "request_timeout": st.floats(0.001, 86_400),
            "cache_type": st.sampled_from(CacheType),
            "max_body_bytes": st.integers(1024, 64 * 1024 * 1024),
            "connection_seconds": st.floats(0.001, 86_400),
            "termination_log": st.none() | NAMES,
        },
    )
)
def test_an_environment_says_the_same_settings_again(values: dict[str, object]) -> None:
    settings = ServerSettings.model_validate(values)
    assert ServerSettings.from_environment(settings.to_environment()) == settings


def test_every_variable_has_a_name_in_capitals_of_its_own() -> None:
    aliases = [field.alias or "" for field in ServerSettings.model_fields.values()]
    assert len(set(aliases)) == len(aliases)
    assert all(alias == name.upper() for alias, name in zip(aliases, ServerSettings.model_fields, strict=True))
