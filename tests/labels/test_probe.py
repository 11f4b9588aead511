"""Which sign puts captions' words on the pictures: planted colours, hits against chance, and the hint of `label`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline import open_labels
from sea_pipeline.execution import sharded_job
from sea_pipeline.inputs.captions import content_words
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels import caption_lift, sign_probe
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.captioned_images import captioned_images, coverage, named_entries
from sea_pipeline.labels.run import LabelSettings
from sea_pipeline.labels.sign_probe import signed
from tests.support.contents import content
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.world import COLOURS, ColourEncoder, draw

OPPOSITES = [("red", "cyan"), ("green", "magenta"), ("blue", "yellow")]


class Named(ColourEncoder):
    """The colour encoder as one path of a model, or as a model without paths."""

    def __init__(self, sign: int, spec: str = "open_clip:colours/here#final") -> None:
        super().__init__()
        self.sign = sign
        self.spec = spec + ("+" if sign > 0 and "#" in spec else "")


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Pictures of three colours, no two of them opposites, with captions that name two of them and two other words."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(24):
        colours = random.permutation([random.choice(pair) for pair in OPPOSITES]).tolist()
        cells = [[colours[(row * 4 + column) % 3] for column in range(4)] for row in range(3)]
        draw(tmp_path / "photos" / f"{number:02d}.png", cells, size=(48, 48))
        caption = f"A {colours[0]} thing, near {colours[1]} zzyzxes."
        turns = [{"from": "human", "value": "<image>\ncyan?"}, {"from": "gpt", "value": caption}]
        rows.append({"id": number, "image": f"{number:02d}.png", "conversations": turns})
    rows.append({"id": 24, "video": "film.mp4", "conversations": turns})
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch, captioned: Path, words: Path) -> Callable[..., caption_lift.ProbeFindings]:
    def run(**settings: Any) -> caption_lift.ProbeFindings:
        monkeypatch.setattr(sign_probe, "load_encoder", lambda spec, device, options: Named(-1))
        paths = {"packaged": [""]}
        monkeypatch.setattr(
            sign_probe,
            "paths_of",
            lambda spec, device: [spec + path for path in paths.get(spec, ["#final", "#value-"])],
        )
        given = {"data": captioned, "image_root": captioned.parent / "photos", "wordlist": str(words), "top_n": 3}
        given |= {"encoder": ("open_clip:colours/here",), "device": "cpu"}
        return sign_probe.probe_encoders(sign_probe.ProbeSettings.of(**(given | settings)))

    return run


def test_the_sign_that_was_planted_wins(probing: Callable[..., caption_lift.ProbeFindings]) -> None:
    findings = probing(top_n=1)
    assert [(one.spec, one.sign) for one in findings.probed] == [
        (f"open_clip:colours/here#{path}", sign) for path in ("final", "value") for sign in (1, -1)
    ]
    right, wrong = (one.lift for one in findings.probed[:2])
    assert right.hit == 1
    assert right.chance < 0.4  # a colour that the caption lacks is the third one in a quarter of pictures
    assert right.low > 0.6
    assert (wrong.hit, wrong.gain) == (0, -wrong.chance)
    assert wrong.high < -0.5
    assert findings.verdicts() == {"open_clip:colours/here#final": 1, "open_clip:colours/here#value": 1}
    assert findings.best is findings.probed[0]
    assert (findings.images, findings.listed) == (24, 8)
    assert findings.coverage.words == caption_lift.FormCounts(6, 0, 2)
    assert findings.coverage.occurrences == caption_lift.FormCounts(2 * 24, 0, 2 * 24)
    assert (findings.coverage.inflected, findings.coverage.absent) == ((), ("thing", "zzyzxes"))


def test_figures_are_those_of_the_labels_that_label_writes(
    probing: Callable[..., caption_lift.ProbeFindings],
    captioned: Path,
    words: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    findings = probing()
    for probed in findings.probed[:2]:
        monkeypatch.setattr(label_run, "load_encoder", lambda *given, sign=probed.sign: Named(sign))
        out = tmp_path / f"labels{probed.sign}"
        label_run.label_images(
            LabelSettings.of(images=str(tmp_path / "photos"), wordlist=str(words), top_n=3, out=out, device="cpu")
        )
        store = open_labels(out)
        ids = np.concatenate([store[image].word_ids for image in store.ids])
        assert probed.dropped == pytest.approx((ids < 0).mean(), abs=1e-12)
        assert probed.used == len(set(ids[ids >= 0].tolist())) / 8
        uses = {store.words[word]: int((ids == word).sum()) for word in range(8)}
        assert dict(probed.frequent) == {word: count for word, count in uses.items() if count}
        assert [count for _, count in probed.frequent] == sorted(dict(probed.frequent).values(), reverse=True)
        hits = [
            store.words.index(word) in store[row["image"]].word_ids
            for row in json.loads(captioned.read_text())[:24]
            for word in row["conversations"][1]["value"].split()
            if word in COLOURS
        ]
        assert probed.lift.hit == pytest.approx(np.mean(hits))


def test_words_of_captions() -> None:
    listed = "English,dog's,dog,dogs,teddy bear,bear,of,glass of wine,box,Bird\u2019s nest,jack-o'-lantern,pj's,9 pens"
    words = WordList("x", tuple(listed.split(",")))
    named = named_entries(
        [
            ["English dogs", "a teddy bear; boxes"],
            ["the unicorn of unicorns"],
            ["glass of wine"],
            ["a Dog\u2019s PJ\u2019s", "jack-o\u2019-lanterns and pens", "a bird's nest"],
        ],
        words,
    )
    assert [[words.words[named.word_ids[at]] for at in np.flatnonzero(row)] for row in named.flags] == [
        ["English", "dogs", "teddy bear", "bear", "box"],
        [],
        ["glass of wine"],
        ["dog", "Bird\u2019s nest", "jack-o'-lantern", "pj's"],
    ]


PLANTED = [["Two dogs, a Dog and dogs' balls", "the dog runs"], ["English boys are playing frisbee; a boy ran"]]


@pytest.mark.parametrize(
    ("words", "distinct", "occurrences", "inflected", "absent"),
    [
        (("dog", "ball", "run", "play", "boy"), (2, 6, 2), (3, 7, 2),
         "dogs balls boys playing ran runs", "english frisbee"),
        (("dogs", "running", "PLAYED", "Frisbee's"), (2, 4, 4), (3, 5, 4),
         "dog playing ran runs", "balls boy boys english"),
        (("dog dogs", "unicorn"), (0, 0, 10), (0, 0, 12),
         "", "dog dogs balls boy boys english frisbee playing ran runs"),
        (tuple(dict.fromkeys(word for texts in PLANTED for text in texts for word in content_words(text))),
         (10, 0, 0), (12, 0, 0), "", ""),
    ],
)  # fmt: skip
def test_how_a_list_has_what_captions_say(
    words: tuple[str, ...], distinct: Any, occurrences: Any, inflected: str, absent: str
) -> None:
    held = coverage(PLANTED, WordList("x", words))
    assert (held.words, held.occurrences) == (caption_lift.FormCounts(*distinct), caption_lift.FormCounts(*occurrences))
    assert set(held.inflected) == set(inflected.split())
    assert set(held.absent) == set(absent.split())


def test_images_are_chosen_by_their_ids_alone(tmp_path: Path) -> None:
    def row(image: Any, caption: str | None) -> dict[str, Any]:
        turns = [{"from": "gpt", "value": caption}] if caption else []
        return {"image": image, "conversations": turns}

    rows = [row(f"{number}.png", f"caption {number}") for number in range(50)]
    rows += [row("7.png", "again"), row("no.png", None), row(["1.png", "2.png"], "two"), row("bad.png", "x")]
    rows += [row("unlisted.png", "x"), {"conversations": [{"from": "gpt", "value": "text"}]}]
    samples = [Sample(f"{number}.png", f"{number}.png") for number in range(50)]
    samples += [Sample("no.png", "no.png"), Sample("bad.png", "bad.png", "a problem")]
    path = tmp_path / "x.jsonl"
    chosen = []
    for seed, order in ((0, 1), (0, -1), (1, 1)):
        path.write_text("".join(json.dumps(one) + "\n" for one in rows[::order]))
        chosen.append([one.sample.image_id for one in captioned_images(path, samples, 9, seed)])
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 9
    everything = captioned_images(path, samples, 1000, 0)
    assert len(everything) == 50
    assert {one.sample.image_id: one.captions for one in everything}["7.png"] == ["caption 7", "again"]
    assert {one.sample.image_id: one.captions for one in everything}["1.png"] == ["caption 1"]
    ranked = [[one.sample.image_id for one in captioned_images(path, samples, count, 0)] for count in (9, 10)]
    assert set(ranked[0]) < set(ranked[1])


def test_specs_with_a_sign() -> None:
    assert signed("open_clip:ViT-B-32/openai#final", 1) == "open_clip:ViT-B-32/openai#final+"
    assert signed("s2:open_clip:ViT-B-32/openai#value+", -1) == "s2:open_clip:ViT-B-32/openai#value-"
    assert signed("open_clip:ViT-B-32/openai#final-", None) == "open_clip:ViT-B-32/openai#final"
    assert signed("packaged", -1) == "packaged"


@pytest.fixture
def hinted(monkeypatch: pytest.MonkeyPatch, captioned: Path, words: Path) -> Callable[..., list[str]]:
    def run(sign: int, out: Path, *spec: str, **settings: Any) -> list[str]:
        monkeypatch.setattr(label_run, "load_encoder", lambda *given: Named(sign, *spec))
        given = {"images": str(captioned), "image_root": captioned.parent / "photos", "wordlist": str(words)}
        given |= {"top_n": 1, "out": out, "device": "cpu", "shard_size": 8}
        heard = Heard()
        label_run.label_images(LabelSettings.of(**(given | settings)), heard)
        lines = [line for line in heard.lines if not line.startswith("embedding ")]  # the first run alone embeds
        assert lines == [f"the labels go to {out}", *heard.warnings]
        return heard.warnings

    return run


def test_label_warns_of_the_sign_that_loses(hinted: Callable[..., list[str]], tmp_path: Path) -> None:
    (line,) = hinted(-1, tmp_path / "wrong")
    assert "the captions of 24 images" in line
    assert "--encoder open_clip:colours/here#final+," in line
    assert "labels of sign - hold 0% (7" in line
    assert "labels of sign + hold 100% (2" in line
    assert "\n" not in line
    assert hinted(1, tmp_path / "right") == []


def test_a_sign_that_cannot_be_chosen_is_not_advised(
    probing: Callable[..., caption_lift.ProbeFindings],
    hinted: Callable[..., list[str]],
    command: Any,
    captioned: Path,
    words: Path,
    tmp_path: Path,
) -> None:
    found = probing(top_n=1, encoder=("packaged",))
    assert [(one.sign, one.selectable) for one in found.probed] == [(1, False), (-1, True)]
    assert (found.best, found.verdicts()) == (None, {"packaged": 1})
    arguments = ["--data", captioned, "--image-root", captioned.parent / "photos", "--wordlist", words, "--top-n", 1]
    _, stdout, _ = command("probe", *arguments, "--encoder", "packaged")
    assert "sign + is better, which this encoder cannot take; choose another encoder" in " ".join(stdout.split())
    (line,) = hinted(-1, tmp_path / "fixed", "packaged")
    assert "label with another encoder, or" in line


def test_label_looks_once_and_only_where_it_can(
    hinted: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hinted(-1, tmp_path / "off", probe=False) == []
    assert hinted(-1, tmp_path / "few", limit=15) == []
    assert len(hinted(-1, tmp_path / "enough", limit=16)) == 1
    assert hinted(-1, tmp_path / "folder", images=str(tmp_path / "photos"), image_root=None) == []
    with monkeypatch.context() as patch:
        patch.setattr(sharded_job, "run", lambda *given, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hinted(-1, tmp_path / "killed")
    (tmp_path / "enough" / "manifest.json").unlink()
    (tmp_path / "enough" / "commits" / "00001.json").unlink()
    assert hinted(-1, tmp_path / "enough", limit=16) == []  # one shard is done already
    monkeypatch.setattr(label_run, "hint", lambda *given: signed("open_clip:", None))  # not a spec
    assert hinted(-1, tmp_path / "refused", limit=16) == []


def test_the_probe_changes_nothing(hinted: Callable[..., list[str]], tmp_path: Path) -> None:
    for name, looks in (("with", True), ("without", False)):
        assert bool(hinted(-1, tmp_path / name, probe=looks)) is looks
    files = content(tmp_path / "with")
    assert len(files) == 4 + 5 + 1  # the film is in quarantine
    assert files == content(tmp_path / "without")


def test_the_command_prints_tables_and_json(
    probing: Callable[..., caption_lift.ProbeFindings], command: Any, captioned: Path, words: Path
) -> None:
    findings = probing()  # leaves the colour encoder in place
    arguments = ["--data", captioned, "--image-root", captioned.parent / "photos", "--wordlist", words, "--top-n", 3]
    arguments += ["--encoder", "open_clip:colours/here"]
    code, stdout, stderr = command("probe", *arguments)
    assert (code, stderr) == (0, "")
    for expected in (
        "24 with captions",
        "8 in the captions, 96 with repetitions",
        "75.0% of words, 50.0% with repetitions",
        "25.0% of words, 50.0% with repetitions (thing, zzyzxes)",
        "#final  ← best",
        "100.0%",
    ):
        assert expected in stdout
    assert "open_clip:colours/here#final: sign + is better" in stdout
    assert json.loads(command("probe", *arguments, "--json")[1]) == json.loads(json.dumps(findings.to_json()))


@pytest.mark.parametrize(
    ("settings", "content", "expected"),
    [
        ({}, "[]", "expected images, found none"),
        ({"data": "nowhere.json"}, None, "expected LLaVA's .json or .jsonl"),
        ({}, '[{"image": "00.png"}]', "expected two images with captions at least"),
        ({"top_n": 9}, "[]", "; give --top-n 8 or less"),
        ({"image_root": "."}, None, "expected two captioned images at least that open_clip:colours/here#final can"),
        ({"wordlist": "other"}, None, "expected captions that name words of"),
    ],
)
def test_a_mistake_is_one_clear_line(
    probing: Callable[..., caption_lift.ProbeFindings],
    captioned: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    content: str | None,
    expected: str,
) -> None:
    if content is not None:
        captioned.write_text(content)
    if settings.get("wordlist"):
        (tmp_path / "other.txt").write_text("table\nchair\nlamp\n")
        settings = {"wordlist": str(tmp_path / "other.txt")}
    if settings.get("image_root"):
        settings = {"image_root": tmp_path}
    with refused(expected):
        probing(**settings)
