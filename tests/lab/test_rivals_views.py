"""Chapter 9: numbers from store and committed tables, pictures of ideas, figures, as data."""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from aeft_lib import paths
from aeft_lib.data.scene import Scene
from aeft_lib.engine import device
from aeft_lib.lab import ch09_failures, ch09_figures, ch09_ideas, ch09_rivals, figures
from aeft_lib.lab.session import Session
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.maps.seeds import Seed
from aeft_lib.studies import catalogue, collected, league, pipeline, run
from aeft_lib.studies.profiles import LAPTOP, SMOKE
from aeft_lib.studies.published import published
from aeft_lib.studies.settings import Profile
from aeft_lib.studies.systems import PLACES, SYSTEMS, brief, own_row, system

ROWS = catalogue.rows_by_name()


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty store, and a folder of committed tables that has none."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    (tmp_path / "figures").mkdir()
    return tmp_path / "figures"


def table(**rows: list[float]) -> pd.DataFrame:
    """A long table of mIoU, by row and repeat."""
    lines = [
        {"row": row, "label": row, "repeat": i, "miou": x, "miou_maskless": x}
        for row, values in rows.items()
        for i, x in enumerate(values)
    ]
    return pd.DataFrame(lines)


# --- numbers --------------------------------------------------------------------------------------


def keyed(**rows: list[float]) -> pd.DataFrame:
    """The same with the keys that the laptop's rows have on this machine."""
    lines = table(**rows)
    jobs = zip(lines["row"], lines["repeat"], strict=True)
    keys = [pipeline.laid_out(LAPTOP, ROWS[r], i)["evaluation"].key for r, i in jobs]
    return lines.assign(key=keys)


def by_row(found: pd.DataFrame) -> dict[str, list[float]]:
    return found.groupby("row")["miou"].apply(list).to_dict()


def test_rows_that_the_store_lacks_come_from_committed_tables(empty):
    keyed(seam=[54.0, 55.0], cpn=[50.0]).to_csv(empty / "rivals.csv", index=False)
    others = table(seam=[9.0], cpn=[1.0, 2.0], gap=[50.0, 51.0])
    others.to_csv(empty / "pyramid_ablation.csv", index=False)
    means = table(aeft_pseudo=[60.0]).drop(columns="repeat")
    means.to_csv(empty / "refinement.csv", index=False)
    lab = Session(LAPTOP, 1)
    found = by_row(ch09_rivals.results(lab))
    assert found == {"seam": [54.0, 55.0], "cpn": [1.0, 2.0], "gap": [50.0, 51.0]}
    told = ch09_rivals.origin(lab, ch09_rivals.results(lab))
    total = len(ch09_rivals.wanted())
    assert told == f"{total} rows: 0 in the store, 3 in committed tables, {total - 3} not run"


def test_committed_lines_count_in_either_precision_and_by_today_s_key_alone(empty, monkeypatch):
    there = keyed(seam=[54.0, 55.0])
    there.loc[1, "key"] = "0123456789abcdef"
    renamed = there.iloc[:1].assign(row="gone")
    pd.concat([there, renamed, table(cpn=[50.0])]).to_csv(empty / "rivals.csv", index=False)
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(device, "has_bf16", lambda _, has=precision == "bf16": has)
        lab = Session(LAPTOP, 1)
        assert lab.profile.precision == precision
        found = ch09_rivals.results(lab)
        assert by_row(found) == {"seam": [54.0]}
        told = ch09_rivals.origin(lab, found)
        assert told.endswith("not run; 2 committed lines are of other code or data, and left out")


def test_the_report_has_the_collected_lines(empty):
    values = {"gap": [50.0, 51.0, 52.0], "seam": [53.0, 54.0, 55.5]}
    keyed(**values).to_csv(empty / "rivals.csv", index=False)
    lines = {line["id"]: line for line in Session(LAPTOP, 3).report()["claims"]}
    seam, cpn = lines["rival.seam.seed"], lines["rival.cpn.seed"]
    assert (seam["n"], seam["pairs"], seam["verdict"]) == (3, 3, "holds")
    assert seam["difference"] == pytest.approx(19 / 6, abs=1e-4)
    assert (cpn["n"], cpn["verdict"]) == (0, "not run")


def test_numbers_in_the_store_come_first(empty, monkeypatch):
    keyed(seam=[54.0, 55.0, 56.0], gap=[50.0]).to_csv(empty / "rivals.csv", index=False)
    stored = {("seam", 0): {"miou": 57.0}, ("seam", 1): {"miou": 58.0}, ("cpn", 0): {}}
    monkeypatch.setattr(run, "stored", lambda _, row, repeat: stored.get((row.name, repeat)))
    found = by_row(ch09_rivals.results(Session(LAPTOP, 1)))
    assert found == {"seam": [57.0, 58.0, 56.0], "gap": [50.0]}


def test_other_profiles_do_not_read_the_laptops_tables(empty, monkeypatch):
    table(seam=[54.0]).to_csv(empty / "rivals.csv", index=False)
    monkeypatch.setattr(ch09_rivals, "is_quick", lambda _: False)
    assert ch09_rivals.results(Session(SMOKE, 1)).empty


def test_only_where_it_takes_seconds_missing_rows_are_trained(empty, monkeypatch):
    asked = []
    monkeypatch.setattr(
        run, "run_study", lambda study, profile, repeats, rows: asked.append((profile.name, rows))
    )
    for profile in (LAPTOP, SMOKE):
        assert ch09_rivals.results(Session(profile, 1)).empty
    assert asked == [("smoke", brief(ROWS))]
    assert ch09_rivals.is_quick(Session(SMOKE, 1))
    assert not ch09_rivals.is_quick(Session(LAPTOP, 1))


def test_the_league_asks_for_every_row_once():
    names = [row.name for row in ch09_rivals.wanted()]
    assert len(set(names)) == len(names)
    for study in ch09_rivals.STUDIES:
        assert {row.name for row in catalogue.get(study).rows} <= set(names)
    assert {"attract_soft_repel", "aeft_pseudo", "segment_aeft"} <= set(names)


# --- tables of text -------------------------------------------------------------------------------


@pytest.fixture
def numbers() -> pd.DataFrame:
    return table(gap=[50.0, 51.0, 52.0], seam=[53.0, 55.0, 54.0], psa_seed=[52.0], cpn=[52.0])


def test_the_league_of_seeds_has_the_base_and_a_line_a_system(numbers):
    lines = league.lines(numbers, ROWS, {"seam": 1.25})
    shown = ch09_rivals.seeds(lines, numbers).set_index("method")
    assert list(shown.index) == ["GAP (base)", *(known.title for known in SYSTEMS)]
    gained = "**+3.0 [+0.5, +5.5]**"
    assert shown.loc["GAP (base)"].tolist() == ["51.0 [48.5, 53.5]", "—", "—", 3, "1.0"]
    assert shown.loc["SEAM"].tolist() == ["54.0 [51.5, 56.5]", gained, gained, 3, "1.2"]
    assert shown.loc["AffinityNet", "mIoU (%)"] == "as GAP"
    assert shown.loc["CPN", "− GAP (points)"] == "+2.0"  # one repeat
    assert shown.loc["ICD", "mIoU (%)"] == "not run"
    assert "ECS (reconstruction)" in shown.index


def test_precision_and_recall_say_where_a_difference_comes_from():
    rows = {"gap": (70.0, 60.0), "seam": (66.0, 71.0), "psa_seed": (70.0, 60.0)}
    known = pd.concat(
        pd.DataFrame({"row": row, "label": row, "repeat": range(3), "miou": 50.0}).assign(
            precision=precision, recall=recall
        )
        for row, (precision, recall) in rows.items()
    )
    shown = ch09_rivals.precision_recall(league.lines(known, ROWS), known).set_index("method")
    assert list(shown.index) == ["GAP (base)", "SEAM"]  # AffinityNet's seeds are GAP's
    assert shown.loc["GAP (base)"].tolist() == ["70.0", "60.0", "not run", "not run"]
    assert shown.loc["SEAM"].tolist() == ["-4.0 [-4.0, -4.0]", "**+11.0 [+11.0, +11.0]**", "—", "—"]


def test_label_maps_and_networks_have_yardsticks_above_them():
    lines = {"gap_pseudo": [70.0, 71.0], "gap_crf": [73.0], "psa": [60.0, 61.0]}
    networks = {"gap_segmentation": [50.0, 51.0], "segment_truth": [49.0, 52.0]}
    known = table(**lines, **networks)
    shown = ch09_rivals.label_maps(league.lines(known, ROWS, {"psa": 1.7}), known)
    assert shown["method"].tolist()[:3] == ["GAP (base)", "GAP, one CRF", "true masks"]
    shown = shown.set_index("method")
    assert shown.loc["GAP, one CRF"].tolist()[:3] == ["73.0", "+3.0", 1]
    assert shown.loc["true masks", "network − GAP (points)"].startswith("+0.0 [")
    labels = ["61.0 [-51.1, 71.6]", "-10.0 [-10.0, -10.0]", 2]
    assert shown.loc["AffinityNet"].tolist()[1:3] == labels[1:]
    assert shown.loc["AffinityNet", "cost (GAP trainings)"] == "1.7"
    assert shown.loc["SEAM", "network (mIoU, %)"] == "not run"


def test_mechanisms_have_a_line_a_system(numbers):
    shown = ch09_rivals.mechanisms(numbers)
    assert shown["method"].tolist() == [known.title for known in SYSTEMS]
    assert shown.set_index("method").loc["ICD", "mechanism"] == "not run"


def test_controls_are_text_and_may_be_none():
    shown = ch09_rivals.controls(table(seam=[54.0, 55.0], seam_off=[50.0, 51.0]))
    assert shown.to_dict("records") == [
        {
            "method": "SEAM",
            "of": "seeds",
            "against": "SEAM, both losses off",
            "its mIoU (%)": "50.5",
            "difference (points)": "+4.0 [+4.0, +4.0]",
            "repeats": 2,
        }
    ]
    assert ch09_rivals.controls(table(seam=[54.0])).empty


def test_photos_stand_beside_the_league(numbers, monkeypatch):
    photos = table(gap=[50.0, 51.0], seam=[61.0, 61.0], occse=[49.5])
    photos = photos.assign(miou_maskless=photos["miou"] - 1)
    monkeypatch.setattr(ch09_rivals.photo_results, "rivals", lambda: photos)
    shown = ch09_rivals.on_photos(league.lines(numbers, ROWS)).set_index("method")
    assert shown.index.tolist() == ["GAP (base)", "SEAM", "OC-CSE"]
    assert shown.loc["GAP (base)"].tolist() == ["50.5", "—", "—", 2, "—"]
    gained = "+11.0, +10.0"  # two repeats have no interval worth its name
    assert shown.loc["SEAM"].tolist() == ["61.0", gained, gained, 2, "**+3.0 [+0.5, +5.5]**"]
    assert shown.loc["OC-CSE"].tolist() == ["49.5", "-0.5", "-0.5", 1, "—"]  # not in the league


def test_published_stands_beside_reproduced(numbers):
    shown = ch09_rivals.beside(league.lines(numbers, ROWS)).set_index("method")
    assert shown.loc["SEAM"].tolist() == ["55.4", "54.0", "63.6", "—", "64.5", "—"]
    assert shown.loc["ICD", "seeds, here"] == "—"
    assert shown.loc["ICD", "pseudo-labels, published"] == "62.2†"


def test_the_map_is_kept_as_data():
    kept = ch09_rivals.map_table()
    assert kept.loc[kept["method"] == "PMM", [*PLACES, "rounds"]].all(axis=None)
    assert kept.set_index("method").loc["IRNet", list(PLACES)].tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_combinations_are_text(numbers):
    shown = ch09_rivals.combinations(table(gap_pseudo=[60.0], pmm_seam=[61.25]))
    assert shown.set_index("seeds").loc["SEAM", "PPMG"] == "61.2 (1)"
    assert shown.set_index("seeds").loc["GAP", "PPMG"] == "—"


# --- ideas ----------------------------------------------------------------------------------------


@pytest.fixture
def case() -> ch09_ideas.Case:
    """A bright square on a dark ground, and a seed that is a little too wide."""
    image = np.full((48, 48, 3), 20, dtype=np.uint8)
    image[12:30, 12:30] = 220
    mask = (image[..., 0] > 100).astype(np.uint8) * 2
    cam = torch.full((1, 48, 48), 0.02)
    cam[0, 10:32, 10:32] = 0.9
    tags = np.array([False, True])
    scene = Scene(image, mask, tags, "drawn")
    return ch09_ideas.Case(scene, 0, None, 1, Seed(torch.tensor([1]), cam), 0.4)


def test_label_makers_follow_the_colour_edge_that_the_seed_misses(case):
    ((image, truth, *maps),), numbers = ch09_ideas.label_makers(case)
    assert (image is case.scene.image, truth is case.scene.mask) == (True, True)
    assert all(set(np.unique(labels)) <= {0, 2} for labels in maps)
    right = numbers.set_index("labels")["right"]
    assert right["seed"] == pytest.approx(1 - (22**2 - 18**2) / 48**2)
    assert right["one CRF"] > right["seed"]
    assert right["PPMG"] > right["seed"]


def test_doubts_paint_where_two_label_maps_differ_and_leave_the_unsure_void(case):
    ((before, after, who, sure, truth),), numbers = ch09_ideas.doubts(case)
    differ = before != after
    grey = np.repeat(case.scene.image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    np.testing.assert_array_equal((who != grey).any(axis=2), differ)
    kept = sure != VOID
    assert set(np.unique(sure[kept])) <= set(np.unique(after))
    assert kept.mean() < 1
    shares = numbers.set_index("pixels")
    assert shares.loc["where they differ", "share"] == pytest.approx(differ.mean())
    assert shares.loc["where they differ", "right"] == (after == truth)[differ].mean()
    assert shares.loc["sure", "share"] == pytest.approx(kept.mean())


def test_what_is_hidden_is_the_mean_colour():
    image = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    hidden = ch09_ideas._hidden(image, np.array([[1.0, 0.0]]))
    assert hidden[0, :, 0].tolist() == [0.0, 0.5]


# --- figures --------------------------------------------------------------------------------------


def words(figure) -> list[str]:
    texts = [text for axis in figure.axes for text in axis.texts]
    return [text.get_text() for text in texts]


def test_the_map_names_every_method_its_idea_and_its_places():
    figure = ch09_figures.field_map({"seam"})
    shown = words(figure)
    assert {known.title for known in SYSTEMS} <= set(shown)
    assert {known.idea for known in SYSTEMS} <= set(shown)
    assert {*PLACES, "image + tags"} <= set(shown)
    boxes = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert [len(line.get_xdata()) for line in boxes].count(4) == 1
    colours = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert colours["SEAM"] != colours["CPN"] == ch09_figures.GREY


def test_the_forest_draws_what_was_run_and_says_what_was_not(numbers):
    figure = ch09_figures.league_forest(league.lines(numbers, ROWS))
    seeds, *_, networks = figure.axes
    dots = [line for line in seeds.lines if line.get_marker() == "o"]
    assert sorted(float(line.get_xdata()[0]) for line in dots) == pytest.approx([2.0, 3.0])
    assert [text.get_text() for text in networks.texts] == ["not run"] * len(SYSTEMS)


def test_published_stands_on_x_and_reproduced_on_y(numbers):
    figure = ch09_figures.published_scatter(league.lines(numbers, ROWS))
    dots = {
        tuple(line.get_xydata()[0]) for line in figure.axes[0].lines if line.get_marker() == "o"
    }
    assert dots == {(55.41, 54.0), (57.41, 52.0)}
    assert figure.axes[0].get_title() == "seeds\nn = 1"  # CPN has one repeat


def test_names_stay_inside_their_panel_and_apart_where_dots_crowd_at_its_top():
    crowded = {
        name: [60.0 + i / 10] * 3 for i, name in enumerate(("seam", "cpn", "occse", "advcam"))
    }
    figure = ch09_figures.published_scatter(
        league.lines(table(gap=[50.0, 51.0, 52.0], sccam=[20.0] * 3, **crowded), ROWS)
    )
    seeds = figure.axes[0]
    boxes = [text.get_window_extent() for text in seeds.texts]
    assert len(boxes) == 5
    assert max(box.y1 for box in boxes) <= seeds.bbox.y1
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_years_have_the_poster_above_and_say_where_nothing_was_run(numbers):
    results = pd.DataFrame(published()["results"])
    dated = results.assign(date=results["venue"].map(published()["venues"]))
    above, below = ch09_figures.over_the_years(dated, league.lines(numbers, ROWS)).axes
    assert len([line for line in above.lines if line.get_marker() != "None"]) == len(SYSTEMS)
    assert len(above.texts) == len(SYSTEMS)
    assert [text.get_text() for text in below.texts] == ["not run"]
    taught = table(segment_aeft=[45.0, 46.0, 47.0], gap_segmentation=[44.0, 44.5, 45.0])
    _, below = ch09_figures.over_the_years(dated, league.lines(taught, ROWS)).axes
    star = next(line for line in below.lines if line.get_marker() == "*")
    assert star.get_xydata()[0].tolist() == [published()["venues"]["ECCV22"], 46.0]


def test_failures_stand_three_in_a_row_and_none_is_told():
    maps = [np.full((4, 4), label, dtype=np.uint8) for label in range(3)]
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    cases = [
        ch09_figures.Failure(f"m{i}", f"method {i}", i, -1.0 - i, "", image, *maps)
        for i in range(3)
    ]
    figure = ch09_figures.failure_grid(cases, ("cat", "dog"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog"]
    axes = figure.axes
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    assert titles == [
        name for i in range(3) for name in ("scene, truth", "GAP", f"method {i} -{i + 1}")
    ]
    assert ch09_failures.table(cases)["loss"].tolist() == [-1.0, -2.0, -3.0]
    assert "not run" in words(ch09_figures.failure_grid([]))[0]
    assert list(ch09_failures.table([])) == ch09_failures.COLUMNS


class KeptIn(NamedTuple):
    """What `ch09_failures` asks of a session; nothing is in its store."""

    figures_folder: Path
    num_classes: int = 11
    profile: Profile = LAPTOP

    def at_hand(self, row: str) -> bool:
        return False


def test_committed_failures_count_while_their_key_is_todays(tmp_path, monkeypatch):
    seam, cpn = (ROWS[name] for name in ("seam", "cpn"))
    maps = [np.full((144, 100), label, dtype=np.uint8) for label in range(3)]
    keys, image = (collected.key(LAPTOP, seam, 0), "of other code"), LAPTOP.val.open().image(7)
    cases = [
        ch09_figures.Failure(row.name, row.label, 7, -1.5, key, image, *maps)
        for row, key in zip((seam, cpn), keys, strict=True)
    ]
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    figures.save_table(ch09_failures.NAME, ch09_failures.table(cases), tmp_path)
    ch09_failures.keep(KeptIn(tmp_path), cases)
    (found,) = ch09_failures.failures(KeptIn(tmp_path))
    assert (found.name, found.scene, found.loss, found.key) == ("seam", 7, -1.5, keys[0])
    for kept, given in zip((found.truth, found.base, found.own), maps, strict=True):
        assert np.array_equal(kept, given)
    assert found.image.shape == (144, 144, 3)
    assert np.array_equal(found.image[0, 0], image[0, 0])
    assert ch09_failures.failures(KeptIn(tmp_path, profile=SMOKE)) == []


def test_label_maps_stand_for_a_system_whose_seeds_were_not_run(tmp_path, monkeypatch):
    maps = [np.full((144, 144), label, dtype=np.uint8) for label in range(3)]
    image, key = LAPTOP.train.open().image(7), collected.key(LAPTOP, ROWS["pmm"], 0)
    assert own_row(system("pmm"), ROWS).name != "pmm"
    case = ch09_figures.Failure("pmm", "PMM", 7, -1.5, key, image, *maps)
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    figures.save_table(ch09_failures.NAME, ch09_failures.table([case]), tmp_path)
    ch09_failures.keep(KeptIn(tmp_path), [case])
    (found,) = ch09_failures.failures(KeptIn(tmp_path))
    assert (found.name, found.scene) == ("pmm", 7)


def test_maps_are_kept_no_larger_than_the_figure_shows_them(tmp_path):
    large = np.repeat(np.repeat(np.arange(2, dtype=np.uint8)[None], 320, axis=0), 128, axis=1)
    image = np.repeat(large[..., None], 3, axis=2)
    case = ch09_figures.Failure("seam", "SEAM", 0, -1.0, "", image, large, large, 1 - large)
    ch09_failures.keep(KeptIn(tmp_path), [case])
    kept = read_label_map(tmp_path / ch09_failures.NAME / "seam.png", num_classes=11)
    assert kept.shape == (144, 3 * 115)  # 320 x 256 at 0.45
    assert kept[0, [0, 114, 230, 344]].tolist() == [0, 1, 1, 0]
