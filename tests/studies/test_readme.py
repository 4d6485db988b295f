"""The README's block of results: short, computed, and the one of the committed report."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from ledger_curves import write

from aeft_lib import paths
from aeft_lib.studies import ledger, readme, report, report_page
from aeft_lib.studies.published import published


def small_report() -> dict:
    """GAP and G in two repeats."""
    lines = [("gap", 0, 40.0), ("gap", 1, 41.0), ("gated", 0, 45.0), ("gated", 1, 47.0)]
    table = pd.DataFrame(lines, columns=["row", "repeat", "miou"])
    return json.loads(json.dumps(report.build({"gap_vs_gpp": table}, "tiny")))


def with_own_claim(verdict: str) -> dict:
    whole = small_report()
    line = next(line for line in whole["claims"] if line["id"] == "ours.crf_refines")
    line |= {"verdict": verdict, "difference": 3.0, "low": 2.0, "high": 4.0, "pairs": 3}
    return whole


def rows(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.startswith("|")][2:]


def test_the_block_has_a_line_for_each_claim_of_the_paper():
    whole = small_report()
    block = readme.block(whole)
    claims = [c for c in published()["claims"] if c["id"].startswith(readme.PAPER)]
    assert [line.split(" | ")[0] for line in rows(block)] == [f"| {c['claim']}" for c in claims]
    assert block.startswith(readme.START)
    assert block.endswith(readme.END)
    assert "`tiny`" in block
    assert report_page.tally(whole, "claim.") in block
    assert report_page.tally(whole, "claim.", "photos_") in block


def test_a_line_has_the_papers_difference_ours_and_that_of_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    whole = small_report()
    first = rows(readme.block(whole))[0]  # +5 and +6, so 5.5 ± 12.7 * 0.5
    line = next(line for line in whole["claims"] if line["id"] == "claim.gpp_beats_gap")
    photos = f"{report_page.points_of(line, 'photos_')} {line['photos_verdict']}"
    photos += f" ({line['photos_reason']})"
    assert first.endswith(f"| +6.2 | +5.5 [-0.9, +11.9] undecided (2 of 5 repeats) | {photos} |")
    assert rows(readme.block(whole))[1].endswith("| — | not run | not run |")


def test_long_trainings_stand_below_where_the_ledger_has_some(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    assert "GPP against GAP along" not in readme.block(small_report())
    for row, miou in (("gap", [50.0] * 4), ("gated", [48.0, 49.0, 50.0, 51.0])):
        write(tmp_path, "evening-voc", row, 0, miou)
    told = "- photos: GPP − GAP is +1.0 points of mIoU after 400 steps"
    assert told in readme.block(small_report())


@pytest.mark.parametrize("verdict", ["holds", "fails", "undecided", "not run"])
def test_of_our_own_claims_those_that_are_decided_are_shown(verdict):
    block = readme.block(with_own_claim(verdict))
    assert ("The dense CRF alone improves seeds" in block) == (verdict in ("holds", "fails"))
    assert ("Not claimed by the paper" in block) == (verdict in ("holds", "fails"))


def test_short_trainings_are_reported():
    whole = small_report()
    assert "Trainings on real photos are short" in readme.block(whole)
    for line in whole["claims"]:
        line["short"] = True
    assert "Trainings on collages and on real photos are short" in readme.block(whole)
    told = readme.block(whole | {"profile": "laptop"})
    assert "short: 120 steps of classification (225 on photos), then 20 of erasing, where" in told


@pytest.fixture
def pages(tmp_path) -> dict[str, Path]:
    """README and start page with something before, between and after their markers."""
    files = {"readme": tmp_path / "README.md", "start": tmp_path / readme.START_PAGE}
    for file in files.values():
        file.parent.mkdir(exist_ok=True)
        text = f"# Título\n\n{readme.START}\nold\n{readme.END}\n\nafter ±\n"
        file.write_text(text, encoding="utf-8")
    return files


def test_update_replaces_its_blocks_alone_and_twice_is_once(tmp_path, pages):
    readme.update(small_report(), tmp_path)
    once = {name: file.read_text(encoding="utf-8") for name, file in pages.items()}
    blocks = {"readme": readme.block(small_report()), "start": readme.start_block(small_report())}
    assert once == {name: f"# Título\n\n{block}\n\nafter ±\n" for name, block in blocks.items()}
    readme.update(small_report(), tmp_path)
    assert once == {name: file.read_text(encoding="utf-8") for name, file in pages.items()}


def test_the_start_page_has_the_main_claims_with_their_verdicts():
    block = readme.start_block(small_report())
    known = {claim["id"]: claim["claim"] for claim in published()["claims"]}
    claims = [known[name] for name in readme.MAIN_CLAIMS]
    assert {line.split(" | ")[0] for line in rows(block)} == {f"| {claim}" for claim in claims}
    assert "+5.5 [-0.9, +11.9] undecided (2 of 5 repeats)" in rows(block)[0]


@pytest.mark.parametrize("text", ["", readme.START, readme.END])
@pytest.mark.parametrize("name", ["readme", "start"])
def test_update_refuses_a_page_without_both_markers_and_writes_none(tmp_path, pages, name, text):
    pages[name].write_text(text, encoding="utf-8")
    before = [file.read_text(encoding="utf-8") for file in pages.values()]
    with pytest.raises(
        ValueError, match=rf"{pages[name].name} has no results block: put .*restore"
    ):
        readme.update(small_report(), tmp_path)
    assert before == [file.read_text(encoding="utf-8") for file in pages.values()]


def test_the_committed_readme_is_short_and_shows_the_committed_report():
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.block(report.load()) in text
    assert len(text.splitlines()) < 150


def test_the_lines_of_python_in_the_readme_run():
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    assert names["logits"].shape == (2, 20)
    assert names["features"].weight.grad.abs().sum() > 0
    assert names["pooling"].gates[0].positive.weight.grad is not None


def test_the_committed_page_is_that_of_the_committed_report():
    page = (paths.FIGURES / "report.md").read_text(encoding="utf-8")
    assert page == report_page.page(report.load()) + "\n"
