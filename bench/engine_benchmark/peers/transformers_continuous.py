"""transformers' continuous batching: its manager's own thread runs the model, requests join and leave at every step.

With SDPA attention, which was faster on a CPU than its paged eager one, and its own defaults otherwise; only the size of its cache is
given, because the default takes a share of the machine's memory for itself.
"""

from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from engine_benchmark.engine import SLOTS
from engine_benchmark.lines import Ask
from engine_benchmark.peers.wire import Wire, load

NEVER = -1
"""No token ends an answer."""
PAGE_TOKENS = 256
CACHE_PAGES_PER_REQUEST = 4
"""1 024 tokens: twice the longest request of the series that it takes part in."""
STEP_TOKENS = 512
WAIT_SECONDS = 1.0


def main() -> None:
    model = load()
    generation = GenerationConfig(do_sample=False, eos_token_id=NEVER, pad_token_id=0)
    config = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=SLOTS * CACHE_PAGES_PER_REQUEST,
        max_batch_tokens=STEP_TOKENS,
        max_requests_per_batch=SLOTS,
    )
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)

    def submit(ask: Ask) -> None:
        manager.add_request(ask.prompt, request_id=str(ask.number), max_new_tokens=ask.max_tokens, streaming=True, eos_token_id=NEVER)

    wire = Wire(submit)
    manager.start()
    wire.open(model.dtype)
    while manager.is_running():
        output = manager.get_result(timeout=WAIT_SECONDS)
        if output is None:
            continue
        if output.error:
            raise RuntimeError(output.error)
        number = int(output.request_id)
        wire.tell([number], [number] if output.is_finished() else [])


if __name__ == "__main__":
    main()
