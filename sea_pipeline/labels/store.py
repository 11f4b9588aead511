"""Open and read labels, for training, reports and other people's scripts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.crops import CropBox, image_and_crop
from sea_pipeline.labels.format import KIND, label_arrays, label_schema, read_mean_similarity, read_words
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Manifest
from sea_pipeline.output.row_store import RowStore, open_finished
from sea_pipeline.storage.paths import Place


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one image."""

    word_ids: npt.NDArray[np.int32]
    """(patches, n): positions in the word list, best first; -1 if there is no label."""
    scores: npt.NDArray[np.float32]
    """(patches, n): similarity s (SEA Eq. 6), not negative; 0 if there is no label."""
    grid: tuple[int, int]
    """(rows, columns); patches are row-major."""
    crop_box: CropBox
    """x0, y0, x1, y1: the part of the upright image that the grid covers, 0..1; beyond it if bars were added."""


class LabelStore(RowStore):
    """The labels of a finished run, by image id. Open it with `open_labels`."""

    def __init__(self, ledger: Ledger, manifest: Manifest, words: tuple[str, ...]) -> None:
        super().__init__(ledger, manifest, label_schema(1, 1).names)
        self.words = words
        """The word list; word ids are positions in it."""
        self.encoder: str = ledger.dataset.encoder or manifest.fields["encoder"]["name"]
        """The spec of the encoder that made the labels."""
        self.top_n: int = manifest.fields["top_n"]
        self.has_crops = "crops" in manifest.fields
        """Whether crops of the images are labelled, too."""

    def __getitem__(self, image_id: str) -> Labels:
        """Return the labels of one image.

        Raises:
            KeyError: there is no such image; the message counts the images and shows the nearest id.
        """
        return self._labels(self._row(image_id))

    def _made_by(self) -> str:
        return f", encoder {self.encoder!r}"

    def has_words(self) -> bool:
        """Tell whether any patch has a label; rows are read up to the first that has."""
        tables = self.tables(("words", "scores"))
        return any((label_arrays(table, self.top_n)[1] > 0).any() for table in tables)

    def is_crop(self, image_id: str) -> bool:
        """Tell whether a row is of a labelled crop of an image, and not of the image itself."""
        return self.has_crops and image_and_crop(image_id)[1] > 0

    def count_crops(self) -> int:
        """Count the rows that are of labelled crops."""
        return sum(map(self.is_crop, self.ids)) if self.has_crops else 0

    def mean_similarity(self) -> npt.NDArray[np.float32]:
        """Read the mean of s over all patches of the run, (words,) in the order of the list (SEA Fig. 6b)."""
        return read_mean_similarity(self.path)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Read (width, height) of all upright images, by image id."""
        shards = self._values("image_id", "width", "height")
        return {name: (width, height) for columns in shards for name, width, height in zip(*columns, strict=True)}

    def _labels(self, row: pa.Table) -> Labels:
        word_ids, scores = label_arrays(row, self.top_n)
        crop = row["crop_box"].combine_chunks().flatten().to_numpy()
        return Labels(word_ids[0], scores[0], self.grid, tuple(float(edge) for edge in crop))  # type: ignore[arg-type]


def open_labels(path: str | Place, *, verify: bool = True, reporter: Reporter = SILENT) -> LabelStore:
    """Open the labels that `sea-pipeline label` wrote.

    Args:
        path: the output folder, on this machine or as the URL of a store elsewhere (`s3://…`).
        verify: hash every shard first. Otherwise damage is found only when the damaged page is read.
        reporter: receives progress if it takes longer than seconds.

    Raises:
        ValueError: the folder is not one of labels, is not finished, or has a file that is not as written. The
            message names the file.
    """
    ledger, manifest = open_finished(path, KIND, verify=verify, reporter=reporter)
    return LabelStore(ledger, manifest, read_words(ledger.root))
