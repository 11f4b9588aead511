"""The name that a mistaken one is nearest to."""

import unicodedata

import pytest

from sea_pipeline.core.near_names import nearest_name

COMPOSED = "a b/Bild 017 \u00dc.jpg"
NAMES = [COMPOSED.replace("017", "197"), "other.jpg"]


@pytest.mark.parametrize(("typed", "form"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_the_same_name_in_the_other_form_of_unicode_is_no_other_name(typed: str, form: str) -> None:
    wanted, held = (unicodedata.normalize(each, COMPOSED) for each in (typed, form))
    assert nearest_name(wanted, [*NAMES, held]).endswith(
        f"looks the same is there, in Unicode's form {form}: write it so"
    )
    assert nearest_name(wanted, NAMES).startswith("; the nearest is 'a b/Bild 197")
