"""The environment of the engine process, which computes what strangers ask and therefore holds no secret. Pure.

One rule: of the server's settings those of EngineSettings, and of everything else what has no word in its name that secrets have in theirs.
(An allow-list would be shorter and lose whatever CUDA, OpenMP and allocators are told next year.)
"""

from collections.abc import Mapping

from millrace_server.settings import EngineSettings, ServerSettings

SECRET_WORDS = frozenset(
    [
        *("KEY", "KEYS", "SECRET", "SECRETS", "TOKEN", "TOKENS", "AUTH", "CREDENTIAL", "CREDENTIALS"),
        *("PASS", "PASSPHRASE", "PASSWD", "PASSWORD", "PW", "PWD", "DSN", "PROXY", "URI", "URL"),
    ]
)
"""URLs and proxies among them, because a password may stand in an address. Such a variable is not told, whatever it holds."""
SERVER_VARIABLES = frozenset(str(field.alias) for field in ServerSettings.model_fields.values())


def engine_environment(settings: EngineSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` is the front's."""
    told = EngineSettings.model_validate({name: getattr(settings, name) for name in EngineSettings.model_fields})
    rest = {name: value for name, value in environment.items() if name not in SERVER_VARIABLES and not is_secret(name)}
    return {**rest, **told.to_environment()}


def is_secret(variable: str) -> bool:
    """By its name."""
    return not SECRET_WORDS.isdisjoint(variable.upper().split("_"))
