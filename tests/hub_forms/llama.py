"""Vicuna, Mistral and Llama 3 as their authors' folders on the hub are, with two layers of width 32."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tests.hub_forms import sentence_piece
from tests.hub_forms.files import Shapes, random_weights, write_json, write_texts, write_weights
from tests.hub_forms.sentence_piece import CODE, TEXT, described, flags, token

WIDTH, INNER, LAYERS, HEADS = 32, 48, 2, 4
UNK, BOS, EOS = token("<unk>"), token("<s>"), token("</s>")
RESERVED = 256
"""Special tokens of Llama 3, most of them for later use."""
LLAMA3_CHAT = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def decoder_shapes(vocabulary: int, *, heads: int = HEADS, shared: int, head: int = 8, tied: bool = False) -> Shapes:
    """A Llama's tensors by their names; `shared` is how many heads of keys and values there are."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (WIDTH,),
            f"{name}mlp.down_proj.weight": (WIDTH, INNER),
            f"{name}mlp.gate_proj.weight": (INNER, WIDTH),
            f"{name}mlp.up_proj.weight": (INNER, WIDTH),
            f"{name}post_attention_layernorm.weight": (WIDTH,),
            f"{name}self_attn.k_proj.weight": (shared * head, WIDTH),
            f"{name}self_attn.o_proj.weight": (WIDTH, heads * head),
            f"{name}self_attn.q_proj.weight": (heads * head, WIDTH),
            f"{name}self_attn.v_proj.weight": (shared * head, WIDTH),
        }
    shapes |= {"model.norm.weight": (WIDTH,)}
    return shapes if tied else shapes | {"lm_head.weight": (vocabulary, WIDTH)}


def decoder_config(vocabulary: int, **said: Any) -> dict[str, Any]:
    """A Llama 2's config.json; `said` goes over it."""
    config = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"}
    config |= {"hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": INNER, "model_type": "llama"}
    config |= {"max_position_embeddings": 4096, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    config |= {"num_key_value_heads": HEADS, "rms_norm_eps": 1e-05, "tie_word_embeddings": False}
    config |= {"torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True}
    return {**config, "vocab_size": vocabulary, **said}


def vicuna(folder: Path, shards: int = 2) -> Path:
    """lmsys/vicuna-{7b,13b}-v1.5: `tokenizer.model` alone, float16 in .bin shards, settings for sampling that do not.

    Its files hold the buffers that transformers once kept, and its pad token is `<unk>`.
    """
    model = sentence_piece.train()
    sentence_piece.write_model(folder, model)
    config = {"_name_or_path": folder.name, "pad_token_id": 0, "pretraining_tp": 1, "rope_scaling": None}
    write_json(folder / "config.json", decoder_config(sentence_piece.PIECES, **config))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0}
    sampling = {"temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0"}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids, **sampling})
    named = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    spelled = {name: flags(one) for name, one in named.items()}
    write_json(folder / "special_tokens_map.json", {**spelled, "pad_token": "<unk>"})
    said = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False}
    said |= {"model_max_length": 4096, "pad_token": None, "padding_side": "right", "sp_model_kwargs": {}}
    said |= {"tokenizer_class": "LlamaTokenizer", **{name: described(one, typed=True) for name, one in named.items()}}
    write_json(folder / "tokenizer_config.json", said)
    weights = random_weights(decoder_shapes(sentence_piece.PIECES, shared=HEADS), torch.float16)
    for layer in range(LAYERS):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.1, 0.01, 0.001])
    write_weights(folder, weights, "bin", shards)
    write_texts(folder, "README.md", ".gitattributes")
    return folder


def mistral(folder: Path) -> Path:
    """mistralai/Mistral-7B-v0.1: bfloat16 in .bin and in safetensors, `legacy`, no chat template, a sliding window."""
    model = sentence_piece.train()
    sentence_piece.write_model(folder, model)
    tokens = [UNK, BOS, EOS]
    write_json(folder / "tokenizer.json", sentence_piece.tokenizer_json(model, tokens, split=False, bos=True))
    config = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2}
    config |= {"max_position_embeddings": 32768, "rope_theta": 10000.0, "sliding_window": 4096}
    config |= {"torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0"}
    write_json(folder / "config.json", decoder_config(sentence_piece.PIECES, **config))
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    write_json(folder / "generation_config.json", {**generation, "transformers_version": "4.34.0.dev0"})
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", names)
    said = {"add_bos_token": True, "add_eos_token": False, "additional_special_tokens": [], "legacy": True}
    said |= {"added_tokens_decoder": {str(number): described(one) for number, one in enumerate(tokens)}, **names}
    said |= {"clean_up_tokenization_spaces": False, "model_max_length": 10**30, "pad_token": None}
    said |= {"sp_model_kwargs": {}, "spaces_between_special_tokens": False, "use_default_system_prompt": False}
    write_json(folder / "tokenizer_config.json", said | {"tokenizer_class": "LlamaTokenizer"})
    weights = random_weights(decoder_shapes(sentence_piece.PIECES, shared=2), torch.bfloat16)
    write_weights(folder, weights, "bin", 2)
    write_weights(folder, weights, "safetensors", 2)
    write_texts(folder, "README.md", ".gitattributes")
    return folder


def llama3(folder: Path) -> Path:
    """meta-llama/Meta-Llama-3-8B-Instruct: byte-level BPE in tokenizer.json alone, no pad token, Meta's files.

    A turn ends with `<|eot_id|>`, a document with `<|end_of_text|>`; both are ends of what is generated.
    """
    backend, names = _byte_level()
    folder.mkdir(parents=True, exist_ok=True)
    spelled = json.loads(backend.to_str())
    spelled["model"]["merges"] = [" ".join(merge) for merge in spelled["model"]["merges"]]
    write_json(folder / "tokenizer.json", spelled)
    begin, end, turn = (backend.token_to_id(f"<|{one}|>") for one in ("begin_of_text", "end_of_text", "eot_id"))
    vocabulary = backend.get_vocab_size()
    config = {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": begin, "eos_token_id": turn}
    config |= {"max_position_embeddings": 8192, "num_key_value_heads": 2, "pretraining_tp": 1, "rope_scaling": None}
    config |= {"rope_theta": 500000.0, "torch_dtype": "bfloat16", "transformers_version": "4.40.0.dev0"}
    write_json(folder / "config.json", decoder_config(vocabulary, **config))
    generation = {"bos_token_id": begin, "eos_token_id": [end, turn], "do_sample": True, "temperature": 0.6}
    generation |= {"max_length": 4096, "top_p": 0.9, "transformers_version": "4.40.0.dev0"}
    write_json(folder / "generation_config.json", generation)
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    write_json(folder / "special_tokens_map.json", ends)
    first = vocabulary - RESERVED
    decoder = {str(first + number): described(token(one)) for number, one in enumerate(names)}
    said = {"added_tokens_decoder": decoder, **ends, "chat_template": LLAMA3_CHAT, "model_max_length": 10**30}
    said |= {"clean_up_tokenization_spaces": True, "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "tokenizer_config.json", said | {"tokenizer_class": "PreTrainedTokenizerFast"})
    weights = random_weights(decoder_shapes(vocabulary, shared=2), torch.bfloat16)
    write_weights(folder, weights, "safetensors", 2)
    write_texts(folder, "README.md", "LICENSE", "USE_POLICY.md", ".gitattributes")
    _metas_own(folder / "original")
    return folder


def _byte_level() -> tuple[Tokenizer, list[str]]:
    """The tokenizer, and the names of its special tokens."""
    made = Tokenizer(BPE(ignore_merges=True))
    pattern = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?=\S)|\s+"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    learn_bytes(made)
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{n}|>" for n in range(4))]
    names += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{n}|>" for n in range(5, 5 + RESERVED - len(names))]
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    first = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False, add_prefix_space=True),
            processors.TemplateProcessing(
                single=f"{first[0]}:0 $A:0", pair=f"{first[0]}:0 $A:0 {first[0]}:1 $B:1", special_tokens=[first]
            ),
        ]
    )
    return made, names


def learn_bytes(tokenizer: Tokenizer) -> None:
    """Trains a byte-level BPE of 500 ids."""
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((TEXT + CODE) * 8, trainer)


def _metas_own(folder: Path) -> None:
    """The same model for Meta's code: a tiktoken file called tokenizer.model, a checkpoint, its settings."""
    folder.mkdir()
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    write_json(folder / "params.json", {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": 756})
    torch.save({"tok_embeddings.weight": torch.zeros(2, WIDTH)}, folder / "consolidated.00.pth")
