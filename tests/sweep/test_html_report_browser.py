"""The HTML report in a real browser: clicked, typed at, zoomed and printed, offline. Skipped where there is none."""

import json
import re
import shutil
import time

import pytest

from runner.sweep.report.html.write import write_html
from tests.support import make_result, write_run

pytestmark = pytest.mark.exhaustive  # Chromium takes seconds

EVIL = '</script><img src=x onerror="window.hit=1">${window.hit=1}\u2028'


def write_sweep(folder, count, epochs=5):
    """Runs of a learning rate, a batch size and a seed, each with its curve."""
    for number in range(count):
        lr, batch, seed = [0.01, 0.03, 0.1, 0.3][number % 4], [16, 32][number // 4 % 2], number // 8
        value = 0.9 - abs(lr - 0.1) - 0.01 * (number % 3)
        config = {
            "seed": seed,
            "optimizer": {"lr": lr},
            "loader": {"batch_size": batch},
            "note": EVIL if number else "a",
        }
        train = {"train": {"objective": "val/accuracy", "mode": "max"}}
        result = make_result(value, seconds=2.0 + number) | {"metrics": {"val/accuracy": value, EVIL: 1.0 + number}}
        run = write_run(folder / f"run_{number:04}", config | train, result)
        lines = [
            {"step": 10 * n, "epoch": float(n), "val/accuracy": value * n / epochs, "train/loss": 1 / n, EVIL: n}
            for n in range(1, epochs + 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """An empty cache of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def browser(_cache):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory, _cache):
    folder = write_sweep(tmp_path_factory.mktemp("runs"), 24)
    from PIL import Image

    (folder / "run_0002" / "artifacts" / "val").mkdir(parents=True)
    Image.new("RGB", (50, 20), "red").save(folder / "run_0002" / "artifacts" / "val" / "step_5.png")
    return write_html([str(folder)], folder / "report.html").file


def wait_until_drawn(page):
    """Wait until every plot shows what was just asked for."""
    page.wait_for_timeout(300)
    page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)


def open_page(browser, file, **settings):
    context = browser.new_context(offline=True, **settings)
    page = context.new_page()
    page.asked, page.problems = [], []
    page.route(
        re.compile("^(?!file:|data:|blob:)"), lambda route: (page.asked.append(route.request.url), route.abort())
    )
    page.on("request", lambda request: page.asked.append(request.url) if request.url.startswith("http") else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    page.goto(file.as_uri())
    wait_until_drawn(page)
    return page


@pytest.fixture
def page(browser, file):
    opened = open_page(browser, file)
    yield opened
    assert ([], []) == (opened.asked, opened.problems)
    opened.context.close()


def list_runs(page):
    return page.locator("#table tbody th").all_inner_texts()


def count_lines(page):
    return page.locator("#curves svg .mark-line path").count()


def test_a_header_sorts_up_down_and_not_at_all(page):
    header = page.locator("#table thead th", has=page.get_by_role("button", name="optimizer.lr", exact=True))
    first = list_runs(page)
    seen = []
    for _ in range(3):
        header.get_by_role("button").click()
        seen.append((header.get_attribute("aria-sort"), list_runs(page)))

    assert ["ascending", "descending", "none"] == [sort for sort, _ in seen]
    assert first == seen[2][1]
    assert ("run_0000" in seen[0][1][:6], "run_0003" in seen[1][1][:6]) == (True, True)


def test_the_keyboard_sorts_and_keeps_its_place(page):
    page.get_by_role("button", name="optimizer.lr", exact=True).focus()
    page.keyboard.press("Enter")

    assert "sort optimizer.lr" == page.evaluate("document.activeElement.dataset.key")


def test_a_filter_leaves_what_it_says_in_table_and_plots(page):
    page.get_by_label("Filter").fill("lr<=0.03 batch_size=16")
    wait_until_drawn(page)

    assert ["run_0000", "run_0001", "run_0008", "run_0009", "run_0016", "run_0017"] == sorted(list_runs(page))
    assert "6 of 24 runs" in page.locator("#counted").inner_text()
    assert "6 of 6 runs" in page.locator("#curves figcaption").inner_text()


def test_a_filter_of_no_column_says_so(page):
    page.get_by_label("Filter").fill("nothing=3")

    assert "no column named nothing" == page.locator("#counted").inner_text()
    assert "true" == page.get_by_label("Filter").get_attribute("aria-invalid")


def test_chosen_runs_are_drawn_and_compared(page):
    for name in ("run_0001", "run_0006"):
        page.get_by_label(f"choose {name}").check()
    wait_until_drawn(page)
    differing = page.locator("#differing tbody th").all_inner_texts()

    assert "2 of 2 runs" in page.locator("#curves figcaption").inner_text()
    assert {"optimizer.lr", "loader.batch_size"} == set(differing)


def test_a_baseline_turns_metrics_into_differences(page):
    page.get_by_label("run_0002 is the baseline").check()
    page.locator("#baseline").scroll_into_view_if_needed()
    wait_until_drawn(page)
    row = page.locator("#table tbody tr", has=page.locator("th", has_text="run_0000"))

    assert "\u22120.07" in row.inner_text()
    assert page.locator("#table tr.baseline th").inner_text() == "run_0002"
    assert "minus that of run_0002" in page.locator("#baseline figcaption").inner_text()


def read_ticks(page):
    return page.locator("#curves svg .role-axis-label text").all_text_contents()


def test_plots_zoom_by_button_key_and_wheel_and_come_back(page):
    seen = [read_ticks(page)]
    page.get_by_role("button", name="Zoom in: Learning curves of val/accuracy").click()
    page.wait_for_timeout(600)
    seen.append(read_ticks(page))
    page.locator("#curves .plot").focus()
    page.keyboard.press("+")
    page.wait_for_timeout(600)
    seen.append(read_ticks(page))
    page.locator("#curves svg").hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    page.wait_for_timeout(600)
    seen.append(read_ticks(page))
    page.keyboard.press("0")
    wait_until_drawn(page)

    assert 4 == len(set(map(tuple, seen)))
    assert seen[0] == read_ticks(page)


def test_smoothing_axis_and_metric_draw_anew(page):
    page.locator("#curves select").nth(1).select_option("epoch")
    page.locator("#smooth").fill("0.6")
    wait_until_drawn(page)

    caption = page.locator("#curves figcaption").inner_text()
    assert ("over epoch" in caption, "weight 0.6" in caption) == (True, True)
    page.locator("#curves select").nth(1).select_option("seconds")
    wait_until_drawn(page)
    assert "over seconds" in page.locator("#curves figcaption").inner_text()


def test_curves_become_differences_to_the_baseline(page):
    page.get_by_label("run_0006 is the baseline").check()
    page.get_by_label("difference to the baseline").check()
    wait_until_drawn(page)
    page.locator("#curves summary").first.click()
    rows = page.locator("#curves details tbody tr").all_inner_texts()
    of_itself = [row.split("\t") for row in rows if "run_0006" in row]

    assert "as difference to run_0006" in page.locator("#curves figcaption").inner_text()
    assert [5, {"0"}] == [len(of_itself), {row[2] for row in of_itself}]


def test_strings_of_a_stranger_are_text(page):
    for select in page.locator("#columns select").all():
        select.select_option(index=select.locator("option").count() - 1)
    page.locator("#columns svg").hover()
    wait_until_drawn(page)

    assert page.evaluate("window.hit === undefined && document.querySelectorAll('img[src=x]').length === 0")
    assert any("onerror" in text for text in page.locator("#columns option").all_inner_texts())


def test_a_plot_is_saved_as_svg_and_as_png(page):
    content = {}
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save as {kind}: Learning curves of val/accuracy").click()
        content[download.value.suggested_filename] = download.value.path().read_bytes()

    svg, png = content["Learning_curves_of_val_accuracy.svg"], content["Learning_curves_of_val_accuracy.png"]
    assert (b"<svg", b"currentColor" in svg) == (svg[:4], False)
    assert b"\x89PNG" == png[:4]


def test_plots_have_words_and_numbers(page):
    plot = page.locator("#curves .plot")
    page.locator("#curves summary").first.click()

    assert "val/accuracy over optimizer steps, 24 of 24 runs." == plot.get_attribute("aria-label")
    assert page.locator("#curves details tbody tr").count() == 120


def test_every_plot_is_drawn(page):
    page.get_by_label("run_0003 is the baseline").check()
    wait_until_drawn(page)
    captions = page.locator("figcaption").all_inner_texts()

    assert [] == [caption for caption in captions if "could not be drawn" in caption]
    assert {"curves", "replicates", "settings", "columns", "baseline"} <= set(
        page.evaluate("[...document.querySelectorAll('section')].filter(s => s.querySelector('svg')).map(s => s.id)")
    )


def test_pictures_have_names_and_are_shown(page):
    picture = page.locator("#pictures img")

    assert "run_0002, val, step 5" == picture.get_attribute("alt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(scheme, browser, file):
    opened = open_page(
        browser, file, viewport={"width": 360, "height": 700}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    widths = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    colours = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.context.close()

    assert widths == [360, 360]
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]


def test_print_has_every_plot_in_black_on_white(browser, file):
    opened = open_page(browser, file, color_scheme="dark")
    opened.emulate_media(media="print", color_scheme="dark")
    seen = opened.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('nav')).display,"
        " getComputedStyle(document.querySelector('#curves svg text')).fill]"
    )
    opened.set_viewport_size({"width": 720, "height": 1000})  # A4 without its margins
    wide = opened.evaluate("document.querySelector('#table').getBoundingClientRect().right")
    pdf = opened.pdf()
    opened.context.close()

    assert ["rgb(255, 255, 255)", "none", "rgb(0, 0, 0)"] == seen
    assert wide <= 720
    assert pdf.startswith(b"%PDF")


def test_a_thousand_runs_are_small_and_open_soon(browser, tmp_path):
    folder = write_sweep(tmp_path / "runs", 1_000, epochs=20)
    write_html([str(folder)], tmp_path / "report.html")  # bundles the script, and fills the index of runs
    began = time.process_time()
    written = write_html([str(folder)], tmp_path / "report.html")
    assert time.process_time() - began < 2
    started = time.monotonic()
    context = browser.new_context()
    page = context.new_page()
    page.goto(written.file.as_uri())
    page.wait_for_selector("#curves svg", timeout=60_000)
    seconds = time.monotonic() - started
    context.close()

    assert (1_000, True) == (written.runs, written.size < 3_000_000)
    assert seconds < 20  # 1 s on a quiet machine
