"""report.html in a real Chromium: no error, no request, charts that answer, tables that sort, any screen, both schemes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import read_records
from glora.experiments.report.content import report_content
from glora.experiments.report.page import report_html
from glora.experiments.report.summary import summarise

playwright = pytest.importorskip("playwright.sync_api")

RECORDS = Path(__file__).resolve().parents[3] / "benchmarks" / "rte"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
NASTY = '$x$"><script>document.title = "harmed"</script><img src=x onerror=alert(1)>\x1b'
SHOWN = '$x$"><script>document.title = "harmed"</script><img src=x onerror=alert(1)>\\x1b'

CONTRASTS = """() => {
  const parsed = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255).map(
    (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (it) => {
    const box = it.getBoundingClientRect();
    const cell = it.closest('.mark-text') && [...it.closest('svg').querySelectorAll('.mark-rect path')].find((rect) => {
      const around = rect.getBoundingClientRect();
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      return around.left < x && x < around.right && around.top < y && y < around.bottom;
    });
    if (cell) return parsed(getComputedStyle(cell).fill);
    for (; it; it = it.parentElement) {
      const color = parsed(getComputedStyle(it).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let checked = 0;
  for (const it of document.querySelectorAll('body *')) {
    const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !it.getClientRects().length || it.closest('script, style, noscript, #vg-tooltip-element')) continue;
    const style = getComputedStyle(it);
    const ink = parsed(it instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(it))].sort((x, y) => y - x);
    checked += 1;
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([it.tagName, it.textContent.trim().slice(0, 30), ink, behind(it)]);
  }
  return { checked, poor };
}"""

Opener = Callable[..., "playwright.Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page_of(browser: playwright.Browser) -> Iterator[Opener]:
    """Open a file in a new tab; `requests` and `console_errors` of the tab are noted."""
    contexts = []

    def opened(path: Path, **settings: object) -> playwright.Page:
        contexts.append(browser.new_context(offline=True, **settings))
        page = contexts[-1].new_page()
        page.requests, page.console_errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.console_errors.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and page.console_errors.append(said.text))
        page.goto(path.as_uri())
        if settings.get("java_script_enabled", True):
            page.wait_for_function(
                "[...document.querySelectorAll('.chart')].every(it => it.querySelector('svg, canvas'))"
            )
        return page

    yield opened
    for context in contexts:
        context.close()


def written(records: list[RunRecord], folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(report_html(report_content(summarise(records))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the project's own records on RTE."""
    return written(read_records(RECORDS), tmp_path_factory.mktemp("real"))


def head_of(page: playwright.Page, title: str, name: str) -> tuple[playwright.Locator, Callable[[], list[str]]]:
    """The head of a column, and its cells from top to bottom."""
    table = page.locator("section.table", has=page.locator("h3", has_text=re.compile(f"^{title}"))).locator("table")
    place = table.locator("th[scope=col]").all_inner_texts().index(name)
    cells = f"(table) => [...table.tBodies[0].rows].map(row => row.cells[{place}].innerText)"
    return table.locator("th[scope=col]").nth(place), lambda: table.evaluate(cells)


def values_shown(page: playwright.Page) -> str:
    """The values at the pointer, one a line."""
    page.wait_for_selector("#vg-tooltip-element.visible")
    return page.locator("#vg-tooltip-element").inner_text().replace("\t", ": ")


def values_at(page: playwright.Page, mark: playwright.Locator) -> str:
    """The values of a mark. On a busy machine a chart may still move when the pointer arrives, so it tries again."""
    for _ in range(5):
        mark.hover(force=True)
        with contextlib.suppress(playwright.TimeoutError):
            page.wait_for_selector("#vg-tooltip-element.visible", timeout=2000)
            break
        page.mouse.move(0, 0)
    return values_shown(page)


def test_it_opens_without_a_complaint_and_without_a_request(page_of: Opener, real: Path) -> None:
    page = page_of(real)
    assert page.requests == [real.as_uri()]
    assert page.console_errors == []
    assert page.locator(".map .mark-rect path").count() >= 3 * 36
    assert page.locator("figure .mark-symbol path[aria-label*='seed']").count() == 4 * 2 * 3, (
        "every seed, both evaluations"
    )
    assert page.locator("canvas").count() == 1


def test_what_would_ask_the_network_is_seen_and_refused(page_of: Opener, real: Path, tmp_path: Path) -> None:
    """The two checks above can fail: an image from outside is noticed, and a script that was changed does not run."""
    broken = tmp_path / "broken.html"
    text = real.read_text(encoding="utf-8").replace("<main>", '<main><img src="https://example.org/x.png">')
    broken.write_text(text.replace("'use strict';", "'use strict'; let changed;"), encoding="utf-8")
    page = page_of(real)
    page.goto(broken.as_uri())
    assert any("Content Security Policy" in line for line in page.console_errors)
    assert page.locator("svg").count() == 0


def test_charts_show_values_under_the_pointer(page_of: Opener, real: Path) -> None:
    page = page_of(real)
    lines = values_at(page, page.locator(".map").nth(1).locator("path[aria-label*='output.dense']").last).splitlines()
    assert lines[:2] == ["matrix: bert.encoder.layer.5.output.dense", "rank: 32"]
    assert re.fullmatch(r"seeds 0, 1, 2: \d+, \d+, \d+", lines[2])
    page.locator("h1").hover()
    page.wait_for_selector("#vg-tooltip-element.visible", state="hidden")
    shown = values_at(page, page.locator("figure .mark-symbol path[aria-label*='seed']").first)
    assert re.fullmatch(r"method: [\w ]+ \(n = 3\)\nseed: \d\nAccuracy \(%\): [\d.]+\nseconds: [\d.]+\nepoch: 1", shown)
    page.locator("h1").hover()
    canvas = page.locator("canvas")
    for height in range(20, 180, 3):  # down through a panel until a line is met
        canvas.hover(position={"x": 190, "y": height})
        if page.locator("#vg-tooltip-element.visible").count():
            break
    assert re.fullmatch(r"matrix: bert\.encoder\.layer\.\d\.[\w.]+\nstep: \d+\nnorm: [\d.]+", values_shown(page))


def test_a_cell_of_the_rank_map_answers_to_touch_within_the_screen(page_of: Opener, real: Path) -> None:
    page = page_of(real, **PHONE)
    page.locator(".map").nth(1).locator(".mark-rect path[aria-label*='query']").first.tap(force=True)
    assert "layer.0.attention.self.query" in values_shown(page)
    box = page.locator("#vg-tooltip-element").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.locator("h1").tap()
    page.wait_for_selector("#vg-tooltip-element.visible", state="hidden")


def test_a_method_can_be_singled_out_in_the_legend(page_of: Opener, real: Path) -> None:
    page = page_of(real)
    faded = page.locator("figure .mark-symbol path[aria-label*='seed'][opacity='0.08']")
    assert faded.count() == 0
    page.locator(".role-legend-label text", has_text="AdaLoRA").first.click()
    playwright.expect(faded).to_have_count(3 * 2 * 3)


def test_a_table_sorts_by_numbers_in_both_directions(page_of: Opener, real: Path) -> None:
    page = page_of(real)
    head, cells = head_of(page, "Results", "Accuracy (%)")
    assert cells() == ["52.6 ± 1.4", "49.3 ± 1.2", "51.9 ± 0.8", "52.7 ± 1.6", "52.7"]
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert cells()[:3] == ["49.3 ± 1.2", "51.9 ± 0.8", "52.6 ± 1.4"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert cells()[2:] == ["52.6 ± 1.4", "51.9 ± 0.8", "49.3 ± 1.2"]
    assert head.get_attribute("aria-sort") == "descending"
    method, names = head_of(page, "Results", "method")
    assert names()[2:] == ["LoRA", "GLoRA by gradient norm", "AdaLoRA"], "whole rows are moved"
    assert method.get_attribute("aria-sort") == "none"


def test_a_table_sorts_by_value_and_what_is_missing_stays_last(page_of: Opener, real: Path, tmp_path: Path) -> None:
    """As text, -3.25 comes after -0.72, 12.0 min before 300.0 s, and 9,000 after 10,000."""
    seconds = {"lora": 300.0, "adalora": 720.0, "glora": 5400.0, "shuffled": 90.0}
    grown = {"lora": 9_000, "adalora": 10_000, "glora": 110_000, "shuffled": 2_000}
    records = [
        record.model_copy(
            update={
                "train_seconds": seconds[record.config.method],
                "adapter_parameters_after": grown[record.config.method],
                "adapter_parameters_before": 20_000,
            }
        )
        for record in read_records(RECORDS)
    ]
    page = page_of(written(records, tmp_path))
    for title, name, expected in (
        ("Difference", "Accuracy (%)", ["-3.25", "-0.72", "+0.12"]),
        ("Cost", "training time", ["90.0", "300.0", "12.0", "90.0"]),
        ("Budget", "adapter parameters", [f"20,000 → {count}" for count in ("2,000", "9,000", "10,000", "110,000")]),
    ):
        head, cells = head_of(page, title, name)
        head.locator("button").click()
        assert [cell.split(" [")[0].split(" ±")[0] for cell in cells()] == expected
    head, cells = head_of(page_of(real), "Cost", "95 % interval")
    head.locator("button").click()
    up = cells()
    head.locator("button").click()
    assert up[-1] == cells()[-1] == "–"
    assert [float(cell.strip("[").split(",")[0]) for cell in up[:-1]] == [0.268, 0.424, 0.951]
    assert cells()[:-1] == up[:-1][::-1]


def test_verdicts_are_seen_on_a_phone_without_scrolling_a_table(page_of: Opener, real: Path) -> None:
    page = page_of(real, **PHONE)
    boxes = [verdict.bounding_box() for verdict in page.locator(".verdict").all()]
    assert len(boxes) >= 4 + 3, "learned nothing, and the differences"
    assert [box for box in boxes if box is None or box["x"] + box["width"] > 390] == []


def test_no_page_scrolls_sideways_on_a_phone(page_of: Opener, real: Path) -> None:
    page = page_of(real, **PHONE)
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    outside = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > 391"
        " && !it.closest('.scroll, .chart, #vg-tooltip-element')).map(it => it.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert page.console_errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_both_schemes(page_of: Opener, real: Path, scheme: str) -> None:
    """WCAG 2, level AA: a contrast of 4.5, over all texts of the page, those in colored cells too; also after a change."""
    page = page_of(real, color_scheme=scheme)
    cell = page.locator(".map .mark-rect path").first
    before = cell.get_attribute("fill")
    found = page.evaluate(CONTRASTS)
    assert found["checked"] > 300
    assert found["poor"] == []
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    playwright.expect(cell).not_to_have_attribute("fill", before)
    assert page.evaluate(CONTRASTS)["poor"] == []


def test_a_nasty_name_is_a_strange_name_and_nothing_more(page_of: Opener, tmp_path: Path) -> None:
    records = []
    for record in read_records(RECORDS):
        renamed = {
            "config": record.config.model_copy(update={"model": NASTY}),
            "ranks": {name.replace("encoder", NASTY): rank for name, rank in record.ranks.items()},
            "initial_ranks": {name.replace("encoder", NASTY): rank for name, rank in record.initial_ranks.items()},
        }
        records.append(record.model_copy(update=renamed))
    page = page_of(written(records, tmp_path))
    page.locator(".map .mark-rect path[aria-label*='query']").first.hover(force=True)
    assert SHOWN in values_shown(page)
    assert SHOWN.rpartition("/")[2] in page.locator("h2").first.inner_text()
    assert page.console_errors == []
    assert len(page.requests) == 1
    assert page.title() == "Fine-tuning methods compared"
    assert page.locator("img").count() == 0


def test_without_javascript_the_tables_are_there(page_of: Opener, real: Path) -> None:
    page = page_of(real, java_script_enabled=False)
    assert page.get_by_text("52.6 ± 1.4").is_visible()
    assert "The charts need JavaScript" in page.content()
