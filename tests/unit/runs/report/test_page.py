"""The page of a run: its structure, what it refuses to hold, and what it says."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import report_runs

from llmft import cli
from llmft.runs import listing
from llmft.runs.record import RunRecord, find_run, read_run
from llmft.runs.report import facts, publish
from llmft.runs.report.page import render

KINDS = ["single", "multi", "regression", "mlm", "generate"]
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements close in order; keeps what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.ids = [], [], [], []
        self.styles, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open[-1:] == ["style"] else []).append(data)
        self.text += data


@pytest.fixture(scope="module", params=[(k, h) for k in KINDS for h in (False, True)])
def page(request, tmp_path_factory):
    kind, hostile = request.param
    folder = tmp_path_factory.mktemp("runs") / kind
    report_runs.folder_of(folder, kind, 60, classes=8, hostile=hostile)
    return Page(text := render(read_run(folder))), text, kind


def test_it_is_well_formed_and_its_headings_skip_no_level(page):
    parsed, _, _ = page
    assert parsed.open == []
    assert parsed.headings[0] == 1
    assert parsed.headings.count(1) == 1
    for one, other in zip(parsed.headings, parsed.headings[1:], strict=False):
        assert other <= one + 1
    assert len(parsed.ids) == len(set(parsed.ids))


def test_nothing_runs_and_nothing_comes_from_elsewhere(page):
    parsed, text, _ = page
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href"):
            target = attributes.get(name, "#")
            assert target.startswith("#")
            assert target == "#" or target[1:] in parsed.ids
    for place in re.findall(r"url\(#([^)]+)\)", text):
        assert place in parsed.ids
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(a["content"] for t, a in parsed.tags if "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_texts_cannot_turn_the_page_or_make_it_large(page):
    _, text, _ = page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f]", text)
    assert "x" * 1600 not in text
    assert "<script" not in text
    assert "alert(1)>" not in text
    assert len(text.encode()) < 100_000


def test_charts_and_tables_can_be_read_aloud(page):
    parsed, text, _ = page
    charts = [a for t, a in parsed.tags if t == "svg"]
    assert len(charts) >= 6
    for attributes in charts:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 30
    regions = [a for t, a in parsed.tags if a.get("class") == "scroll"]
    for attributes in regions:
        assert (attributes["tabindex"], attributes["role"]) == ("0", "region")
        assert attributes["aria-label"]
    tables = sum(tag == "table" for tag, _ in parsed.tags)
    assert tables == len(regions) == sum(tag == "caption" for tag, _ in parsed.tags)
    assert "scope" in {n for t, a in parsed.tags if t == "th" for n in a}
    assert 'lang="en"' in text


def test_it_has_the_sections_of_its_kind(page):
    parsed, _, kind = page
    wanted = ["curves", "plan-and-reality", "data", "what-to-try-next"]
    if kind in ("mlm", "generate"):
        wanted += ["before-and-after", "tokens", "examples"]
    else:
        wanted += ["simpler-methods", "answers", "weak-segments", "mistakes"]
    assert set(wanted) <= set(parsed.ids)


def test_the_verdict_and_what_follows(tmp_path):
    text = render(read_run(report_runs.folder_of(tmp_path / "r", "single")))
    said = Page(text).text
    assert "Accuracy 0.8 (95 % interval 0.7511 to 0.8413) on 300 rows of test." in said
    assert (
        "better than majority by 40.0 ± 2.0 points and TF-IDF + logistic by 5.0 ± 2.0"
        " points." in said
    )
    assert "No difference could be told to linear probe" in said
    assert "the loss on validation was still falling, from 0.5" in said
    assert "--calibrate true" in said
    assert re.search(r"reviews\.csv:\d+", said)
    assert render(read_run(tmp_path / "r")) == text


@pytest.mark.parametrize("made", [30, 13, None])
def test_steps_that_were_not_made_as_planned_are_told(made, tmp_path):
    record = {"plan": {"steps": 30}}
    run = RunRecord(tmp_path, record, {"run": {"steps": made} if made else {}})
    wanted = ["The plan is of 30 steps; 13 were made."] if made == 13 else []
    assert facts.cost(run).said == wanted


def test_a_rate_that_is_far_too_high_needs_no_more_epochs(tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "single")
    record = json.loads((folder / "run.json").read_text())
    record["arguments"]["learning_rate"] = {"value": 100.0, "from": "flag"}
    (folder / "run.json").write_text(json.dumps(record))
    said = Page(render(read_run(folder))).text
    assert "a learning rate of 100 is far above what models of text take" in said
    assert "was still falling" not in said


@pytest.mark.parametrize(("before", "hardly"), [(50.0, False), (20.5, True)])
def test_a_text_that_taught_little_is_told(before, hardly, tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "generate")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["before"]["perplexity"]["value"] = before
    (folder / "metrics.json").write_text(json.dumps(metrics))
    said = Page(render(read_run(folder))).text
    assert ("was 20.5 before training and is 20: hardly another" in said) == hardly


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (
            {"status": "failed", "error": "NonFiniteError: the loss is nan"},
            "The run failed; the last step that was logged is 400 of 400. It said:"
            " NonFiniteError: the loss is nan",
        ),
        ({"status": "running"}, "The run was killed; the last step"),
        (
            {"status": "interrupted", "error": "Ctrl-C"},
            "The run was interrupted; the last step that was logged is 400 of 400."
            " Stopped by Ctrl-C",
        ),
    ],
)
def test_a_run_that_did_not_complete_has_a_page(tmp_path, record, wanted):
    folder = report_runs.folder_of(tmp_path / "r", "single", **record)
    for name in ("metrics.json", "predictions.jsonl"):
        (folder / name).unlink()
    said = Page(render(read_run(folder))).text
    assert wanted in said
    assert "Learning rate" in said
    assert "Nothing that was measured" not in said


def test_tags_and_note_of_a_run_are_on_its_page(tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "single")
    assert "Tags" not in render(read_run(folder))
    listing.tag(folder, ["baseline", "<b>"])
    listing.set_note(folder, "before the labels were mended & so on")
    said = Page(render(read_run(folder))).text
    assert (
        "complete. Tags: baseline, <b>. before the labels were mended & so on" in said
    )


def test_only_a_run_json_is_enough(tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": "mlm", "status": "complete"}')
    said = Page(render(read_run(tmp_path))).text
    assert "The run is complete; nothing was measured." in said


def test_rows_without_labels_and_rows_of_folds(tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "single", rows=60)
    lines = [json.loads(x) for x in (folder / "predictions.jsonl").open()]
    for i, row in enumerate(lines):
        row |= {"split": "train", "fold": i % 5 + 1}
    lines[0]["label"] = None
    text = "".join(json.dumps(row) + "\n" for row in lines)
    (folder / "predictions.jsonl").write_text(text)
    said = Page(render(read_run(folder))).text
    assert "On 59 labelled rows of train, each held out in one fold." in said
    assert "1 row has no label and" in said


def test_many_classes_are_cut_and_the_cuts_are_said(tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "single", rows=1500, classes=60)
    text = render(read_run(folder))
    assert "(40 of 60, those of the lowest F1)" in text
    assert re.search(r"20 of [\d,]+ pairs", text)
    assert re.search(r"20 of [\d,]+ mistakes", text)
    assert "60 classes in the order of their names" in text
    assert len(text.encode()) < 130_000


def test_the_command_writes_the_newest_or_the_named_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for day, name in ((1, "older"), (2, "newer")):
        started = f"2026-11-0{day}T10:00:00+0000"
        folder = tmp_path / "outputs" / "mlm" / name
        report_runs.folder_of(folder, "mlm", started=started)
    for words, wanted in (
        ([], "outputs/mlm/newer/report.html"),
        (["older"], "outputs/mlm/older/report.html"),
        (["older", "--output", "there.html"], "there.html"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["report", *words])
        assert exit_.value.code == 0
        assert capsys.readouterr().out == f"{wanted}\n"
        assert (tmp_path / wanted).read_text().startswith("<!doctype html>")
    for words, wanted in (
        (["none"], "no run 'none'; runs are looked for in outputs"),
        (["older", "--output", "page.pdf"], "expected a name that ends in .html"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["report", *words])
        assert exit_.value.code == 2
        assert wanted in capsys.readouterr().err
    assert not (tmp_path / "page.pdf").exists()


def test_a_fault_costs_no_run(tmp_path, capsys):
    folder = report_runs.folder_of(tmp_path / "r", "single")
    (folder / "predictions.jsonl").write_text("{]\n")
    publish.publish_report(folder)
    assert not (folder / "report.html").exists()
    said = capsys.readouterr().err
    assert "llmft: warning: no report.html (`llmft report` tries again): " in said
    assert "predictions.jsonl:1: not a JSON object" in said
    assert "`llmft report` tries again" in said


def test_it_needs_no_torch_and_leaves_nothing_in_the_home_folder(tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "single")
    code = (
        "import sys; from llmft import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "finally: print({'torch', 'transformers', 'sklearn'} & {*sys.modules})"
    )
    words = [sys.executable, "-c", code, "report", str(folder)]
    home = tmp_path / "home"
    home.mkdir()
    env = {n: v for n, v in os.environ.items() if not n.startswith(("XDG", "MPL"))}
    env |= {"HOME": str(home), "LLMFT_HOME": str(home / "llmft")}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "set()"
    assert [path.name for path in home.iterdir()] == ["llmft"]


def test_it_is_written_whole_beside_what_was_there(tmp_path):
    folder = report_runs.folder_of(tmp_path / "r", "mlm")
    assert publish.write_page(read_run(folder)) == folder / "report.html"
    assert find_run(str(folder)).status == "complete"
    assert not list(folder.glob(".report*"))
