"""The two ways in which tokenizers write bytes: every character as bytes (GPT-2, Llama 3, Qwen), or only the unknown ones (Llama 2)."""

from tokenizers import Tokenizer, decoders, models, normalizers, processors

import fake_model

LETTERS = "▁abcdehlorwä你"
MERGES = [("▁", "w"), ("▁", "h"), ("l", "l")]
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
FIRST_BYTE = len(SPECIAL_TOKENS)


def byte_level() -> Tokenizer:
    return fake_model.tokenizer()


def byte_fallback() -> Tokenizer:
    """As sentencepiece makes them: "▁" is a space, one in front of a text is added and dropped, unknown characters are bytes, BOS leads."""
    pieces = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *(left + right for left, right in MERGES)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    result.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    result.add_special_tokens(list(SPECIAL_TOKENS))
    result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return result
