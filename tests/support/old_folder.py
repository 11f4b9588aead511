"""A program for transformers 4.57: writes a LLaVA as that version does, and what it makes of a photo.

`python old_folder.py TOKENIZER.json PICTURE OUT`: the model in OUT, `logits.json` beside it.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

LISTS_ALONE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA's models on the hub have such a template: content as a string is lost in it."""


@torch.no_grad()
def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    learnt, picture, out = map(Path, sys.argv[1:])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(learnt), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.add_tokens(["<image>", "<more>"], special_tokens=True)
    sizes = {"intermediate_size": 24, "num_attention_heads": 2, "initializer_range": 0.3}
    vision = CLIPVisionConfig(hidden_size=16, num_hidden_layers=3, image_size=32, patch_size=8, **sizes)
    llm = LlamaConfig(vocab_size=448, hidden_size=32, num_hidden_layers=2, rope_theta=70.0, **sizes)
    config = LlavaConfig(vision, llm, image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(out)
    square = {"height": 32, "width": 32}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    processor = LlavaProcessor(image_processor, tokenizer, chat_template=LISTS_ALONE)
    processor.save_pretrained(out)  # says neither how large a patch is nor what becomes of the first token
    (out / "processor_config.json").unlink()  # versions before 4.46 wrote none
    processor.patch_size, processor.num_additional_image_tokens = 8, 1
    processor.vision_feature_select_strategy = "default"
    given = processor(
        images=Image.open(picture), text="USER: <image>\nWhat do you see? ASSISTANT:", return_tensors="pt"
    )
    given.pop("token_type_ids", None)
    told = {"ids": given["input_ids"].tolist(), "pixels": given["pixel_values"].tolist()}
    told["logits"] = model(**given).logits[0].tolist()
    (out.parent / "logits.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
