"""The report where more than one study meets: lines carried over, baselines, signs of ours."""

import json

import pandas as pd
import pytest

from aeft_lib.studies import report, report_page, verdicts


def table(**rows: list[float]) -> pd.DataFrame:
    """A study's table of mIoU, equal in every metric, for repeats 0, 1, ..."""
    lines = [
        (row, repeat, *[v] * 4) for row, values in rows.items() for repeat, v in enumerate(values)
    ]
    return pd.DataFrame(
        lines, columns=["row", "repeat", "miou", "precision", "recall", "miou_maskless"]
    )


def lines(built: dict) -> dict[str, dict]:
    return {line["id"]: line for line in built["claims"]}


# --- carry_over -----------------------------------------------------------------------------------


def small(profile: str = "laptop", **repeats: int) -> dict:
    """A report of a few lines: id -> number of repeats."""
    bare = report._line("", "", "", None, [], [], {"place": ""}) | {"needs": 10}
    return {
        "profile": profile,
        "claims": verdicts.judged(
            bare | {"id": i, "n": n, "pairs": n, "commit": f"{profile} {n}"}
            for i, n in repeats.items()
        ),
    }


def put(folder, earlier: dict):
    (folder / "report.json").write_text(json.dumps(earlier), encoding="utf-8")
    return folder


def test_of_two_lines_the_one_of_more_repeats_is_carried_over_whole_and_in_place(tmp_path):
    earlier = put(tmp_path, small(gone=9, c=3, b=2, a=3))
    carried = report.carry_over(small(a=0, b=5, c=2, new=1), earlier)
    assert [(line["id"], line["n"]) for line in carried["claims"]] == [
        ("a", 3),
        ("b", 5),
        ("c", 3),
        ("new", 1),
    ]
    assert [line["commit"] for line in carried["claims"]] == [
        "laptop 3",
        "laptop 5",
        "laptop 3",
        "laptop 1",
    ]
    assert carried["profile"] == "laptop"


def test_a_line_that_is_carried_over_is_named_as_today(tmp_path):
    old = small(**{"claim.finer_levels_help": 3, "table1.2x2": 3})
    for line in old["claims"]:
        line |= {"claim": "an earlier name", "profile": "laptop"}
    new = small(**{"claim.finer_levels_help": 1, "table1.2x2": 0})
    for line in new["claims"]:
        line |= {"claim": "6×6 (paper 16×16) beats 1×1 (paper 2×2)", "profile": "laptop"}
    lines = {line["id"]: line for line in report.carry_over(new, put(tmp_path, old))["claims"]}
    assert [line["n"] for line in lines.values()] == [3, 3]
    beats = "6×6 (paper 16×16) beats 1×1 (paper 2×2)"
    assert lines["claim.finer_levels_help"]["claim"] == beats
    # The text of a line that was not run names its task in place of the question.
    assert lines["table1.2x2"]["claim"] == "1×1 (paper 2×2) gives better seeds than GAP"


def test_as_many_repeats_are_the_new_line(tmp_path):
    earlier = small(a=3)
    earlier["claims"][0]["commit"] = "old"
    assert report.carry_over(small(a=3), put(tmp_path, earlier)) == small(a=3)


def test_nothing_is_carried_over_from_another_profile_or_from_nowhere(tmp_path):
    now = small(a=0)
    assert report.carry_over(now, tmp_path / "not there") == now
    assert report.carry_over(now, tmp_path) == now
    assert report.carry_over(now, put(tmp_path, small("smoke", a=9))) == now


# --- build ----------------------------------------------------------------------------------------

TRIPLET = table(
    gpp_only=[40.0, 44.0],
    attract_soft=[43.0, 45.0],
    attract_soft_repel=[39.0, 42.0],
    ours=[45.0, 46.0],
)


def test_a_number_of_table_2_is_judged_against_gpp_only():
    soft, both = (
        lines(report.build({"triplet_ablation": TRIPLET}, "tiny"))[f"table2.{row}"]
        for row in TRIPLET["row"][2:6:2]
    )
    assert (soft["claim"], soft["reproduced_mean"], soft["n"]) == (
        "Attract (soft) gives better seeds than GPP only",
        44,
        2,
    )
    assert (soft["difference"], both["difference"]) == (2, -1.5)  # +3, +1; -1, -2
    assert soft["low"] < 0 < soft["high"]
    assert (soft["verdict"], soft["reason"]) == ("undecided", "2 of 5 repeats")
    assert soft["command"] == "aeft run triplet_ablation --repeats 5"


def test_the_baseline_may_stand_in_another_studys_table():
    of = {
        "triplet_ablation": TRIPLET,
        "pyramid_ablation": table(gap=[30.0, 33.0], gpp_only=[0.0, 0.0]),
    }
    of["pyramid_ablation"] = of["pyramid_ablation"].query("row == 'gap'")
    line = lines(report.build(of, "tiny"))["table2.gpp_only"]  # 40 - 30, 44 - 33
    assert (line["claim"], line["difference"]) == ("GPP only gives better seeds than GAP", 10.5)
    assert (line["reproduced_mean"], line["n"]) == (42, 2)
    reverse = of | {"pyramid_ablation": table(gap=[50.0, 51.0])}
    assert lines(report.build(reverse, "tiny"))["table2.gpp_only"]["difference"] == -8.5


def test_a_number_whose_baseline_is_nowhere_stands_without_a_verdict():
    line = lines(report.build({"triplet_ablation": TRIPLET}, "tiny"))["table2.gpp_only"]
    assert (line["reproduced_mean"], line["n"], line["verdict"]) == (42, 2, "undecided")
    assert (line["reason"], line["pairs"]) == ("row gap was not run", 0)
    rows = TRIPLET[TRIPLET["row"] != "gpp_only"]
    line = lines(report.build({"triplet_ablation": rows}, "tiny"))["table2.attract_soft"]
    assert (line["reproduced_mean"], line["verdict"]) == (44, "undecided")


def test_what_we_add_is_judged_by_the_same_rule():
    carried = lines(report.build({"triplet_ablation": TRIPLET}, "tiny"))
    ours = carried["ours.beats_soft_repel"]  # +6, +4
    assert (ours["published"], ours["reproduced_mean"], ours["n"], ours["verdict"]) == (
        None,
        5,
        2,
        "undecided",
    )
    assert ours["reason"] == "2 of 3 repeats"
    assert carried["ours.beats_classification"]["verdict"] == "not run"  # its study is another one


# --- markdown -------------------------------------------------------------------------------------


def line(name: str, published: float | None, mean: float) -> dict:
    plain = report._line(name, "c", "", published, [], [], {"place": "", "repeats": 2})
    numbers = {"reproduced_mean": 44.0, "n": 2, "difference": mean, "pairs": 2, "short": False}
    ends = {"low": mean - 0.5, "high": mean + 0.5, "p": 0.01}
    return verdicts.judged([plain | numbers | ends])[0]


LINES = {
    "claims": [
        line("table2.x", 54.2, 1.0),
        line("claim.x", 1.6, 2.0),
        line("ours.x", None, 3.0),
        line("ours.y", 1, -3.0),
    ]
}


def test_differences_are_signed_and_numbers_are_not():
    end = " | holds | not run | not run |"
    assert report_page.markdown(LINES).splitlines()[2:] == [
        f"| `table2.x` | c | 54.2 | 44.0; +1.0 [+0.5, +1.5] (2) | holds{end}",
        f"| `claim.x` | c | +1.6 | +2.0 [+1.5, +2.5] (2) | holds{end}",
        f"| `ours.x` | c | — | +3.0 [+2.5, +3.5] (2) | holds{end}",
        f"| `ours.y` | c | +1.0 | -3.0 [-3.5, -2.5] (2) | {'fails | fails' + end[8:]}",
    ]


def test_what_every_line_shares_stands_above_a_brief_table_once():
    told, empty, head, _, *lines = report_page.markdown(LINES, "ours.", brief=True).splitlines()
    assert told == "In every line *on real photos*: not run; *at paper scale*: not run."
    assert (empty, len(lines)) == ("", 2)
    assert head.startswith("| id | claim | published | ours, difference")
    assert head.endswith("| verdict | adjusted |")
    assert lines[0].endswith(" | holds | holds |")
    alone = {"claims": LINES["claims"][:1]}  # of one line nothing is shared
    assert report_page.markdown(alone, brief=True) == report_page.markdown(alone)


def test_the_interval_over_objects_has_a_column_where_a_line_has_one():
    over = {"objects_low": 0.5, "objects_high": 1.5, "objects": 43}
    first, *others = LINES["claims"]
    head, rule, *lines = report_page.markdown({"claims": [first | over, *others]}).splitlines()
    assert "| [95 % over objects] (n) |" in head
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert "| [+0.5, +1.5] (43) |" in lines[0]
    assert "(2) | — | holds" in lines[1]
    head, rule, *lines = report_page.markdown(LINES).splitlines()
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert "objects" not in head


@pytest.mark.parametrize(
    ("prefix", "kept"),
    [
        ("", ["table2.x", "claim.x", "ours.x", "ours.y"]),
        ("ours.", ["ours.x", "ours.y"]),
        (("claim.", "ours.y"), ["claim.x", "ours.y"]),
        (verdicts.CLAIMS, ["claim.x", "ours.x", "ours.y"]),
        ((), []),
    ],
)
def test_a_prefix_or_one_of_several_keeps_lines(prefix, kept):
    shown = report_page.markdown(LINES, prefix).splitlines()[2:]
    assert [row.split("`")[1] for row in shown] == kept
