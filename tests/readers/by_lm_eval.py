"""A program that knows nothing of this project: has lm-eval ask exported LLMs.

`python by_lm_eval.py OUT FOLDER…` writes to OUT, by folder, the ids that lm-eval makes of texts and of a chat, what it
finds likely, and what it generates.
"""

import sys

import torch
from by_transformers import NEW_TOKENS, PAIRS, SAID, Hidden


def main():
    sys.meta_path.insert(0, Hidden())
    torch.set_num_threads(1)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    out, *folders = sys.argv[1:]
    settings = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    told = {}
    for folder in folders:
        told[folder] = {}
        for size in (1, 2):
            model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=size)
            pairs = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]
            texts = [Instance("generate_until", {}, (text, settings), number) for number, (text, _) in enumerate(PAIRS)]
            likely = [value for value, _ in model.loglikelihood(pairs, disable_tqdm=True)]
            told[folder][size] = {"likely": likely, "said": model.generate_until(texts, disable_tqdm=True)}
        chat = [{"role": role, "content": text} for role, text in SAID]
        told[folder]["ids"] = [model.tok_encode(text) for text, _ in PAIRS]
        told[folder]["chat"] = model.tok_encode(model.apply_chat_template(chat))
    torch.save(told, out)


if __name__ == "__main__":
    main()
