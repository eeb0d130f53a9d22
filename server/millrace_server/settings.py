"""What a server process is told, read once from the environment.

The operator imports this module (and nothing else of the server) to write the same variables into a pod, so the two cannot
drift, and to read its own in the same way. It must therefore stay free of torch, transformers and FastAPI. Variable names are append-only.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

DEFAULT_PORT = 8000
DEFAULT_PROMETHEUS_PORT = 9090


class Device(StrEnum):
    cuda = "cuda"
    cpu = "cpu"


class DType(StrEnum):
    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class CacheType(StrEnum):
    memory = "memory"
    redis = "redis"
    none = "none"


class InvalidSettings(ValueError):
    """One sentence that names the variable, its value and what it may be."""


class Settings(BaseModel):
    """What one kind of process is told. A field's alias is its variable's name, the words below it are its description; `repr=False` marks
    a secret, which no message repeats."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the known variables; an empty string counts as unset. Raises InvalidSettings."""
        variables = {str(field.alias): field for field in cls.model_fields.values()}
        try:
            return cls.model_validate({variable: environment[variable] for variable in variables if environment.get(variable)})
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise InvalidSettings(first["msg"].removeprefix("Value error, ")) from None
            variable = str(first["loc"][0])
            if first["type"] == "missing":
                raise InvalidSettings(f"{variable} is not set; it is required") from None
            shown = f"{variable}={environment.get(variable)!r}" if variables[variable].repr else variable
            raise InvalidSettings(f"{shown} is refused: {first['msg'].removeprefix('Value error, ')}") from None

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` return an equal object; defaults are left out."""
        result: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or value == field.default:
                continue
            if isinstance(value, bool):
                result[str(field.alias)] = str(value).lower()
            else:
                result[str(field.alias)] = str(value)
        return result


class EngineSettings(Settings):
    """What the engine process is told: nothing that is secret, and nothing that only the front needs."""

    model_name: str = Field(alias="MODEL_NAME", min_length=1, max_length=253)
    """The name that clients send, and, without MODEL_PATH, the hub repository to load."""
    model_path: str | None = Field(default=None, alias="MODEL_PATH")
    """Folder that holds config.json, tokenizer.json and *.safetensors. Unset: MODEL_NAME is looked up in the hub's cache."""
    model_revision: str | None = Field(default=None, alias="MODEL_REVISION")
    """Commit or digest of the model, told to clients; the cache goes by its files. Unset: the download's commit, or the files' hash."""
    device: Device = Field(default=Device.cuda, alias="DEVICE")
    """Where the model runs."""
    device_fallback: bool = Field(default=True, alias="DEVICE_FALLBACK")
    """Serve on the CPU, with a warning, when DEVICE=cuda and no GPU is there. The operator turns it off."""
    dtype: DType = Field(default=DType.auto, alias="DTYPE")
    """Type of the weights and of what is computed. auto: bfloat16 on a GPU that has it, else float16; on a CPU the files' own type, but
    float32 for half precision without the instructions for it."""
    max_length: int | None = Field(default=None, alias="MAX_LENGTH", ge=16, le=10_485_760)
    """Tokens a request may hold, prompt and answer together. Unset: the model's own limit."""
    max_batch_size: int = Field(default=32, alias="MAX_BATCH_SIZE", ge=1, le=1024)
    """Answers that are written at the same time."""
    batch_timeout_ms: int = Field(default=50, alias="BATCH_TIMEOUT_MS", ge=0, le=10_000)
    """Milliseconds that an idle engine waits for company after the first request arrived, when more is expected."""


class ServerSettings(EngineSettings):
    """Every setting of a server. `None` means unset."""

    model_aliases: str | None = Field(default=None, alias="MODEL_ALIASES", max_length=2048)
    """Further names, separated by commas, that clients may send for the model; answers bear MODEL_NAME."""
    max_queue_size: int = Field(default=1000, alias="MAX_QUEUE_SIZE", ge=0, le=100_000)
    """Requests that may wait for a slot."""
    max_concurrent_requests: int = Field(default=100, alias="MAX_CONCURRENT_REQUESTS", ge=1, le=100_000)
    """Requests in the system, waiting and running. The smaller of this and batch + queue wins."""
    request_timeout: float = Field(default=30, alias="REQUEST_TIMEOUT", gt=0, le=86_400)
    """Seconds from a request's arrival to its last token."""
    drain_seconds: float = Field(default=60, alias="DRAIN_SECONDS", ge=0, le=86_400)
    """Seconds that accepted requests have to finish after SIGTERM."""
    cache_type: CacheType = Field(default=CacheType.memory, alias="CACHE_TYPE")
    """Where answers are kept."""
    cache_ttl: int = Field(default=3600, alias="CACHE_TTL", ge=1, le=31_536_000)
    """Seconds that a cached answer is served."""
    redis_url: str | None = Field(default=None, alias="REDIS_URL", max_length=2048, repr=False)
    """Where CACHE_TYPE=redis keeps answers: redis://:PASSWORD@HOST:6379/0, or rediss:// for TLS."""
    cache_secret: str | None = Field(default=None, alias="CACHE_SECRET", min_length=16, max_length=1024, repr=False)
    """Hides the keys of answers in Redis and seals the answers; replicas with the same secret share them. Unset: derived from the password
    in REDIS_URL. With neither, each process keeps its answers to itself."""
    api_keys_file: str | None = Field(default=None, alias="API_KEYS_FILE", max_length=4096)
    """File with the names and hashes of the API keys that clients must have; it may change while the server runs. Unset: nobody needs
    a key."""
    api_docs: bool = Field(default=False, alias="API_DOCS")
    """Serve /openapi.json and, for people, /docs on the clients' port; where keys are needed, these need one too."""
    host: str = Field(default="0.0.0.0", alias="HOST")  # noqa: S104 - a pod's server listens on the pod's address
    """Address of both ports."""
    port: int = Field(default=DEFAULT_PORT, alias="PORT", ge=0, le=65_535)
    """The clients' port; 0 takes a free one."""
    prometheus_port: int = Field(default=DEFAULT_PROMETHEUS_PORT, alias="PROMETHEUS_PORT", ge=0, le=65_535)
    """The internal port: Prometheus, probes, load. Clients never get to it; 0 takes a free one."""
    termination_log: str | None = Field(default=None, alias="TERMINATION_LOG")
    """File that gets a JSON object with stage, cause and hint (at most 1 kB) when the process cannot go on."""

    max_body_bytes: int = Field(default=1024 * 1024, alias="MAX_BODY_BYTES", ge=1024, le=64 * 1024 * 1024)
    """Size of the largest request body; larger ones are answered 413."""
    head_timeout: float = Field(default=10, alias="HEAD_TIMEOUT", gt=0, le=600)
    """Seconds that a client has to send a request's line and headers."""
    body_timeout: float = Field(default=30, alias="BODY_TIMEOUT", gt=0, le=600)
    """Seconds that a client has to send a request's body; slower ones are answered 408. Whoever reads nothing
    of an answer for as long is cut."""
    max_connections: int = Field(default=4096, alias="MAX_CONNECTIONS", ge=1, le=1_000_000)
    """Connections of a port at once; more are answered 503. The process's limit of open files wins when it is smaller."""
    connection_seconds: float = Field(default=60, alias="CONNECTION_SECONDS", gt=0, le=86_400)
    """Age at which a client's connection is closed after its current answer, give or take a quarter, so that pooled clients reach
    new pods."""
    load_stall_seconds: float = Field(default=600, alias="LOAD_STALL_SECONDS", gt=0, le=86_400)
    """Seconds that loading a model may stand still before `/livez` fails."""
    cache_max_bytes: int = Field(default=64 * 1024 * 1024, alias="CACHE_MAX_BYTES", ge=1024)
    """Memory for cached answers; the least recently used ones make room."""

    @property
    def served_names(self) -> tuple[str, ...]:
        """What clients may call the model, its own name first."""
        return (self.model_name, *filter(None, map(str.strip, (self.model_aliases or "").split(","))))

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, url: str | None) -> str | None:
        if url is not None and (problem := _redis_url_problem(url)):
            raise ValueError(f"{problem}; it looks like redis://:PASSWORD@HOST:6379/0, special characters in the password as %XX")
        return url

    @model_validator(mode="after")
    def _knows_its_redis(self) -> Self:
        if self.cache_type is CacheType.redis and self.redis_url is None:
            raise ValueError("REDIS_URL is not set; CACHE_TYPE=redis needs it, for example redis://:PASSWORD@redis:6379/0")
        return self


def _redis_url_problem(url: str) -> str | None:
    """What is wrong, without a word of the URL: any part of it may be the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "its host or port cannot be read"
    if parts.scheme not in ("redis", "rediss"):
        return "it must begin with redis:// or rediss://"
    if not parts.hostname:
        return "it has no host"
    if port == 0:
        return "its port must be 1 to 65535"
    if parts.query or parts.fragment:
        return "nothing may follow the number of the database"
    database = parts.path.removeprefix("/")
    return None if database == "" or (database.isascii() and database.isdecimal()) else "its path must be the number of a database"
