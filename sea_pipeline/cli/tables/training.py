"""Print models, metrics, training runs and evaluations in a terminal."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.markup import escape

from sea_pipeline.cli import terminal

if TYPE_CHECKING:
    from trainer.data.row_tokens import RowTokens
    from trainer.evaluation.harness_results import Curves, ResultTable
    from trainer.evaluation.harness_tasks import Harness, Pin, Step
    from trainer.evaluation.nearest_by_layer import Layer
    from trainer.export.run import Exported
    from trainer.recipes.paper_rows import PaperRow
    from trainer.training.reporter import Part, TrainReporter
    from trainer.training.run import TrainRun

_TOKEN = 20
"""The most characters shown of a token. Some tokens are long runs of spaces."""

_MEANINGS = {
    "lm_loss": "nats per trained token: lower is better",
    "lm_loss_other": "... with another photo's visual tokens",
    "right_photo_gain": "nats per token that the right photo saves; 0: the model does not look",
    "lm_loss_content": "nats per token of content words",
    "right_photo_gain_content": "what the right photo is worth to these",
    "trained_tokens": "tokens that are scored",
    "yes_no_accuracy": "yes/no questions, mean over what they ask after",
    "yes_no_accuracy_other": "... with another photo",
    "yes_no_accuracy_question_only": "... by the questions' words alone, at best",
    "yes_no_questions": "how many",
    "vqa_accuracy": "short answers, by VQA v2's accuracy",
    "vqa_accuracy_other": "... with another photo",
    "vqa_accuracy_question_only": "... by the questions' first three words, at best",
    "vqa_accuracy_yes": "... by always saying yes",
    "vqa_accuracy_people": "... by people's commonest answer",
    "vqa_questions": "how many",
    "label_hit@1": "visual tokens whose nearest word is their patch's best label",
    "label_hit@10": "... or any of its labels",
    "tacs": "cosine of the ten best visual tokens to the caption's content words",
    "gap": "distance to the nearest word",
    "meaningful": "nearest LLM token is a word close to a label of the patch",
    "meaningful_chance": "... of another photo's patch",
    "distinct_tokens": "different nearest LLM tokens",
}
_WHILE_TRAINING = (
    "lm_loss", "right_photo_gain", "right_photo_gain_content", "label_hit@1", "label_hit@10", "tacs", "meaningful",
    "gap",
)  # fmt: skip
"""Metrics of the line that a run shows at each evaluation. metrics.jsonl has the others, too."""
_COUNTS = ("distinct_tokens", "trained_tokens", "yes_no_questions", "vqa_questions")
_ROOM = 80
"""The fewest columns of a terminal at which meanings are shown, too."""


def train_reporter() -> "TrainReporter":
    """Make the reporter that prints what a training run does."""
    from trainer.training.reporter import TrainReporter

    class TrainingTerminal(terminal.Terminal, TrainReporter):
        def data(self, rows: Mapping[str, int]) -> None:
            _data_table(rows)

        def trainable(self, parts: "Mapping[str, Part]") -> None:
            _trainable_table(parts)

        def metrics(self, title: str, values: Mapping[str, float]) -> None:
            self.message(f"{title}: {_line(values)}")

    return TrainingTerminal()


def run_table(run: "TrainRun", stage: str = "") -> None:
    """Print a finished run's metrics at the start and at the end, and the place of its model."""
    summary = run.summary
    if summary["end"]:
        steps = f"{summary['steps']:,} step{'s' * (summary['steps'] != 1)}"
        metrics_table({"start": summary["start"], f"after {steps}": summary["end"]}, stage)
    terminal.print_table({"model": str(run.model), "seconds": f"{summary['seconds']:,.0f}"})


def token_row(row: "RowTokens") -> None:
    """Print what a row trains, token by token, with the trained tokens between « and »."""
    terminal.output.print(f"{row.id}: {_counts(row)}", style="bold", highlight=False, markup=False, soft_wrap=True)
    shown = []
    for run, trained in row.runs():
        names = [one if isinstance(one, str) else f"<{one[0]} x {one[1]:,}>" for one in run]
        text = "|".join(repr(name)[1:-1] for name in names)
        shown.append(f"«{text}»" if trained else text)
    if shown:
        terminal.output.print("|".join(shown), highlight=False, markup=False, soft_wrap=True)


def _counts(row: "RowTokens") -> str:
    if row.refused is not None:
        return f"refused: {row.refused}"
    return f"{row.length:,} tokens, {sum(end - start for start, end in row.trained):,} of them trained"


def metrics_table(columns: Mapping[str, Mapping[str, float]], title: str = "") -> None:
    """Print metrics by name, with a column for each of several models or moments."""
    table = terminal.plain_table(title=title or None)
    table.add_column(no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    meanings = _MEANINGS if terminal.output.width >= _ROOM else {}
    if meanings:
        table.add_column(style="dim")
    every = dict.fromkeys(name for values in columns.values() for name in values)
    names = [name for name in every if not (name.endswith("_se") and name.removesuffix("_se") in every)]
    for name in [known for known in _MEANINGS if known in names] + [name for name in names if name not in _MEANINGS]:
        cells = [_with_error(name, values) for values in columns.values()]
        table.add_row(name, *cells, *([meanings.get(name, "")] if meanings else []))
    terminal.output.print(table)


def layers_table(layers: Sequence["Layer"]) -> None:
    """Print what the visual tokens of each layer are nearest to, a row for each layer."""
    names = {
        "meaningful": "meaningful",
        "meaningful_chance": "chance",
        "special": "special",
        "distinct_tokens": "distinct",
    }
    shown = [name for name in names if name in layers[0]]
    title = "\nnearest LLM token of each visual token, by layer (0: as the projector gives them)"
    table = terminal.plain_table(numbers=("layer", *(names[name] for name in shown)), title=title)
    table.add_column("most frequent", overflow="fold")
    for layer in layers:
        values: Mapping[str, Any] = layer
        frequent = "  ".join(f"{_quoted(one['token'])} {one['share']:.0%}" for one in layer["frequent"])
        table.add_row(str(layer["layer"]), *(_number(name, values[name]) for name in shown), frequent)
    terminal.output.print(table)


def replace_tables(found: Mapping[str, Any]) -> None:
    """Print the model's text for each image, from V and from replaced tokens.

    A table shows how often such a text has a content word of the answer.
    """
    for text in found["texts"]:
        control = f"; control: the replaced tokens of {text['control_of']}" if "control" in text else ""
        terminal.output.print(f"\n{text['image']}{control}")
        said = {"V": "visual", "replaced": "replaced", "control": "control"}
        texts = {name: " ".join(text[key].split()) or "(nothing)" for name, key in said.items() if key in text}
        terminal.print_table(texts)
    title = (
        f"\nshare of texts with a content word of the answer ({found['scored']} of {found['images']} answers have one)"
    )
    table = terminal.plain_table("", numbers=("own image", "other images"), title=title)
    for name, meaning in (("visual", "V"), ("replaced", "replaced")):
        shares = (found.get(key) for key in (name, f"{name}_control"))
        table.add_row(meaning, *("" if share is None else f"{share:.3f}" for share in shares))
    terminal.output.print(table)


def export_table(done: "Exported") -> None:
    """Print what an export wrote, and what its reader must know."""
    rows = {"folder": str(done.out), "holds": done.what, "tensors": f"{done.tensors:,}, {decimal(done.bytes)}"}
    rows["read by"] = done.reader
    if done.pushed is not None:
        rows["uploaded to"] = done.pushed
    terminal.print_table(rows)
    for note in done.notes:
        terminal.output.print(note)


def rows_tables(rows: Sequence["PaperRow"]) -> None:
    """Print the rows of the papers, table by table, with the papers' numbers if they fit."""
    narrow = False
    for (paper, title), group in groupby(rows, key=lambda row: (row.paper, row.table)):
        members = list(group)
        cells = [("name", "row", *members[0].expected)]
        for row in members:
            numbers = ("" if value is None else str(value) for value in row.expected.values())
            cells.append((row.name, row.label, *numbers))
        needed = sum(2 + max(map(len, column)) for column in zip(*cells, strict=True))
        shown = None if needed <= terminal.output.width else 2  # names are copied: none of them may be cut
        narrow |= shown is not None
        table = terminal.plain_table(title=f"\n{paper}, {title}")
        for position, heading in enumerate(cells[0][:shown]):
            table.add_column(heading, justify="left" if position < 2 else "right", no_wrap=True)
        for line in cells[1:]:
            table.add_row(*line[:shown])
        terminal.output.print(table)
    if narrow:
        terminal.output.print(
            "\nA wider terminal shows the papers' numbers; sea-pipeline recipes NAME has those of a row."
        )
    terminal.output.print("\nNone of them was run by us: it needs the hardware. sea-pipeline recipes NAME says which.")


def row_page(row: "PaperRow") -> None:
    """Print a row of a paper, with its numbers, its hardware, its changes to a recipe, and its commands."""
    numbers = "  ".join(f"{name} {value}" for name, value in row.expected.items() if value is not None)
    page = {
        "row": f"{row.paper}, {row.table}: {row.label}",
        "expected": numbers or f"drawn in the paper, not written ({', '.join(row.expected)})",
        "hardware": f"{row.hardware}; not run by us: it needs the hardware",
        "recipe": f"{row.recipe}; sea-pipeline recipes {row.recipe} says where its data comes from",
        "over it": "\n".join(row.overrides),
    }
    terminal.print_table(page)
    terminal.output.print("\n" + "\n".join(row.commands()))


def eval_script(pins: Mapping["Harness", "Pin"], steps: Sequence["Step"]) -> None:
    """Print the commands of a suite as a shell script, each below its note."""
    for name, pin in pins.items():
        print(f"# {name.replace('_', '-')} {pin.version}: {pin.install}")
    if "lmms_eval" in pins:
        print("# Prompts are written by the folder's own chat template; answers are greedy.")
    for step in steps:
        print(f"\n# {step.column}{': ' if step.column else ''}{step.note}")
        print(shlex.join(step.command))


def collected_table(found: "ResultTable") -> None:
    """Print the papers' numbers, a row each, with the harnesses' results below them."""
    table = terminal.plain_table("", "")
    for name in found.columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, (label, scores) in found.papers.items():
        table.add_row(name, label, *_cells(scores), style="dim")
    rows = {"ours": found.ours, "baseline": found.baseline, "difference": found.difference}
    for name, measured in rows.items():
        if measured is not None:
            table.add_row(name, "", *_cells(measured, "{:+.1f}" if name == "difference" else "{:.1f}"))
    terminal.output.print(table)
    for note in found.notes:
        terminal.output.print(note)


def curve_tables(found: "Curves") -> None:
    """Print a table for each column, with a line for each step and a column for each run."""
    for name, curve in found.curves.items():
        table = terminal.plain_table(numbers=("step",), title=f"\n{name}")
        for run in curve:
            table.add_column(run, justify="right", overflow="fold")
        for step in sorted({step for scores in curve.values() for step in scores}):
            table.add_row(f"{step:,}", *_cells({run: scores.get(step) for run, scores in curve.items()}))
        papers = {run: found.papers.get(run, {}).get(name) for run in curve}
        if any(value is not None for value in papers.values()):
            table.add_row("paper, end", *_cells(papers), style="dim")
        terminal.output.print(table)
    for note in found.notes:
        terminal.output.print(note)


def _cells(scores: Mapping[str, float | None], form: str = "{:.1f}") -> list[str]:
    return ["" if value is None else form.format(value) for value in scores.values()]


def plain_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Select the metrics of `evaluate_model` that are one number each."""
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _quoted(token: str) -> str:
    text = token if token.isprintable() else repr(token)[1:-1]
    return f"'{text[:_TOKEN]}…'" if len(text) > _TOKEN else f"'{text}'"


def _data_table(rows: Mapping[str, int]) -> None:
    table = terminal.plain_table()
    for heading in ("data", "number"):
        table.add_column(heading, justify="left" if heading == "data" else "right", overflow="fold")
    for what, number in rows.items():
        table.add_row(escape(what), f"{number:,}")
    terminal.say(table)


def _trainable_table(parts: "Mapping[str, Part]") -> None:
    table = terminal.plain_table("part", numbers=("parameters", "train", "learning rate"))
    for part, (total, trains, rate) in parts.items():
        shown = "logit_scale" if part == "alignment" else part  # as the recipe calls it
        table.add_row(shown, f"{total:,}", f"{trains:,}" if trains else "frozen", f"{rate:g}" if rate else "")
    terminal.say(table)


def _line(values: Mapping[str, float]) -> str:
    shown = [name for name in _WHILE_TRAINING if name in values]
    return ", ".join(f"{name} {_with_error(name, values)}" for name in shown or values)


def _number(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in _COUNTS else f"{value:.3f}"


def _with_error(name: str, values: Mapping[str, float]) -> str:
    """Format a metric with its standard error, if it has one."""
    if name not in values:
        return ""
    error = values.get(f"{name}_se")
    return _number(name, values[name]) + ("" if error is None else f" ± {error:.3f}")


_SHOWN = [
    (lens, kind, what) for lens in ("contextual", "word") for kind in ("", "_label") for what in ("share", "gain")
]


def lens_table(found: Mapping[str, Any]) -> None:
    """Print what the visual tokens of each layer mean by the contextual lens and by the nearest input embedding."""
    index, layers = found["index"], found["layers"]
    title = (
        "\nshare of visual tokens nearest to a word of their photo's captions, and gain over another photo's, by layer"
    )
    names = [f"{lens}{kind}_{what}" for lens, kind, what in _SHOWN]
    shown = [name for name in names if name in layers[0]]
    headings = ("layer", *(name.replace("_", " ") for name in shown), "matches")
    table = terminal.plain_table(numbers=headings, title=title)
    table.add_column("most frequent", overflow="fold")
    for layer in layers:
        frequent = "  ".join(f"'{one['token']}' {one['share']:.0%}" for one in layer["frequent"])
        cells = [_with_error(name, layer) for name in shown]
        table.add_row(str(layer["layer"]), *cells, f"{layer['matched_layer']:g}", frequent)
    terminal.output.print(table)
    terminal.print_table(
        {
            "photos": f"{found['photos']:,}",
            "contextual": f"{index['tokens']:,} words in {index['texts']:,} sentences of {found['data']}, at the LLM's "
            f"layers {', '.join(map(str, index['layers']))}: {index['states']:,} states, {decimal(index['bytes'])}",
            "word": f"the input embeddings alone, {index['embeddings']:,} tokens",
            "matches": "median of the layers that the nearest states are of",
        }
    )
