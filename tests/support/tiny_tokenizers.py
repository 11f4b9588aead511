"""Tokenizers of a few hundred tokens that behave like the large ones: Llama's SentencePiece, and byte-level BPE."""

import json
from typing import Literal

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import CHATML as CHATML

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT:",
    "A photo of a cat on a mat. What is in the image? Describe the photo in a few words, and what colour the cat is.",
] * 4

CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama_like(
    prepend: Literal["always", "first", "sentencepiece"] = "always",
    ends: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """SentencePiece with byte fallback and a BOS of its own.

    Args:
        prepend: "always" puts a space before any text between special tokens, as Llama 2's tokenizer with `legacy`
            does in transformers 5; "first" only at the very start; "sentencepiece" as "always", and also where the text
            begins with spaces of its own.
        ends: whether it also puts an EOS behind every text.
        chat_template: to set.
    """
    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(BPE(unk_token="<unk>"))
    learner.pre_tokenizer = Metaspace(prepend_scheme="always")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    learner.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=600, special_tokens=special + fallback, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(BPE(learned["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend == "sentencepiece":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return _wrapped(tokenizer, "<s>", "</s>", chat_template, unk_token="<unk>")


def byte_level(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE without BOS, with ChatML's tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False)
    )
    return _wrapped(tokenizer, "<|im_start|>", "<|im_end|>", chat_template)


def _wrapped(
    tokenizer: Tokenizer, bos: str, eos: str, chat_template: str | None, **special: str
) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, **special)
    wrapped.add_tokens(["<image>"], special_tokens=True)
    wrapped.chat_template = chat_template
    return wrapped
