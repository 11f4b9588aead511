"""Compare labels with the word list, encoder and `top_n` that a recipe names."""

from collections.abc import Iterator

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders.spec import EncoderSpec
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.labels.store import LabelStore, open_labels
from trainer.recipes.recipe import LabelSource


def contradictions(store: LabelStore, labels: LabelSource, words: WordList | None) -> Iterator[tuple[str, object]]:
    """Yield the keys that labels contradict, each with what the labels have.

    What the recipe leaves to its default may have any value.
    """
    named = labels.model_fields_set
    if "top_n" in named and store.top_n != labels.top_n:
        yield "top_n", store.top_n
    if "encoder" in named:
        asked = EncoderSpec.parse(labels.encoder)
        default = () if asked.path else (str(asked.at("final")), str(asked.at("pool")))  # whichever the model has
        if store.encoder not in (str(asked), *default):
            yield "encoder", store.encoder
    wordlist = store.manifest["fields"]["wordlist"]
    if words is not None and wordlist["sha256"] != words.sha256:
        yield "wordlist", f"another of {len(store.words):,} words"


def check_named_labels(labels: LabelSource, begun_with: str | None) -> None:
    """Refuse a recipe that names a folder of labels and, in another key, something else than was labelled there.

    Keys with their defaults are not compared. A run that goes on keeps the labels with the fingerprint `begun_with`.

    Raises:
        UserError: names the key.
    """
    if labels.path is None or (store := open_labels(labels.path, verify=False)).fingerprint == begun_with:
        return
    labels = LabelSource(**labels.model_dump(exclude_defaults=True))  # a recipe that a program wrote has all keys
    words = load_wordlist(labels.wordlist) if "wordlist" in labels.model_fields_set else None
    for key, found in contradictions(store, labels, words):
        raise UserError(
            f"labels.{key}: expected {getattr(labels, key)}; {labels.path} has {found}; leave the key out to train "
            "with these labels, or set labels.path to others"
        )
