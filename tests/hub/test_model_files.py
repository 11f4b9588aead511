"""Files of models that the hub has, has not, or cannot tell of."""

from pathlib import Path

import pytest

from tests.hub.stand_in import Hub
from tests.support.refused import refused
from trainer.model.hub import find_file

pytestmark = pytest.mark.usefixtures("no_backoff")
NAME = "owner/llm"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_cannot_say_is_not_taken_for_one_that_has_no_such_file(status: int, hub: Hub) -> None:
    hub.put(NAME, {"config.json": b"{}", "tokenizer.model": b"pieces"})
    hub.fault = lambda method, path, number: status if path.endswith("tokenizer.model") else None
    advice = f"cannot say whether it has tokenizer.model (status {status}); run the same command again later"
    with refused(advice, start=f"{NAME}: "):
        find_file(NAME, "tokenizer.model")
    hub.fault = lambda method, path, number: None
    found = find_file(NAME, "tokenizer.model")
    assert found is not None
    assert found.read_bytes() == b"pieces"


def test_absence_is_none(hub: Hub, tmp_path: Path) -> None:
    hub.put(NAME, {"config.json": b"{}"})
    assert find_file(NAME, "tokenizer.model") is None
    assert find_file("owner/nothing", "tokenizer.model") is None
    assert find_file(str(tmp_path), "tokenizer.model") is None


def test_without_a_network_nothing_is_there_but_what_was_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(NAME, {"config.json": b"{}", "tokenizer.json": b"{}"})
    assert find_file(NAME, "config.json") is not None
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    assert find_file(NAME, "config.json") is not None
    assert find_file(NAME, "tokenizer.json") is None
