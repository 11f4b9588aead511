"""Start lmms-eval with our towers and prompts that begin with one BOS, by `python -m trainer.lmms_eval ARGS`.

lmms-eval lets the chat template write a prompt and has the processor tokenise it, which adds the tokenizer's own BOS
before the template's.
"""

import runpy
from typing import Any

from transformers import LlavaProcessor

import trainer.towers  # noqa: F401 - the import registers them with transformers


def write_bos_once() -> None:
    """Make LLaVA's processor add no BOS to a text that begins with one."""
    call: Any = LlavaProcessor.__call__

    def once(self: Any, images: Any = None, text: Any = None, **named: Any) -> Any:  # noqa: ANN401 - transformers'
        first = text[0] if isinstance(text, list) and text else text
        bos = self.tokenizer.bos_token
        if bos is not None and isinstance(first, str) and first.startswith(bos):
            named.setdefault("add_special_tokens", False)
        return call(self, images=images, text=text, **named)

    LlavaProcessor.__call__ = once  # type: ignore[method-assign]


if __name__ == "__main__":
    write_bos_once()
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
