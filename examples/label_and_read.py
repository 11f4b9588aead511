"""Label a folder of photos from Python, and print what the labels say of each photo.

python examples/label_and_read.py PHOTOS LABELS [ENCODER]
"""

import sys
from collections import Counter

from sea_pipeline import open_labels
from sea_pipeline.labels.run import LabelSettings, label_images


def label_and_read(settings: LabelSettings) -> dict[str, list[str]]:
    """Label what the settings say, and return each photo's words, the one of the most patches first."""
    label_images(settings)  # finished shards are kept, so that a run that was stopped goes on
    store = open_labels(str(settings.out))
    found = {}
    for image_id in store.ids:
        best = store[image_id].word_ids[:, 0]  # the best word of each patch, -1 if it has none
        found[image_id] = [store.words[word] for word, _ in Counter(best[best >= 0].tolist()).most_common(10)]
    return found


if __name__ == "__main__":
    photos, labels, encoder = [*sys.argv[1:], "packaged"][:3]
    for name, words in label_and_read(LabelSettings(images=photos, out=labels, encoder=encoder)).items():
        print(f"{name}: {' '.join(words)}")
