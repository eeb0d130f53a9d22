"""What travels over HTTP: the shape of every request and answer, and the reading of a body into one of them.

msgspec checks types, bounds and unknown fields while it parses, in bounded time and depth; it knows no NaN and no Infinity.
Times are seconds unless a name says otherwise.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from starlette.responses import Response

from millrace_server.errors import BadRequest, NotJSON, UnknownField

DEFAULT_MAX_TOKENS = 100
LARGEST_INTEGER = 2**31 - 1
SMALLEST_TEMPERATURE = 1e-5
"""Below it sampling is greedy: dividing logits by less overflows."""
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 10_000
"""Of all stop strings of a request together: what looking for them costs grows with it."""

MAX_NAMED_CHARACTERS = 64
"""Of a client's key in an error's text."""

INFER = "/api/v1/infer"
HEALTH = "/health"
METRICS = "/metrics"

Shape = TypeVar("Shape")


class InferRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/infer."""

    prompt: Annotated[str, Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=LARGEST_INTEGER)] | None = None
    """Unset: 100, or what the context leaves when that is less."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.9
    seed: Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)] | None = None
    """The same seed and request sample the same text. Unset: every call differs."""
    use_cache: bool | None = None
    """Unset: greedy answers are cached. True: sampled ones too. False: neither read nor written."""

    def is_greedy(self) -> bool:
        return self.temperature < SMALLEST_TEMPERATURE


class InferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    """The prompt, then what the model wrote."""
    request_id: str
    latency_ms: float
    tokens_generated: int
    cached: bool


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    """Inference requests answered since the start, whatever the answer."""
    errors: int
    """Those that the server failed: 5xx, refusals (503) not among them."""
    success_rate: float
    """1 − errors / total; 1 before the first request."""


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    qps: float
    """Inference requests answered per second over the last minute."""
    tokens_generated: int
    """Since the start."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of successful inference requests over the last five minutes; 0 when there were none."""

    p50: float
    p95: float
    p99: float
    mean: float


class HealthMetrics(msgspec.Struct, frozen=True, kw_only=True):
    requests: RequestCounts
    throughput: Throughput
    latency: Latency


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """GET /health."""

    status: str
    """healthy, loading, draining or failed; all but the first with status code 503."""
    model_loaded: bool
    queue_size: int
    metrics: HealthMetrics


class RequestReport(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    succeeded: int
    errors: int
    refused: int
    """503: queue full, wait too long, loading or draining."""
    client_errors: int
    """4xx, and clients that left before their answer."""
    error_rate: float


class SystemReport(msgspec.Struct, frozen=True, kw_only=True):
    cpu_percent: float
    """Of the whole machine, since the previous look."""
    memory_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    process_memory_bytes: int
    """Resident memory of the HTTP process and its engine."""


class CacheReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is null is not known here: a Redis has other writers."""

    type: str
    state: str
    """up, or down while Redis is skipped."""
    hits: int
    misses: int
    """Looks without a usable answer, `corrupt` and `errors` included."""
    hit_rate: float
    corrupt: int
    errors: int
    bypassed: int
    """Requests for which nobody looked."""
    dropped_writes: int
    lookup: Latency
    """Seconds of looks over the last five minutes."""
    entries: int | None
    bytes: int | None
    max_bytes: int | None
    evictions: int | None


class QueueReport(msgspec.Struct, frozen=True, kw_only=True):
    size: int
    """Requests that wait for a slot."""
    running: int
    slots: int
    limit: int
    """Requests in the system, waiting and running, above which new ones are refused."""


class MetricsReport(msgspec.Struct, frozen=True, kw_only=True):
    """GET /metrics as JSON."""

    requests: RequestReport
    throughput: Throughput
    latency: Latency
    system: SystemReport
    cache: CacheReport
    queue: QueueReport


def read(body: bytes, shape: type[Shape]) -> Shape:
    """The body as `shape`. Raises BadRequest that names the field and its limits, or NotJSON."""
    try:
        value = msgspec.json.decode(body, type=shape)
        json.loads(body, object_pairs_hook=_refuse_duplicates, parse_int=_nothing, parse_float=_nothing, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), shape) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJSON(f"the body is not valid JSON: {error}") from None
    return value


def json_response(value: msgspec.Struct, *, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json")


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """What a client sent as `stop`. Raises BadRequest with the limit."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    characters = sum(len(each) for each in stops)
    if len(stops) > MAX_STOPS:
        why = f"{len(stops)} stop strings, at most {MAX_STOPS} are allowed"
    elif characters > MAX_STOP_CHARACTERS:
        why = f"{characters} characters together, at most {MAX_STOP_CHARACTERS} are allowed"
    elif not all(stops):
        why = "a stop string has at least one character"
    else:
        return stops
    raise BadRequest(f"stop is refused: {why}", param="stop")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    """Which of two values counts differs from parser to parser: a filter in front of the server may have read the other one."""
    if len(pairs) > len(dict(pairs)):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        named = name[:MAX_NAMED_CHARACTERS]
        raise BadRequest(f"{named} is refused: it is there {count} times in one object; send it once", param=named)


def _nothing(number: str) -> None:
    """Numbers have been read already."""


def _wrong_field(message: str, shape: type) -> BadRequest:
    """msgspec's sentence with the field in front and both of its limits behind."""
    complaint, _, place = message.partition(" - at `")
    is_about_key = place.startswith("key`")
    path = place.rpartition("$")[2].strip(".`")
    named = complaint.split("`")[1][:MAX_NAMED_CHARACTERS] if "`" in complaint else ""
    full_name = f"{path}.{named}".lstrip(".")
    if complaint.startswith("Object contains unknown field"):
        known = ", ".join(shape.__struct_fields__)  # type: ignore[attr-defined]
        next_step = "leave it out" if path else f"the fields are {known}"
        return UnknownField(f"{full_name} is not a field of this request; {next_step}", param=full_name)
    if complaint.startswith("Object missing required field"):
        return BadRequest(f"{full_name} is missing; it is required", param=full_name)
    wrong_type = f"{complaint[0].lower()}{complaint[1:]}".replace("`", "")
    if not path:
        return BadRequest(f"the body must be a JSON object: {wrong_type}")
    limits = _limits(_annotation(shape, path), complaint)
    why = f"it must be {limits}" if limits and ", got " not in complaint else wrong_type
    return BadRequest(f"{path} is refused: {'a name in it: ' if is_about_key else ''}{why}", param=path)


def _annotation(shape: type, path: str) -> object:
    """Of the field that a path such as `tools[0].function.name` leads to."""
    annotation: object = shape
    for name in re.sub(r"\[[^]]*]", "", path).split("."):
        annotation = next(hints[name] for struct in _structs(annotation) if name in (hints := get_type_hints(struct, include_extras=True)))
    return annotation


def _structs(annotation: object) -> Iterator[type]:
    """The structs that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    for part in get_args(annotation):
        yield from _structs(part)


def _limits(annotation: object, complaint: str) -> str:
    """What an annotation allows and a complaint is about, in words: bounds of a length or of a value, or one of a few words."""
    if get_origin(annotation) is Literal and complaint.startswith("Invalid enum value"):
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    unit = "character" if "`str`" in complaint else "element"
    if get_origin(annotation) is Annotated:
        meta = next(part for part in get_args(annotation) if isinstance(part, Meta))
        lengths = [(meta.min_length, f"at least {{}} {unit} long"), (meta.max_length, f"at most {{}} {unit}s long")]
        values = [(meta.ge, "at least {}"), (meta.gt, "above {}"), (meta.le, "at most {}"), (meta.lt, "below {}")]
        bounds = [(bound, words) for bound, words in (lengths if "of length" in complaint else values) if bound is not None]
        # A complaint that names a bound is about whom it belongs to, which may be what is around or inside.
        if bounds and _bound(complaint) in (None, *(float(bound) for bound, _ in bounds)):
            return " and ".join(words.format(bound) for bound, words in bounds)
    return next((limits for part in get_args(annotation) if (limits := _limits(part, complaint))), "")


def _bound(complaint: str) -> float | None:
    number = re.search(r"-?[\d.]+$", complaint)
    return float(number[0]) if number else None
