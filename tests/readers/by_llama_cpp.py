"""A program that has llama.cpp's own converter make GGUF files of exported folders.

`python by_llama_cpp.py CONVERTER OUT FOLDER…` writes FOLDER.gguf beside each folder, in float32, and to OUT, as JSON by
folder, by which line the converter refuses it.
"""

import json
import logging
import runpy
import sys
from pathlib import Path

import torch
from by_transformers import Hidden


def main():
    sys.meta_path.insert(0, Hidden())
    torch.set_num_threads(1)
    converter, out, *folders = sys.argv[1:]
    sys.path.insert(0, str(Path(converter).parent))
    refused, logged = {}, []
    keep = logging.Handler(logging.ERROR)
    keep.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(keep)
    for folder in folders:
        sys.argv = [converter, folder, "--outfile", f"{folder}.gguf", "--outtype", "f32"]
        try:
            runpy.run_path(converter, run_name="__main__")
        except (Exception, SystemExit) as error:
            refused[folder] = f"{type(error).__name__}: {error} {' '.join(logged)}"
    Path(out).write_text(json.dumps(refused))


if __name__ == "__main__":
    main()
