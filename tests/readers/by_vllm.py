"""A program that knows nothing of this project: reads exported LLaVA folders with vLLM, on a CPU.

`python by_vllm.py ORDER OUT` writes to OUT what vLLM makes of each export of ORDER, or the line by which it refuses.
ORDER is JSON: `exports`, each with a `folder` and vLLM's `impl` ("auto"), `chats`, by name lists of messages as chat
templates take them, with {"type": "image", "path": …} for an image, and `new`, the number of tokens to generate.

All of it is vLLM's own code: configuration, loader, renderer, engine. It must be built with its kernels for CPUs.
"""

import base64
import json
import multiprocessing
import os
import re
import sys
import traceback
from pathlib import Path

SETTINGS = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where its model can be looked at
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that vLLM joins."""
SEEN = {}
"""What the model was given and gave, in its own process."""


def line(error):
    """What a user reads of it, in one line, without the lists of what there would be."""
    text = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)  # pydantic's adds the input
    first = " ".join(text.split()).split(". The available")[0].split(". Should contain")[0]
    return f"{type(error).__name__}: {first}"[:300]


def tried(what, *arguments):
    """What a step tells; where it refuses, `refused`."""
    try:
        return what(*arguments)
    except Exception as error:  # whatever vLLM raises is an answer
        if os.environ.get("READER_TRACEBACK"):
            traceback.print_exc()
        return {"refused": line(error)}


def configuration(export):
    """What vLLM takes the folder for, before any weight is read."""
    from vllm.config import ModelConfig

    config = ModelConfig(model=export["folder"], model_impl=export["impl"])
    text = config.hf_text_config
    rope = getattr(text, "rope_parameters", None)
    return {
        "architecture": config.architecture,
        "llm": (config.hf_config.text_config.architectures or [None])[0],
        "dtype": str(config.dtype).removeprefix("torch."),
        "rope": rope,
        "tied": bool(getattr(text, "tie_word_embeddings", False)),
        "ends": config.try_get_generation_config().get("eos_token_id"),
    }


def arguments(export):
    """Of the engine: float32, so that what it computes can be compared."""
    return {
        "model": export["folder"],
        "model_impl": export["impl"],
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 2**26,
        "limit_mm_per_prompt": {"image": 2},
        "load_format": "compared",
    }


def register_loader():
    """vLLM's own loader, behind which the weights are compared with the file's before they are packed for a kernel."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    @register_model_loader("compared")
    class Compared(DefaultModelLoader):
        def __init__(self, load_config):
            load_config.load_format = "auto"
            super().__init__(load_config)

        def load_weights(self, model, model_config):
            super().load_weights(model, model_config)
            SEEN["names"] = compared(model, model_config.model)


def compared(model, folder):
    """How many parameters the model has, and which of them are not as the file has them."""
    import torch
    from safetensors.torch import load_file

    stored = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        stored |= {bare(name): value for name, value in load_file(file).items()}
    parameters, differ, used = dict(model.named_parameters()), [], set()
    for name, value in parameters.items():
        joined = next((one for one in STACKED if f".{one}." in name), "")
        parts = [bare(name.replace(f".{joined}.", f".{one}.")) for one in STACKED.get(joined, [joined])]
        used |= set(parts)
        if not all(part in stored for part in parts):
            differ.append(f"{name}: not in the file")
            continue
        wanted = torch.cat([stored[part] for part in parts]).to(value.dtype)
        if not torch.equal(value.data[: len(wanted)], wanted):  # vLLM pads its vocabulary
            differ.append(name)
    return {"parameters": len(parameters), "differ": differ, "unused": sorted(stored.keys() - used)}


def bare(name):
    """A weight's name without the levels that versions put in and leave out."""
    return re.sub(r"\b(model|language_model|vision_model)\.", "", name)


def as_sent(messages):
    """Messages as a client sends them to vLLM's server: images as data."""
    sent = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                data = base64.b64encode(Path(part["path"]).read_bytes()).decode()
                part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            parts.append(part)
        sent.append({**message, "content": parts})
    return sent


def watch(model):
    """Keeps what enters and leaves the tower, and what enters the LLM."""
    embed = model.embed_multimodal

    def embedded(**given):
        SEEN.setdefault("pixels", given["pixel_values"].tolist())
        return embed(**given)

    def entering(_, given, named):
        if (inputs := named.get("inputs_embeds")) is not None:
            SEEN.setdefault("embedded", inputs.tolist())

    model.embed_multimodal = embedded
    model.register_forward_pre_hook(entering, with_kwargs=True)


def as_served(renderer, config, messages):
    """A chat as vLLM's server renders a request: with the prompt's ids and the pixels."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(messages=as_sent(messages))
    parameters = request.build_chat_params(None, "auto"), request.build_tok_params(config)
    return renderer.render_chat([request.messages], *parameters)[1][0]


def answered(engine, chats, new):
    """One call of `LLM.chat` for all of them; by chat the prompt's ids and what is generated."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=new, logprobs=5)
    told = []
    for output in engine.chat([as_sent(messages) for messages in chats], greedy, use_tqdm=False):
        made = output.outputs[0]
        first = {token: one.logprob for token, one in made.logprobs[0].items()}
        told.append({"ids": list(output.prompt_token_ids), "made": list(made.token_ids), "first": first})
    return told


def by_engine(export, chats, new):
    """`LLM(folder)` and `LLM.chat`, as a user calls them; each chat alone, then two of them at once."""
    from vllm import LLM

    engine = LLM(**arguments(export), disable_log_stats=True)
    engine.apply_model(watch)
    told = {"names": SEEN.pop("names"), "chats": {}}
    for name, messages in chats.items():
        told["chats"][name] = tried(lambda messages=messages: answered(engine, [messages], new)[0])
        served = tried(as_served, engine.renderer, engine.model_config, messages)
        told["chats"][name]["served"] = served if "refused" in served else list(served["prompt_token_ids"])
        if "inputs" not in told and "embedded" in SEEN:
            told["inputs"] = {"chat": name, "pixels": SEEN.pop("pixels"), "embedded": SEEN.pop("embedded")}
    told["batch"] = tried(answered, engine, [chats["one"], chats["turns"]], new)
    return told


def steps(export, order):
    """All that is told of an export."""
    register_loader()
    return {"config": tried(configuration, export)} | tried(by_engine, export, order["chats"], order["new"])


def apart(export, order, out):
    """In a process of its own: an engine leaves its groups and its settings behind."""
    out.write_text(json.dumps(steps(export, order)))


def main():
    os.environ |= SETTINGS
    import transformers
    import vllm

    order, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    part, told = out.with_suffix(".part"), []
    for export in order["exports"]:
        part.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=apart, args=(export, order, part))
        process.start()
        process.join()
        ended = {"refused": f"the process ended with {process.exitcode}"}
        told.append(json.loads(part.read_text()) if part.exists() else ended)
    part.unlink(missing_ok=True)
    versions = {"vllm": vllm.__version__, "transformers": transformers.__version__}
    out.write_text(json.dumps({"version": versions, "exports": told}))


if __name__ == "__main__":
    main()
