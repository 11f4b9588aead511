"""The cells of docs/readers.md that tests fill: what is looked at, and by which reader's tests."""

NAMES, LOGITS, PROMPTS, TEXT = "names load", "logits", "prompt ids", "greedy text"
BATCH, SIZE, IMAGES, TURNS = "batch of two", "another size", "two images", "two turns"
CHECKS = (NAMES, LOGITS, PROMPTS, TEXT, BATCH, SIZE, IMAGES, TURNS)
FIVE, FOUR = "transformers 5", "transformers 4.57"
PIPELINE_FIVE, PIPELINE_FOUR = f"pipeline, {FIVE}", f"pipeline, {FOUR}"
LMMS_EVAL, LM_EVAL, LLAMA_CPP = "lmms-eval", "lm-eval, the LLM", "llama.cpp, the LLM"
_PIPED = (PROMPTS, TEXT, SIZE, IMAGES, TURNS)
TESTED = {
    FIVE: CHECKS,
    FOUR: CHECKS,
    PIPELINE_FIVE: _PIPED,
    PIPELINE_FOUR: _PIPED,
    LMMS_EVAL: (PROMPTS, TEXT, SIZE, IMAGES, TURNS),
    LM_EVAL: (LOGITS, PROMPTS, TEXT, BATCH, TURNS),
    LLAMA_CPP: (NAMES, LOGITS),
}
"""By reader the columns in which its line says "ok"."""


def cells(*readers: str) -> list[tuple[str, str]]:
    """Readers and columns, to be run as tests."""
    return [(reader, check) for reader in readers for check in TESTED[reader]]
