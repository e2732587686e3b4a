"""The HTML report: its data, what it leaves out, what it makes of a stranger's strings, and the command line."""

import base64
import hashlib
import io
import json
import math
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.report.html import curve_data, landscape, pictures, run_log
from runner.sweep.report.html.columns import make_column
from runner.sweep.report.html.content import make_content, select_reported
from runner.sweep.report.html.importances import compute_importances
from runner.sweep.report.html.page import PendingVega, make_page
from runner.sweep.report.significance import Mean, compute_welch_p
from tests.support import make_result, write_run

EVIL = "</script><img src=x onerror=alert(1)>\"'\u2028&$c"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write_log(folder, values, every=10, name="val/accuracy"):
    lines = [{"step": every * k, "epoch": k / 2, name: value, "train/loss": 1 / k} for k, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_sweep(folder, points, *, objective="val/accuracy", **settings):
    """A sweep's folder with a completed job for each point: `{"optimizer.lr": 0.1, "seed": 0, "value": 0.9}`."""
    rows = []
    for number, point in enumerate(points):
        values = {key: value for key, value in point.items() if key != "value"}
        value, path = point["value"], f"{number}_{number:08x}"
        config = {"name": "digits", "train": {"objective": objective, "mode": "max"}}
        for key, given in values.items():
            *parents, last = key.split(".")
            inner = config
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = given
        result = make_result(value) | {"metrics": {objective: value}}
        write_log(write_run(folder / path, config, result), [value / 2, value], name=objective)
        alike = json.dumps({key: given for key, given in values.items() if key != "seed"})
        rows.append(JobRecord(f"{number:016x}", number, [], path, values, alike, objective=value))
        rows[-1].status, rows[-1].metrics = "completed", {objective: value}
    with Ledger(folder) as ledger:
        ledger.set(**{"id": folder.name, "name": "digits", "objective": objective, "mode": "max"} | settings)
        ledger.add(rows)
    return folder


def read_content(*words):
    return make_content(*select_reported(list(map(str, words))))


def get_column(content, name):
    column = next(one for one in content["columns"] if one["name"] == name)
    texts = column.get("texts")
    return [texts[v] if texts and v >= 0 else None if texts else v for v in column["values"]]


REPLICATES = {0.1: [0.5, 0.52, 0.48], 0.2: [0.9, 0.88, 0.92]}


@pytest.fixture
def content(elsewhere):
    points = [
        {"optimizer.lr": lr, "loader.batch_size": 8, "seed": seed, "value": value}
        for lr, values in REPLICATES.items()
        for seed, value in enumerate(values)
    ]
    return read_content(write_sweep(elsewhere / "sweep_1", points))


def test_runs_come_best_first_with_ranks_settings_and_metrics(content):
    assert [f"job {n}" for n in (5, 3, 4, 1, 0, 2)] == content["runs"]["label"]
    assert [1, 1, 1, 2, 2, 2] == get_column(content, "rank")
    assert [0.2] * 3 + [0.1] * 3 == get_column(content, "optimizer.lr")
    assert [0.92, 0.9, 0.88, 0.52, 0.5, 0.48] == get_column(content, "val/accuracy")
    assert "8" == content["constants"]["loader.batch_size"]


def test_replicates_have_the_interval_of_the_text_report(content):
    best = content["replicates"]["rows"][0]
    mean = Mean.of(REPLICATES[0.2])

    assert ("lr=0.2", 3, [0, 1, 2]) == (best["label"], best["n"], sorted(best["runs"]))
    assert pytest.approx((mean.value, mean.value - mean.half, mean.value + mean.half), rel=1e-5) == (
        best["x"],
        best["low"],
        best["high"],
    )


def test_replicates_of_many_settings_have_labels_of_their_own(elsewhere):
    points = [
        dict.fromkeys("abcd", kind // 2) | {"e": kind % 2, "f": "x" * 50 + str(kind), "seed": seed, "value": 0.5}
        for kind in range(4)
        for seed in range(2)
    ]
    write_sweep(elsewhere / "sweep_1", points)
    labels = [row["label"] for row in read_content("sweep_1")["replicates"]["rows"]]
    write_sweep(elsewhere / "sweep_2", [point | dict.fromkeys("abcde", 0) for point in points])
    cut = [row["label"][-3:] for row in read_content("sweep_2")["replicates"]["rows"]]

    assert [f"a={k // 2}, b={k // 2}, c={k // 2}, d={k // 2}, e={k % 2}" for k in range(4)] == sorted(labels)
    assert ["(2)", "(3)", "(4)"] == cut[1:]


def test_replicates_of_a_filtered_sweep_are_those_of_its_runs(content):
    (best, other) = read_content("sweep_1", "seed>=1")["replicates"]["rows"]

    assert (0.9, 2, 2) == (best["x"], best["n"], len(best["runs"]))
    assert pytest.approx(compute_welch_p(Mean.of([0.52, 0.48]), Mean.of([0.88, 0.92])), rel=1e-2) == other["p"]


def test_curves_are_those_of_metrics_jsonl(content):
    curves = content["curves"]
    first = curves["metrics"][0]

    assert ("val/accuracy", [0] * 6, [[10, 20]]) == (first["name"], first["grid"], curves["grids"])
    assert [0.46, 0.92] == first["values"][0]
    assert [10, 0.5, 20, 1.0] == curves["epochs"][0]


def test_runs_that_are_no_sweep_are_grouped_and_ranked_by_themselves(elsewhere):
    for number, (lr, seed, value) in enumerate([(0.1, 0, 0.5), (0.1, 1, 0.7), (0.2, 0, 0.9)]):
        config = {"name": "made", "seed": seed, "optimizer": {"lr": lr}}
        train = {"train": {"objective": "val/accuracy", "mode": "max"}}
        write_log(write_run(f"outputs/made/run_{number}", config | train, make_result(value)), [value])
    found = read_content("outputs")

    assert ["run_2", "run_1", "run_0"] == found["runs"]["label"]
    assert [("lr=0.2", 1), ("lr=0.1", 2)] == [(row["label"], row["n"]) for row in found["replicates"]["rows"]]


def test_a_run_alone_has_a_page_with_its_config(elsewhere):
    write_log(write_run("outputs/made/alone", {"optimizer": {"lr": 0.1}}, make_result(0.5)), [0.4, math.nan, 0.5])
    found = read_content("outputs/made/alone")

    assert ("made: alone", "0.1", "0") == (
        found["title"],
        found["constants"]["optimizer.lr"],
        found["constants"]["seed"],
    )
    assert [[0.4, None, 0.5]] == found["curves"]["metrics"][0]["values"]


def test_a_whole_number_is_never_rounded():
    seeds = make_column("seed", "setting", [20240101, 20240102, 0.123456789])
    huge = make_column("seed", "setting", [2**60 + 1, 5, None])  # more than a browser's numbers hold

    assert [20240101, 20240102, 0.123457] == seeds.as_json()["values"]
    assert [str(2**60 + 1), "5"] == huge.as_json()["texts"]
    assert ("20240101", "20240102") == tuple(landscape.make_axis(seeds).levels[1:])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_shows_whole_numbers_whole_and_an_empty_filter_is_no_zero():
    source = (Path(run_log.__file__).parent / "page.js").read_text()
    parts = [
        re.search(rf"^function {name}\(.*?^}}", source, re.DOTALL | re.MULTILINE)[0] for name in ("format", "compare")
    ]
    asked = """format(20240101), format(-1234567), format(1234567.5), compare(0, "=", "", true),
        compare(0, "!=", "", true), compare(0, "<=", "", true), compare(null, "=", "", true)"""
    script = "\n".join([*parts, f"console.log(JSON.stringify([{asked}]))"])
    said = subprocess.run(["node", "-e", script], capture_output=True, check=True)

    assert ["20240101", "\u22121234567", "1.2346e+6", False, True, False, True] == json.loads(said.stdout)


# ---- strangers' strings


@pytest.fixture
def attacked(elsewhere):
    points = [{"optimizer.lr": 0.1, "model": EVIL, "value": 0.5}, {"optimizer.lr": 0.2, "model": "b", "value": 0.6}]
    folder = write_sweep(elsewhere / "sweep_1", points, objective=EVIL, name=EVIL)
    return make_page(read_content(folder), f"var a = '{EVIL}<!--';")


def test_no_string_of_a_stranger_leaves_its_place(attacked):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', attacked, re.DOTALL)[1]

    assert (3, 3) == (attacked.count("<script"), len(re.findall(r"</script", attacked)))
    assert 1 == attacked.count("<img")  # in a string of the script
    assert re.search("[<>&\u2028\u2029]", data) is None
    assert "</script><img" in json.loads(data)["title"]


def test_the_policy_names_the_scripts_that_may_run_and_nothing_else(attacked):
    scripts = re.findall(r"<script>(.*?)</script>", attacked, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', attacked)[1]

    assert " ".join(f"'sha256-{one}'" for one in hashes) == re.search("script-src ([^;]*)", policy)[1]
    assert policy.startswith("default-src 'none'")
    assert re.findall("https?:[^\"' ]*", attacked.replace(scripts[0], "")) == []


def test_a_title_is_escaped_where_it_is_html(attacked):
    assert re.search("<title>([^<]*)</title>", attacked)[1].startswith("&lt;/script>&lt;img")


# ---- what is left out


def test_a_long_curve_keeps_its_ends_and_its_spike():
    values = [0.0] * 1_000
    values[500] = 1.0
    steps, kept = run_log.reduce_curve(list(range(1_000)), values, 20)

    assert (20, 0, 999, 1.0) == (len(steps), steps[0], steps[-1], max(kept))


def test_curves_that_do_not_fit_are_reduced_and_then_left_out():
    names = [f"m{n:02}" for n in range(30)]
    curve = (list(range(100)), [0.5] * 100)
    logs = [run_log.RunLog(dict.fromkeys(names, curve)) for _ in range(10)]
    made, notes = curve_data.make_curves(logs, ["m07"], 20_000)

    assert "m07" == made["metrics"][0]["name"]
    assert len(json.dumps(made)) < 25_000
    assert ["with at most", "are left out"] == [re.search("with at most|are left out", note)[0] for note in notes[:2]]


def test_of_a_long_log_the_evaluations_are_read(tmp_path):
    evaluated = {2_717: "val/loss", 2_718: "test/loss"}
    lines = [{"step": n, evaluated.get(n, "train/loss"): 1.0} for n in range(1, 5_001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5')
    log = run_log.read_log(tmp_path)

    assert [([2_717], [1.0]), ([2_718], [1.0])] == [log.curves[name] for name in evaluated.values()]
    assert log.skipped > 3_000


def test_columns_that_do_not_fit_are_named(elsewhere, monkeypatch):
    monkeypatch.setattr("runner.sweep.report.html.content.TABLE_BYTES", 550)
    points = [{"optimizer.lr": n / 10, "model.text": f"{n}" * 150, "value": n / 10} for n in range(1, 4)]
    found = read_content(write_sweep(elsewhere / "sweep_1", points))

    assert any("model.text" in note for note in found["notes"])
    assert get_column(found, "optimizer.lr") == [0.3, 0.2, 0.1]


# ---- when steps were done; pictures; settings and the objective


def write_events(folder, times):
    """TensorBoard's records of (step, wall time), as `Event` messages; a file_version has no step."""
    folder.mkdir()
    records = b""
    for step, time in times:
        rest = b"\x1a\x0dbrain.Event:2" if step is None else b"\x10" + bytes([step]) + b"\x2a\x00"
        data = b"\x09" + struct.pack("<d", time) + rest
        records += struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4
    (folder / "events.out.tfevents.1.host").write_bytes(records)


def test_steps_have_the_times_of_tensorboard(tmp_path):
    write_events(tmp_path / "tb", [(1, 1_000.0), (2, 1_003.0), (3, 1_010.0)])

    assert [(1.0, 0.0), (2.0, 3.0), (3.0, 10.0)] == run_log.read_times(tmp_path / "tb")


def test_seconds_begin_where_the_file_does(tmp_path):
    write_events(tmp_path / "tb", [(None, 1_000.0), (50, 1_600.0), (100, 2_200.0)])

    assert [(50.0, 600.0), (100.0, 1_200.0)] == run_log.read_times(tmp_path / "tb")


@pytest.mark.exhaustive
def test_times_are_those_that_the_runner_itself_writes(tmp_path):
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for step in (1, 300, 70_000):
            writer.add_scalar("a", 0.5, step, walltime=100.0 + step)

    assert [(1.0, 0.0), (300.0, 299.0), (70_000.0, 69_999.0)] == run_log.read_times(tmp_path / "tb")[-3:]


@pytest.mark.exhaustive
def test_pictures_of_tensorboard_become_thumbnails(tmp_path):
    import numpy as np
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path / "tb")) as writer:
        writer.add_image("val/samples", np.zeros((3, 20, 900), np.uint8), 5)
        writer.add_image("val/samples", np.zeros((3, 20, 30), np.uint8), 6)
    ((made,), _) = pictures.make_pictures([(0, tmp_path, "x")], 100_000, tmp_path)

    assert ("val/samples", 6, 30, 20) == (made["name"], made["step"], made["width"], made["height"])


def test_pictures_are_encoded_anew_and_what_is_none_is_left_out(tmp_path):
    from PIL import Image

    for name in (EVIL.replace("/", "_"), "bad"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
    Image.new("RGB", (1280, 40)).save(tmp_path / "artifacts" / EVIL.replace("/", "_") / "step_7.png")
    (tmp_path / "artifacts" / "bad" / "step_1.png").write_text("<svg onload=alert(1)>")
    ((made,), _) = pictures.make_pictures([(0, tmp_path, "x")], 100_000, tmp_path)

    assert (7, 640, 20) == (made["step"], made["width"], made["height"])
    assert re.fullmatch("data:image/webp;base64,[A-Za-z0-9+/=]+", made["src"])


def test_a_picture_of_too_many_pixels_is_left_out(monkeypatch):
    from PIL import Image

    monkeypatch.setattr(pictures, "MOST_PIXELS", 99)
    content = io.BytesIO()
    Image.new("L", (10, 10)).save(content, "PNG")

    assert pictures.make_thumbnail(content.getvalue()) is None


@pytest.mark.exhaustive
def test_settings_that_make_good_jobs_are_important():
    pytest.importorskip("optuna")
    lrs = [n / 100 for n in range(100)]
    found = compute_importances({"lr": lrs, "other": [n % 3 for n in range(100)], "t": ["a", "b"] * 50}, lrs, 1)

    assert "lr" == found[0][0]
    assert found[0][1] > 0.5


def test_few_jobs_have_no_importances_and_it_is_said(content):
    assert "they need at least 20 finished runs, and there are 6" == content["importances"]["why"]


def test_a_pair_of_settings_with_few_values_has_a_table_of_means():
    x, y = make_column("x", "setting", [1, 1, 10, 10]), make_column("y", "setting", ["a", "b", "a", "b"])
    axes = [landscape.make_axis(column) for column in (x, y)]
    (found,) = landscape.make_surfaces(axes, [0.0, 1.0, 2.0, None])

    assert ("means", [["1", "10"], ["a", "b"]]) == (found["kind"], found["levels"])
    assert [[0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 2, 1]] == found["cells"]


def test_a_surface_goes_through_the_jobs():
    numbers = [n / 20 for n in range(1, 21)]
    axes = [landscape.make_axis(make_column(name, "setting", numbers)) for name in ("x", "y")]
    (found,) = landscape.make_surfaces(axes, numbers)

    assert "surface" == found["kind"]
    assert found["cells"][0] == pytest.approx(numbers[0], abs=0.05)
    assert found["cells"][-1] == pytest.approx(numbers[-1], abs=0.05)


def write_levels(folder):
    """A sweep over a number and null, one job of it pruned with a metric of its own."""
    levels = [None, 1, 5, 10, None, 2.5]
    write_sweep(folder, [{"clip": clip, "lr": n, "value": n / 10} for n, clip in enumerate(levels)])
    result = make_result(None, "pruned") | {"metrics": {"val/accuracy": 0.9}}
    (folder / "3_00000003" / "result.json").write_text(json.dumps(result))
    return read_content(folder)


def test_null_among_numbers_is_a_level_of_its_own(elsewhere, monkeypatch):
    content = write_levels(elsewhere / "sweep_1")
    clip, (table,) = next(axis for axis in content["axes"] if axis["name"] == "clip"), content["surfaces"]
    plots = dump_plots(content, elsewhere / "plots", monkeypatch)

    assert (
        ["null", "1", "2.5", "5", "10"] == [text for _, text in clip["ticks"]] == table["levels"][table["x"] != "clip"]
    )
    assert 5 == sum(cell[3] for cell in table["cells"])
    assert {"null", "1", "2.5", "5"} == {x for _, x in get_rows(plots, "slice_clip")}


def test_points_of_plots_are_completed_runs(elsewhere, monkeypatch):
    content = write_levels(elsewhere / "sweep_1")

    assert 0.9 in get_column(content, "val/accuracy")
    assert "job 3" not in dict(get_rows(dump_plots(content, elsewhere / "plots", monkeypatch), "slice_lr"))


# ---- the command


@pytest.fixture
def quick(monkeypatch):
    """Leave out the bundling, a second of Vega's compilation."""
    pytest.importorskip("vl_convert")
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda _: "var vega = 1;")


def test_the_script_is_bundled_once_and_anew_where_the_cache_is_damaged(quick, cache, monkeypatch):
    first = PendingVega().collect()
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda _: "var vega = 2;")
    second = PendingVega().collect()
    (file,) = cache.rglob("*.js")
    file.write_text(first[:5])

    assert ("var vega = 1;", first) == (first[:13], second)
    assert PendingVega().collect().startswith("var vega = 2;")


@pytest.mark.usefixtures("quick")
def test_the_command_writes_one_file_into_the_sweep_and_says_so(elsewhere, capsys):
    write_sweep(elsewhere / "outputs" / "digits" / "sweep_1", [{"a": n, "value": n / 4} for n in range(3)])

    assert 0 == main(["report", "sweep_1", "--html", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (3, "outputs/digits/sweep_1/report.html") == (said["runs"], said["html"])
    assert 0 == main(["report", "outputs/digits/sweep_1", "--html"])  # over the earlier one
    assert "3 runs, 0.1 MB: outputs/digits/sweep_1/report.html" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["outputs", "--html=mine.html"], "--html exists, and is no report"),
        (["outputs", "--html=no/such.html"], "must lie in a folder that exists"),
        (["empty", "--html"], "DIR must hold at least one run"),
        (["nothing", "--html"], "nothing"),
        (["outputs", "--plots", "p"], "--plots needs --html"),
        (["outputs", "--html", "--plots", "mine.html"], "--plots must be a folder, but is a file"),
    ],
)
def test_a_wrong_request_writes_nothing(words, said, elsewhere, capsys):
    write_run("outputs/made/a", {}, make_result(0.5))
    (elsewhere / "mine.html").write_text("<p>mine</p>")
    (elsewhere / "empty").mkdir()

    assert 2 == main(["report", *words])
    assert said in capsys.readouterr().err
    assert ["empty", "mine.html", "outputs"] == sorted(path.name for path in elsewhere.iterdir())


def test_without_the_library_the_extra_is_named(elsewhere, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)

    assert 2 == main(["report", "outputs", "--html"])
    assert "pip install 'yaml-experiment-runner[report]'" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_plots_are_written_as_png_and_svg(elsewhere):
    pytest.importorskip("vl_convert")
    pytest.importorskip("optuna")
    points = [
        {"optimizer.lr": 10 ** (-n / 10), "wd": n / 7, "model": "ab"[n % 2], "seed": seed, "value": n / 20 + seed / 99}
        for n in range(14)
        for seed in (0, 1)
    ]
    from runner.sweep.report.html.plots import write_plots

    found = read_content(write_sweep(elsewhere / "sweep_1", points))
    found["curves"]["metrics"] = found["curves"]["metrics"][:1]
    written = {path.name for path in write_plots(found, elsewhere / "plots")[0]}

    assert {
        *("contour_optimizer.lr_wd", "curves_val_accuracy", "importances", "parallel_coordinates", "replicates"),
        *("slice_model", "slice_optimizer.lr", "slice_wd"),
    } == {name.removesuffix(".svg") for name in written if name.endswith(".svg")}
    assert (elsewhere / "plots" / "curves_val_accuracy.png").read_bytes().startswith(b"\x89PNG")


def dump_plots(content, folder, monkeypatch):
    """The specification that each plot's SVG is drawn from, by the file's name."""
    pytest.importorskip("vl_convert")
    from runner.sweep.report.html.plots import write_plots

    monkeypatch.setattr("vl_convert.vegalite_to_svg", lambda given: given)
    monkeypatch.setattr("vl_convert.vegalite_to_png", lambda _, **__: b"")
    write_plots(content, folder)
    return {file.stem: json.loads(file.read_text(), parse_constant=pytest.fail) for file in folder.glob("*.svg")}


def get_rows(plots, name):
    return [(row["label"], row["x"]) for row in plots[name]["datasets"]["rows"]]


def test_plots_of_a_sweep_with_a_diverged_run_are_plain_json(elsewhere, monkeypatch):
    points = [{"lr": n, "value": math.nan if n == 13 else n / 20} for n in range(14)]
    content = read_content(write_sweep(elsewhere / "sweep_1", points))
    next(one for one in content["columns"] if one["name"] == "lr")["values"][:2] = ["NaN", "Infinity"]
    plots = dump_plots(content, elsewhere / "plots", monkeypatch)

    assert None in {row["c"] for row in plots["curves_train_loss"]["datasets"]["rows"]}
    assert [(f"job {n}", n) for n in range(10, -1, -1)] == get_rows(plots, "slice_lr")


def test_plots_of_like_names_have_files_of_their_own_and_what_is_left_out_is_said(content, elsewhere, monkeypatch):
    from runner.sweep.report.html import plots

    first = content["curves"]["metrics"][0]
    content["curves"]["metrics"] = [first | {"name": name} for name in ("val/a", "val_a", "Val?a", *"bcd")]
    monkeypatch.setattr(plots, "MOST_FILES", 6)

    assert {"curves_val_a", "curves_val_a_2", "curves_Val_a_3"} == {*dump_plots(content, elsewhere / "p", monkeypatch)}
    assert "6 plots are left out: at most 3 are drawn" == plots.write_plots(content, elsewhere / "p")[1][0]
