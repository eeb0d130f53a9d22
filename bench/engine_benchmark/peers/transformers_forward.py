"""One bare forward pass of transformers over the prompt, and its likeliest next token: the least that a first token can cost."""

import torch

from engine_benchmark.peers.wire import Wire, load


@torch.inference_mode()  # type: ignore[untyped-decorator]
def main() -> None:
    wire = Wire()
    model = load()
    wire.open(model.dtype)
    while True:
        ask = wire.asked.get()
        if ask.max_tokens != 1:
            raise ValueError(f"max_tokens={ask.max_tokens}: a forward pass gives one token")
        logits = model(input_ids=torch.tensor([ask.prompt]), use_cache=True, logits_to_keep=1).logits
        int(logits[0, -1].argmax())
        wire.tell([ask.number], [ask.number])


if __name__ == "__main__":
    main()
