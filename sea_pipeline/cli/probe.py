"""The command that says which encoder, path and sign to label with, and whether BASIC can work on an LLM."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Annotated

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import json_option
from sea_pipeline.core.errors import UserError


def options() -> list[Parameter]:
    """Make the options from `ProbeSettings`, then those from `LlmProbeSettings`, which share the device."""
    from sea_pipeline.cli.options import options_of
    from sea_pipeline.labels.settings import LlmProbeSettings

    of_llm = options_of(LlmProbeSettings, optional=("llm",), offered={"llm": completion.models})
    return [*_of_images(), *of_llm]


def _of_images() -> list[Parameter]:
    from sea_pipeline.cli.options import options_of
    from sea_pipeline.labels.settings import ProbeSettings

    return options_of(ProbeSettings, absent=("device",), optional=("data", "encoder"))


@command_with(options)
def probe(
    *,
    as_json: Annotated[bool, json_option("Print JSON: all figures and verdicts.")] = False,
    **asked: object,
) -> None:
    """Measure which encoder labels captioned images best, or whether BASIC suits an LLM.

    It labels images with each encoder, each kind of patch vectors (#PATH) and
    both signs, and compares the labels with the captions. It writes no labels.
    hit: the share of caption words that are a label of some patch of their
    image. chance: the same share for images whose captions lack the word. lift:
    hit minus chance, with its 95 % interval over images. First it prints how
    many caption words the word list has as they are, only in another form (dog
    for dogs, play for playing), or not at all.

    With --llm, the LLM reads text. What its layers make of each token is
    compared with the token's own embedding. BASIC assumes that the two are near;
    only then can it lead to words on this LLM.

    Example: sea-pipeline probe --data photos.json --encoder open_clip:ViT-L-14-336-quickgelu/openai
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.cli.tables.probe import probe_tables
    from sea_pipeline.labels.checks import check_probe
    from sea_pipeline.labels.settings import ProbeSettings

    of_images = {option.name for option in _of_images()}
    if asked["llm"] is not None:
        _refuse_others(asked, of_images, "leave it out with --llm, which reads text")
        _probe_llm(asked, as_json)
        return
    _refuse_others(asked, asked.keys() - of_images - {"device"}, "is for --llm alone; leave it out")
    if asked["data"] is None:
        raise UserError("probe: expected --data CAPTIONS.json, or --llm FOLDER; see --help")
    settings = settings_of(ProbeSettings, asked | {"encoder": asked["encoder"] or ("packaged",)})
    check_probe(settings)
    from sea_pipeline.labels.sign_probe import probe_encoders  # late, to report mistakes in the settings at once

    findings = probe_encoders(settings, terminal.Terminal())
    if as_json:
        print_json(findings.to_json())
    else:
        probe_tables(findings)


def _refuse_others(asked: Mapping[str, object], others: set[str], reason: str) -> None:
    """Refuse options that would be ignored, if they differ from their defaults."""
    given = [o.name for o in options() if o.name in others and asked[o.name] != o.default]
    if given:
        raise UserError(f"{', '.join('--' + name.replace('_', '-') for name in given)}: {reason}")


def _probe_llm(asked: Mapping[str, object], as_json: bool) -> None:
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.cli.tables.probe import llm_tables
    from sea_pipeline.labels.checks import check_llm_probe
    from sea_pipeline.labels.settings import LlmProbeSettings

    settings = settings_of(LlmProbeSettings, asked)
    check_llm_probe(settings)
    from trainer.evaluation.llm_probe import probe_llm  # late, to report mistakes in the settings at once

    found = probe_llm(settings, terminal.Terminal()).to_json()
    if as_json:
        print_json(found)
    else:
        llm_tables(found)
