from __future__ import annotations

import base64
import hashlib
import html
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from fabricate import LABELS, STEPS, fabricate, fabricate_heat

from vgg16_xray.errors import UserError
from vgg16_xray.learn.checkpoint import save_tensors
from vgg16_xray.report import figures
from vgg16_xray.report.page import believe, duration, write_report
from vgg16_xray.rundir import RunDir

#: Elements that have no end (HTML standard, "void elements").
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The page as a browser reads it; refuses what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(run: RunDir) -> tuple[str, Page]:
    text = write_report(run).read_text("utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = fabricate(tmp_path_factory.mktemp("report") / "run", skill=1.8)
    figures.after_preprocess(run)
    figures.after_test(run)
    return run


def test_the_page_asks_the_network_for_nothing_and_runs_no_script_but_its_own(finished: RunDir) -> None:
    text, page = read(finished)
    assert not re.search(r"https?:|@import|url\(", text.split("<body>")[0])
    (script,) = re.findall("<script>(.*?)</script>", text, flags=re.DOTALL)
    assert page.attributes("script") == [{}]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            # Within the page, in it, or a file of the run beside it.
            assert re.match(r"#|data:|audit\.html$|cards/\w+\.md$", attributes.get(name) or "#"), attributes
    (policy,) = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert len(text.encode()) < 8_000_000


def test_every_picture_is_in_the_page_with_its_alternative_text(finished: RunDir) -> None:
    _, page = read(finished)
    drawn = {"curves", "roc", "precision_recall", "reliability", "confusion"}
    pictures = {picture.alt for name, picture in figures.PICTURES.items() if name not in drawn}
    assert {i["alt"] for i in page.attributes("img") if i["alt"]} == pictures
    for name, picture in figures.PICTURES.items():
        assert picture.reading in page.words or name == "confusion"
    charts = [attributes for attributes in page.attributes("svg") if attributes["class"] == "chart"]
    assert len(charts) == 6
    assert all(chart["aria-label"] and chart["tabindex"] == "0" for chart in charts)


def test_every_test_film_is_in_the_table_with_the_surest_mistake_first(finished: RunDir) -> None:
    _, page = read(finished)
    predictions = pd.read_csv(finished.predictions)
    films = predictions[predictions["split"] == "test"]
    rows = [attributes for attributes in page.attributes("tr") if "data-right" in attributes]
    wrong = (films["label"] != films["prediction"]).sum()
    assert [row["data-right"] for row in rows] == ["no"] * wrong + ["yes"] * (len(films) - wrong)
    surest = films[films["label"] != films["prediction"]].sort_values("confidence").iloc[-1]
    assert (rows[0]["data-true"], rows[0]["data-said"]) == (surest["label"], surest["prediction"])
    assert page.words.index("Film by film Research use only") < page.words.index(surest["path"])


def test_of_many_films_some_are_in_the_table_and_their_pictures_have_bounded_room(
    finished: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.report.page.MOST_FILMS", 20)
    monkeypatch.setattr("vgg16_xray.report.page.MOST_PICTURE_BYTES", 10_000)
    _, page = read(finished)
    assert "20 of 48 films, wrong answers first; all stand in predictions.csv." in page.words
    assert len([row for row in page.attributes("tr") if "data-right" in row]) == 20
    pictures = [str(image["src"]) for image in page.attributes("img") if not image["alt"]]
    assert 0 < len(pictures) < 20
    assert sum(map(len, pictures[:-1])) < 10_000


def test_the_result_stands_at_the_top_with_its_intervals(finished: RunDir) -> None:
    _, page = read(finished)
    overall = figures.read_json(finished.test)["overall"]
    top = page.words[: page.words.index("How far can this be believed?")]
    for key in ("accuracy", "balanced_accuracy"):
        found = overall[key]
        assert f"{100 * found['value']:.1f} % " in top
        assert f"{100 * found['low']:.1f}–{100 * found['high']:.1f} %" in top
    assert f"{overall['macro_f1']['low']:.3f}–{overall['macro_f1']['high']:.3f}" in top


def test_research_use_only_stands_at_the_top_beside_predictions_and_at_the_bottom(finished: RunDir) -> None:
    _, page = read(finished)
    places = [match.start() / len(page.words) for match in re.finditer("Research use only", page.words)]
    assert len(places) >= 3
    assert places[0] < 0.02
    assert places[-1] > 0.95


def test_tables_say_what_their_heads_belong_to_and_headings_skip_no_level(finished: RunDir) -> None:
    _, page = read(finished)
    assert all(head.get("scope") in {"col", "row"} for head in page.attributes("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = {str(link["href"]) for link in page.attributes("a")}
    assert {link for link in links if link.startswith("#")} <= {f"#{name}" for name in names}
    beside = [finished.path / link for link in links if not link.startswith("#")]
    assert beside
    assert all(file.exists() for file in beside), "a link leads nowhere"


def test_quarantined_files_durations_layers_and_configuration_are_told(finished: RunDir) -> None:
    _, page = read(finished)
    for words in ("empty file (2)", "cannot be decoded: truncated file", "30 min 30 s", "features.28", 'head = "gap"'):
        assert words in page.words
    assert "14,714,688 parameters in the base" in page.words
    assert '[recipe] name = "default"' in page.words


def test_what_comes_from_the_data_is_escaped(tmp_path: Path) -> None:
    evil = ("<b>bold</b>", "\"quoted\" & <script>alert('x')</script>")
    run = fabricate(
        tmp_path / 'run "<i>"',
        labels=evil,
        sources={label: (f"<u>{label}</u>",) for label in evil},
        folder="<img src=x onerror=alert(1)>",
    )
    pd.DataFrame([("<iframe>.png", "</td><script>alert(2)</script>")], columns=["path", "reason"]).to_csv(
        run.quarantine, index=False
    )
    run.config.write_text(run.config.read_text("utf-8") + '[x]\ny = "</pre><script>alert(3)</script>"\n', "utf-8")
    text, page = read(run)
    assert not [tag for tag, _ in page.elements if tag in {"b", "u", "i", "iframe"}]
    assert len(page.attributes("script")) == 1
    assert all(str(image["src"]).startswith("data:image/jpeg") for image in page.attributes("img"))
    for word in (*evil, "<iframe>.png", "</pre><script>alert(3)</script>"):
        assert word in page.text
        assert html.escape(word).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text


def test_where_heat_maps_look_is_told_until_the_model_is_another(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    fabricate_heat(run)
    _, page = read(run)
    assert "more heat than an even heat and random weights there, and not shown to be more than other" in page.words
    assert page.words.count("Heat in the opacities, of that in the lungs") == 2
    assert "3 more were its own films" in page.words
    run.best.write_bytes(b"another model")
    _, page = read(run)
    assert "What lies here is of a model that this run no longer has" in page.words
    assert "Heat in the opacities" not in page.words


@pytest.mark.parametrize("upto", STEPS)
def test_the_page_can_be_written_after_any_step_and_names_what_is_missing(tmp_path: Path, upto: str) -> None:
    run = fabricate(tmp_path / "run", upto=upto)
    _, page = read(run)
    done = STEPS.index(upto) + 1
    assert page.words.count("not yet") == len(STEPS) - done
    assert ("There is no result yet" in page.words) == (upto != "test")
    if upto == "validate":
        assert "the test films have not been touched" in page.words


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    _, page = read(RunDir(tmp_path))
    assert "There is no result yet" in page.words
    assert "vgg16-xray download" in page.words


def test_the_same_run_gives_the_same_page(finished: RunDir) -> None:
    assert write_report(finished).read_bytes() == write_report(finished).read_bytes()


def test_a_history_that_was_cut_is_noticed_by_the_state_of_the_training(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    whole = run.history.read_bytes()
    rows = len(whole.splitlines()) - 1
    save_tensors(run.last, {}, {"history": [{}] * rows})
    write_report(run)
    # In the middle of the last row, and before it.
    for kept in (whole[:-3], b"".join(whole.splitlines(keepends=True)[:-1])):
        run.history.write_bytes(kept)
        with pytest.raises(UserError, match=rf"history\.csv: must have the {rows} epochs .*, found {rows - 1}; delete"):
            write_report(run)
    # A process that was killed between the two left one row more.
    save_tensors(run.last, {}, {"history": [{}] * (rows - 1)})
    run.history.write_bytes(whole)
    write_report(run)


def manifest(rows: list[tuple[str, str, str]], *, patient: str = "p") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["label", "source", "split"]).assign(patient_id=patient)


def test_classes_from_hospitals_of_their_own_are_said_plainly(finished: RunDir) -> None:
    _, page = read(finished)
    assert "The model may have learned to recognise the hospital, and the accuracy cannot tell." in page.words
    assert "is right for 100.0 %" in page.words
    for source in ("BIMCV", "Hannover", "Kermany"):
        assert source in page.words


def test_a_source_with_two_classes_is_not_called_confounded() -> None:
    rows = [("A", "S", "train"), ("B", "S", "train"), ("B", "S", "train"), ("A", "S", "test"), ("B", "S", "test")]
    found = believe(manifest(rows))
    assert found.verdict == "mixed"
    assert "cannot tell" not in " ".join(found.sentences)
    assert found.from_source_alone == 0.5  # the source says B for both test films


def test_one_class_from_elsewhere_is_named() -> None:
    rows = [("A", "S", "train"), ("B", "S", "train"), ("C", "T", "train"), ("C", "T", "test"), ("A", "S", "test")]
    found = believe(manifest(rows))
    assert found.verdict == "partly"
    assert "The films of C come from sources that no other class has." in found.sentences[0]
    assert found.table == (("S", (1 + 1, 1, 0), 2), ("T", (0, 0, 2), 1))


def test_unknown_sources_and_patients_are_not_taken_for_good_ones() -> None:
    found = believe(manifest([("A", "", "train"), ("B", "", "train"), ("A", "", "test")], patient=""))
    assert found.verdict == "unknown"
    assert found.from_source_alone is None
    assert "The patient is unknown for 3 of 3 films" in found.sentences[-1]


def test_a_few_films_of_unknown_source_do_not_hide_the_confounding() -> None:
    rows = [("A", "S", "train")] * 5 + [("B", "T", "train")] * 5 + [("A", "", "train"), ("B", "", "test")]
    found = believe(manifest(rows))
    assert found.verdict == "confounded"
    assert any("The source of 2 films is unknown" in sentence for sentence in found.sentences)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (41.2, "41 s"), (59.7, "1 min 0 s"), (1830, "30 min 30 s"), (7500, "2 h 5 min")],
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_fabricated_classes_are_all_in_the_tables(finished: RunDir) -> None:
    _, page = read(finished)
    assert all(page.words.count(label) >= 4 for label in LABELS)
