"""Choose the rows that are measured, and say which rows of a file are not."""

from dataclasses import replace

from sea_pipeline.core.progress import Reporter
from sea_pipeline.labels.store import LabelStore
from trainer.data.conversations import summary
from trainer.data.run_rows import Conversations, without_any_unreadable, without_unreadable
from trainer.evaluation.own_run import OwnRun
from trainer.measures.blind_control import one_spelling
from trainer.recipes.recipe import Data

MEND = "mend it, or leave its rows out with --bad-rows leave_out"
"""What to do about a photo that an evaluation cannot read."""


def readable(conversations: Conversations, data: Data, store: LabelStore | None, reporter: Reporter) -> Conversations:
    """Drop the rows of photos that cannot be read if bad rows are left out, and look for such photos if they are not.

    Each photo has one name in what comes back, see `one_spelling`.

    Raises:
        UserError: some photos cannot be read and their rows are not to be left out, or no other rows are left.
    """
    if data.bad_rows == "leave_out":
        found = without_any_unreadable(conversations, data, reporter)
    else:
        found = without_unreadable(conversations, data, store, reporter)
    # `Evaluator` does so again, as training needs; what counts photos before it needs it here.
    return replace(found, train=one_spelling(found.train))


def say_what_is_left_out(conversations: Conversations, reporter: Reporter) -> None:
    """Warn of rows that are left out, by kind."""
    if kinds := conversations.bad.kinds():
        count, left = sum(kinds.values()), len(conversations.train)
        found = "; ".join(f"{number:,} x {kind}" for kind, number in kinds.items())
        reporter.warning(f"{conversations.file}: {count:,} of {count + left:,} rows are left out: {found}")


def say_what_is_cut(conversations: Conversations, own: OwnRun, reporter: Reporter) -> None:
    """Warn of rows whose ends are not measured."""
    rows, _, cut, _ = summary(conversations.train)
    if cut:
        reporter.warning(
            f"{conversations.file}: {cut:,} of {rows:,} rows are longer than data.max_length {own.max_length} of the "
            f"model's run ({own.record}); their ends are not measured"
        )
