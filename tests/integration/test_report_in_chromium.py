"""report.html in a real Chromium: no complaint, no request, charts that answer, tables that sort, any screen, both schemes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromium import Browser, Page, chromium, page
from glora.experiments.records.schema import RunRecord, read_records
from glora.experiments.report.content import report_content
from glora.experiments.report.page import report_html
from glora.experiments.report.summary import summarise

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "rte"
PHONE = {"width": 390, "height": 844, "phone": True}
NASTY = '"><script>document.title = "harmed"</script><img src=x onerror=alert(1)>'

TIP = "document.getElementById('tip').hidden ? null : document.getElementById('tip').innerText"
CONTRASTS = """(() => {
  const parsed = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255).map(
    (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (it) => {
    for (; it; it = it.parentElement) {
      const colour = parsed(getComputedStyle(it).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let checked = 0;
  for (const it of document.querySelectorAll('body *')) {
    const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !it.getClientRects().length || it.closest('script, style, noscript')) continue;
    const style = getComputedStyle(it);
    const ink = parsed(it instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(it))].sort((x, y) => y - x);
    checked += 1;
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([it.tagName, it.textContent.trim().slice(0, 30), style.color]);
  }
  return { checked, poor };
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def written(records: list[RunRecord], folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(report_html(report_content(summarise(records))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the project's own records on RTE."""
    return written(read_records(RECORDS), tmp_path_factory.mktemp("real"))


@pytest.fixture
def tab(browser: Browser, real: Path) -> Iterator[Page]:
    with page(browser, real) as opened:
        yield opened


def column(tab: Page, heading: str, name: str) -> list[str]:
    """The cells of a column, from top to bottom."""
    cells = tab.run(
        f"(() => {{ const table = [...document.querySelectorAll('.table')].find("
        f"it => it.innerText.startsWith({heading!r})).querySelector('table');"
        f"const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.innerText === {name!r});"
        "table.tHead.rows[0].cells[at].firstElementChild.id = 'wanted';"
        "return [...table.tBodies[0].rows].map(row => row.cells[at].innerText); })()"
    )
    assert isinstance(cells, list)
    return cells


def direction(tab: Page) -> str:
    return str(tab.run("document.getElementById('wanted').parentNode.getAttribute('aria-sort')"))


def test_it_opens_without_a_complaint_and_without_a_request(tab: Page, real: Path) -> None:
    assert tab.requests == [real.as_uri()]
    assert tab.complaints == []
    assert tab.run("document.querySelectorAll('.ranks td[aria-label]').length") == 3 * 36
    assert tab.run("document.querySelectorAll('.norms svg').length") == 6
    assert tab.run("document.querySelectorAll('.metric .run').length") == 4 * 2 * 3, "every seed at both evaluations"


def test_what_would_ask_the_network_is_seen_and_refused(browser: Browser, real: Path, tmp_path: Path) -> None:
    """The two checks above can fail: a script that logs an error and an image from outside are both noticed."""
    broken = tmp_path / "broken.html"
    text = real.read_text(encoding="utf-8").replace("<main>", '<main><img src="https://example.org/x.png">')
    broken.write_text(text.replace("'use strict';", "'use strict'; console.error('seen');"), encoding="utf-8")
    with page(browser, broken) as tab:
        assert any("Content Security Policy" in line for line in tab.complaints)
        assert tab.run("document.querySelectorAll('.ranks td').length") == 0, "a script that was changed does not run"


def test_a_cell_of_the_heat_map_shows_its_value_under_the_pointer(tab: Page) -> None:
    assert tab.run(TIP) is None
    tab.point_at("[data-chart=ranks][data-index='1'] tbody tr:nth-child(6) td:nth-of-type(6)")
    shown = tab.run(TIP)
    assert shown.splitlines()[0] == "bert.encoder.layer.5.output.dense"
    assert shown.splitlines()[1].startswith("rank 32 (uniform LoRA: 8)")
    assert re.fullmatch(r"seeds 0, 1, 2: \d+, \d+, \d+", shown.splitlines()[2])
    tab.point_at("h1")
    assert tab.run(TIP) is None


def test_the_heat_map_is_walked_by_keyboard(tab: Page) -> None:
    stops = tab.run('document.querySelectorAll(\'[data-chart=ranks][data-index="1"] td[tabindex="0"]\').length')
    assert stops == 1, "a map is one stop of the tab key"
    tab.run('document.querySelector(\'[data-chart=ranks][data-index="1"] td[tabindex="0"]\').focus()')
    assert "layer.0.attention.self.query" in tab.run(TIP)
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        tab.press(key)
    assert "layer.1.attention.self.value" in tab.run(TIP)
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):  # at the top edge it stays
        tab.press(key)
    assert "layer.0.attention.self.key" in tab.run(TIP)
    tab.press("Escape")
    assert tab.run(TIP) is None


def test_a_tip_stays_with_its_cell_when_the_page_scrolls(tab: Page) -> None:
    """Going by keyboard to a cell that is out of sight scrolls the page, and must not take away what it shows."""
    tab.run("document.querySelector('[data-chart=ranks] td[tabindex=\"0\"]').focus()")
    frames = "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
    top = "document.getElementById('tip').getBoundingClientRect().top"
    moved = tab.run(f"(async () => {{ {frames} const at = {top}; scrollBy(0, 40); {frames} return at - {top}; }})()")
    assert moved == pytest.approx(40, abs=1)
    assert "layer.0.attention.self.query" in tab.run(TIP)
    assert tab.run(f"(async () => {{ scrollTo(0, 0); {frames} return {TIP}; }})()") is None


def test_a_cell_of_the_heat_map_answers_to_touch(browser: Browser, real: Path) -> None:
    with page(browser, real, **PHONE) as tab:
        tab.tap("[data-chart=ranks][data-index='1'] tbody tr:nth-child(1) td:nth-of-type(1)")
        assert "layer.0.attention.self.query" in tab.run(TIP)


def test_the_line_charts_answer_to_pointer_and_keyboard(tab: Page) -> None:
    tab.point_at(".metric .run")
    assert re.search(r"^\w+, seed \d\nAccuracy \(%\): [\d.]+\nafter [\d.]+ seconds, epoch 1$", tab.run(TIP))
    tab.point_at(".norms .panels > div:nth-child(6) svg")
    assert re.search(r"^bert\.encoder\.layer\.\d\.output\.dense\nstep \d+: norm [\d.]+$", tab.run(TIP))
    tab.run("document.querySelector('.norms .panels > div:nth-child(1) svg').focus()")
    tab.press("ArrowDown")
    first = tab.run(TIP)
    assert "layer.0.attention.self.query\nstep 78" in first
    tab.press("ArrowLeft")  # these records have every second step
    tab.press("ArrowDown")
    assert "layer.1.attention.self.query\nstep 76" in tab.run(TIP)
    tab.run("document.querySelector('.metric svg[tabindex]').focus()")
    tab.press("ArrowRight")
    earliest = tab.run(TIP)
    tab.press("ArrowLeft")
    assert earliest != tab.run(TIP)


def test_a_method_can_be_switched_off(tab: Page) -> None:
    tab.click(".legend button")
    assert tab.run("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    assert tab.run("document.querySelectorAll('.metric .run').length") == 3 * 2 * 3
    tab.click(".legend button")
    assert tab.run("document.querySelectorAll('.metric .run').length") == 4 * 2 * 3


def test_a_table_sorts_by_numbers_in_both_directions(tab: Page) -> None:
    before = column(tab, "Results", "Accuracy (%)")
    assert before == ["52.6 ± 1.4", "49.3 ± 1.2", "51.9 ± 0.8", "52.7 ± 1.6"]
    assert direction(tab) == "none"
    tab.click("#wanted")
    assert column(tab, "Results", "Accuracy (%)") == ["49.3 ± 1.2", "51.9 ± 0.8", "52.6 ± 1.4", "52.7 ± 1.6"]
    assert direction(tab) == "ascending"
    tab.click("#wanted")
    assert column(tab, "Results", "Accuracy (%)") == ["52.7 ± 1.6", "52.6 ± 1.4", "51.9 ± 0.8", "49.3 ± 1.2"]
    assert direction(tab) == "descending"
    assert column(tab, "Results", "method") == ["shuffled", "lora", "glora", "adalora"], "whole rows are moved"
    assert direction(tab) == "none"


def test_signs_units_and_arrows_are_part_of_the_number(browser: Browser, tmp_path: Path) -> None:
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
    with page(browser, written(records, tmp_path)) as tab:
        for heading, name, expected in (
            ("Difference", "Accuracy (%)", ["-3.25", "-0.72", "+0.12"]),
            ("Cost", "training time", ["90.0", "300.0", "12.0", "90.0"]),
            (
                "Budget",
                "adapter parameters",
                ["20,000 → 2,000", "20,000 → 9,000", "20,000 → 10,000", "20,000 → 110,000"],
            ),
        ):
            column(tab, heading, name)
            tab.click("#wanted")
            cells = column(tab, heading, name)
            assert [cell.split(" [")[0].split(" ±")[0] for cell in cells] == expected
            tab.run("document.getElementById('wanted').id = ''")


def test_a_table_sorts_by_keyboard_and_what_is_missing_stays_last(tab: Page) -> None:
    column(tab, "Cost", "95 % interval")
    tab.run("document.getElementById('wanted').focus()")
    tab.press("Enter")
    assert direction(tab) == "ascending"
    up = column(tab, "Cost", "95 % interval")
    tab.press("Enter")
    assert direction(tab) == "descending"
    down = column(tab, "Cost", "95 % interval")
    assert up[-1] == down[-1] == "–"
    assert down[:-1] == up[:-1][::-1]
    assert [float(cell.strip("[").split(",")[0]) for cell in up[:-1]] == [0.268, 0.424, 0.951]


def test_no_page_scrolls_sideways_on_a_phone(browser: Browser, real: Path) -> None:
    with page(browser, real, **PHONE) as tab:
        assert tab.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        wide = tab.run(
            "[...document.querySelectorAll('.table .scroll')].filter(it => it.scrollWidth > it.clientWidth).length"
        )
        assert wide >= 3, "wide tables scroll in boxes of their own"
        outside = tab.run(
            "[...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > 391"
            " && !it.closest('.scroll')).map(it => it.outerHTML.slice(0, 80))"
        )
        assert outside == []
        assert tab.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read_in_both_schemes(browser: Browser, real: Path, dark: bool) -> None:
    """WCAG 2, level AA: a contrast of 4.5, over all texts of the page, those in coloured cells too."""
    with page(browser, real, dark=dark) as tab:
        background = tab.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
        found = tab.run(CONTRASTS)
        assert found["checked"] > 300
        assert found["poor"] == []


def test_the_charts_follow_a_change_of_the_scheme(tab: Page) -> None:
    cell = "getComputedStyle(document.querySelector('.ranks td[aria-label]')).backgroundColor"
    light = tab.run(cell)
    tab.colour_scheme("dark")
    assert tab.run(cell) != light
    assert tab.run(CONTRASTS)["poor"] == []


def test_a_nasty_name_is_a_strange_name_and_nothing_more(browser: Browser, tmp_path: Path) -> None:
    records = []
    for record in read_records(RECORDS):
        renamed = {
            "config": record.config.model_copy(update={"model": NASTY}),
            "ranks": {name.replace("encoder", NASTY): rank for name, rank in record.ranks.items()},
            "initial_ranks": {name.replace("encoder", NASTY): rank for name, rank in record.initial_ranks.items()},
        }
        records.append(record.model_copy(update=renamed))
    with page(browser, written(records, tmp_path)) as tab:
        assert tab.complaints == []
        assert len(tab.requests) == 1
        assert tab.run("document.title") == "Rank allocation compared"
        assert tab.run("document.querySelectorAll('img').length") == 0
        assert NASTY in tab.run("document.querySelector('h2').textContent")
        tab.point_at(".ranks td[aria-label]")
        assert NASTY in tab.run(TIP)


def test_without_javascript_the_tables_are_there(browser: Browser, real: Path) -> None:
    with page(browser, real, scripts=False) as tab:
        found = tab.send("DOM.getDocument", depth=-1)
        html = tab.send("DOM.getOuterHTML", nodeId=found["root"]["nodeId"])["outerHTML"]
        assert "52.6 ± 1.4" in html
        assert "The charts need JavaScript" in html
