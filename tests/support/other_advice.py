"""The messages that advise something and are of no damaged or unfinished folder: a new one needs a line here."""

OTHERS: dict[str, list[str]] = {
    "files that are no images, which only their owner can get anew or convert": [
        "JSON text, such as a server's error message; download the image again",
        "a PNG whose line ends were changed; copy it again in binary mode",
        "an HTML page, such as an error page; download the image again",
        "an XML document, such as a server's error message; download the image again",
        "expected an image; all {} bytes are zeros: the file was never written; copy it again",
        "the JPEG holds {} of {} restart markers in order; copy the file again",
        "the JPEG's end is missing: its decoder filled the rest with grey; copy the file again",
        "the JPEG's end is zeros and has no end marker; copy the file again",
        "the JPEG's scan holds {} at byte {}, which no scan can; copy it again",
        "the PNG breaks off in its chunk {} at byte {}; copy the file again",
        "the PNG ends at byte {}, before its IEND chunk; copy the file again",
        "the PNG's {} chunk at byte {} differs from its checksum; copy the file again",
        (
            "the file begins as {} does, but Pillow cannot read it: it is damaged, cut off, or of a kind that Pillow "
            "lacks, such as lossless JPEG; copy it again, or convert it to an 8-bit PNG"
        ),
        "the file holds 0 bytes; copy it again",
    ],
    "a folder that is none of ours, or whole and another run's": [
        (
            "{}: expected labels or a run; found neither dataset.json nor run.json in it; give the output folder "
            "of sea-pipeline label or train"
        ),
        (
            "{}: expected targets of {} x {} visual tokens of width {}, as {} has; found {} x {} of width {}; "
            "run sea-pipeline teacher with a model of the same parts"
        ),
        (
            "{}: expected targets of images as the stage sees them, data.image_aspect_ratio: {}; found {}; run "
            "sea-pipeline teacher with --image-aspect-ratio {}, or set the key to {}"
        ),
        (
            "loss.basic.{}: {}, but the targets of {} were made with {}; leave it out, or run sea-pipeline "
            "teacher with it"
        ),
        "{}: is not of the run {}; choose another --out",
        "no labels that fit are below runs/labels any more; run sea-pipeline label, or go where they are",
    ],
    "a key twice in a recipe or a cluster file": [
        "line {} has the key {} again, after line {}; keep one of them",
    ],
    "a harness's results": [
        "{}: expected the results of lmms-eval or lm-eval; {}; remove it, and run its command again",
    ],
    "a store's credentials and rights": [
        (
            "{}: the credentials are missing or refused ({}); set them as the service's own "
            "tools do, and run the same command again"
        ),
        "{}: cannot be {}: {}; the rights to list, read, write and delete are needed",
    ],
    "a model that the losses are attached to": [
        "attached: it was detached, or copied, as a spawned process gets it; call attach() again",
        "loss.basic.lens: is fitted before a run of sea-pipeline train; set it to none",
    ],
    "labels that cannot teach, whose words or encoder their owner chooses": [
        "the LLM's tokenizer has no token for {}, or for parts of {}; leave {} out of the word list, and label again",
        (
            "{}: no patch of its {} images has a label, because no word's score is above 0; label again with {} into "
            "another --out (sea-pipeline probe compares encoders and signs)"
        ),
        (
            "{}: no patch of its {} images has a word with a score above 0, so loss.sea would train nothing; label "
            "again with another encoder, sign or word list into another folder, and name it with labels.path"
        ),
    ],
    "a machine without a network": [
        (
            "{}: {} cannot be fetched: {}; with a network try again, or give what you have already, {}, or leave out "
            "--encoder for the packaged one"
        ),
    ],
    "an input": [
        "its holes are left out, which is not read; pack it again without --sparse",
        (
            "{}: line {} holds {} (U+{}), which nobody sees, in {}; expected one word or phrase per line; remove it, "
            "or write a space"
        ),
        "expected 'image' or 'images'; found both, with other contents; remove one of them",
        (
            "expected images under 'image' alone, not under {}; found media there, which would not be read; name "
            "them in the record's 'image', a path or a list of paths, or remove the key"
        ),
        (
            "expected what a conversation says in its turns alone; found {} beside them, which would not be read; "
            "write it into {}, or remove the key"
        ),
        (
            "expected what a turn says in its 'value' alone; found {} in turn {}, which would not be read; write it "
            "into 'value', or remove the key"
        ),
        (
            "expected answers that are all trained; found {} in turn {}, so that this answer is not to be trained; "
            "remove the key to train the answer, or remove the turn and the one before it"
        ),
        "mend or remove it, or {}",
        "mend or remove them, or {}",
        "correct the template in the LLM's folder, or remove it to use vicuna_v1",
        (
            "{}: its config.json says that its weights are quantised ({}); expected plain ones: give the model "
            "that it was made from, or dequantise it with the package that quantised it and save it again"
        ),
        "expected an answer {}; found {} tokens before it; {}shorten or remove the sample",
        (
            "expected its images and the beginning of an answer within data.max_length {}; found {} tokens in all; "
            "raise data.max_length, or shorten or remove the sample"
        ),
        ("expected images that the model's processor takes; found {} of {} x {} pixels: {}; scale, cut or remove it"),
        "expected an answer to train on; found none that is not empty; write one, or remove the sample",
        (
            "expected the chat template of {} to write each answer; found that it leaves out text of {}; correct the "
            "template, or remove the sample"
        ),
        "restore it, or make it with sea-pipeline init",
        "copy the folder again, or make it with sea-pipeline init",
        "{}: {} weights are missing, the first is {}; copy the folder again",
        "copy the folder again",
        "restore it, or save the model and its processor again with transformers",
        "neither; copy the folder again",
        "missing and exit(f'weights are missing: {missing[0]}; copy the folder again')",
        "{}: expected the model's parts in its config.json; found no {}; copy the model's own config.json again",
        "copy the file again, or {}",
        "its weights are damaged; copy it again",
        "{}: expected weight_map, the files by the names of tensors; found none; copy it again",
        "{}: names {}; there is no such file; copy the folder again",
        ("{}: its {} cannot be used ({}); correct it, or remove it to take what is usual for a tower of this type"),
        ", or remove adapter_config.json to use the weights beside it",
        "{}: is missing, and {}; copy it again",
        "{}: is damaged; copy it again",
        (
            "{}: is damaged, or a pickle that holds more than tensors, whose code is never run here; copy it "
            "again, or give the same weights as safetensors"
        ),
        "{}: is damaged ({}); copy it again",
        ("{}: its tokenizer has no words; expected a tokenizer.json or tokenizer.model in it; copy the folder again"),
        (
            "{}: its tokenizer comes as code (auto_map), which is never run here; add a tokenizer.json, remove "
            "auto_map from its tokenizer_config.json and set tokenizer_class to PreTrainedTokenizerFast there"
        ),
        (
            "{}: expected a chat template named default; found {}; give the one to train with that name, or remove "
            "them to use vicuna_v1"
        ),
        (
            "{}: its tokenizer has no words, as transformers reads its {}; copy that file again, or add a "
            "tokenizer.json, and set tokenizer_class to PreTrainedTokenizerFast in its tokenizer_config.json"
        ),
        ("{}: its {} is damaged, or none of SentencePiece; copy it again, or add the model's tokenizer.json"),
        (
            "{}: transformers' tokenizer gives {} the ids {}; {} gives {}; copy tokenizer files that belong "
            "together, or convert the tokenizer to a tokenizer.json that gives these ids and remove {}"
        ),
        "{}: expected a SentencePiece model; {}; copy the file again, or put a tokenizer.json beside it",
        (
            "expected turns by human and gpt in alternation, a human first and gpt last (before them at most one "
            "system turn); found {}; mend or remove the sample"
        ),
        "expected text in turn {}; found half of a UTF-16 pair in it; remove it",
        "expected {} in questions only, where an image goes; found {} in turn {} ({}); remove it there",
        "copy it again",
    ],
    "help of an option": [
        "Try bad images again, also in a finished folder.",
        "A folder of labels that `sea-pipeline label` wrote.",
    ],
    "packages of this machine": [
        "install what is missing, and run the same command again",
    ],
    "what has happened, without advice": [
        "the worker {} hangs and cannot be started again: {}",
    ],
}
"""By what they are of, messages that are of no output folder that is damaged or unfinished."""
