"""report.html as text: it says what report.md says, needs nothing from outside, and no name in a record can do harm."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import write_record
from glora.experiments.report.content import ReportContent, report_content
from glora.experiments.report.page import report_html
from glora.experiments.report.summary import summarise
from glora.experiments.report.write import write_report
from glora.experiments.terminal import Terminal
from unit.experiments.synthetic_records import failed_run, finished_run, study

METHODS = ("lora", "adalora", "glora")
NASTY = '<script>alert("x")</script>'


class Read(HTMLParser):
    """The elements of a page, its text without scripts and styles, and what the scripts hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def charts(self) -> Any:
        """The specifications of each section."""
        return json.loads(self.scripts[0])["charts"]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def content_of(records: list[RunRecord]) -> ReportContent:
    return report_content(summarise(records))


def page_of(records: list[RunRecord]) -> Read:
    return Read(report_html(content_of(records)))


def test_it_says_everything_that_the_markdown_says(tmp_path: Path) -> None:
    records = [*study(METHODS, (0, 1, 2)), failed_run("ValueError: out of cheese", method="shuffled")]
    for record in records:
        write_record(tmp_path, record)
    write_report(tmp_path, console=Terminal(file=io.StringIO()))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    text = "".join(Read((tmp_path / "report.html").read_text(encoding="utf-8")).text.split())
    said = [
        cell
        for line in markdown.splitlines()
        if not line.startswith(("![", "| ---"))
        for cell in line.strip("#*-| ").split(" | ")
    ]
    plain = [re.sub(r"\\(.)", r"\1", cell).replace("`", "") for cell in said if cell]
    assert len(plain) > 150
    for cell in plain:
        assert "".join(cell.split()) in text, cell


def test_the_same_tables_with_the_same_cells() -> None:
    content = content_of(study(METHODS, (0, 1, 2)))
    tables = [*content.sections[0].tables, content.shared_settings]
    page = Read(report_html(content))
    tables += [chart.values for chart in content.sections[0].charts if chart.values]
    assert page.count("details") == 1, "the norm chart is drawn on a canvas, which has no text"
    assert page.count("table") == len(tables)
    assert page.count("td") == sum((len(table.columns) - 1) * len(table.rows) for table in tables)


def test_nothing_is_fetched_from_anywhere() -> None:
    page = report_html(content_of(study(METHODS, (0, 1))))
    read = Read(page)
    addresses = [v for _, attributes in read.elements for k, v in attributes.items() if k in ("src", "href", "srcset")]
    assert [a for a in addresses if not (a or "").startswith(("#", "data:"))] == []
    assert "default-src 'none'" in page
    assert "unsafe" not in page


def test_a_name_from_a_record_is_text_wherever_it_stands() -> None:
    records = [
        finished_run(
            method=method,
            model=f"org/{NASTY}",
            task=f"{NASTY}.csv",
            shapes={f"layer.{i}.{NASTY}": (8, 8) for i in range(3)},
            target_modules=(NASTY,),
            final={f"<img src=x onerror=alert(1)>{NASTY}": 0.5},
        )
        for method in ("lora", "glora", NASTY)
    ]
    records.append(failed_run(f"ValueError: {NASTY}", method="adalora", model=f"org/{NASTY}", task=f"{NASTY}.csv"))
    content = content_of(records)
    page = Read(report_html(content))
    honest = page_of(study(("lora", "glora"), (0,)))
    assert page.count("script") == honest.count("script") == 2
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert NASTY in page.text, "what it is called is still shown"
    assert json.dumps(NASTY)[1:-1] in json.dumps(page.charts[0][1]), "and in the rank map"


def test_numbers_that_are_none_are_null_and_not_nan() -> None:
    records = [
        finished_run(method="lora", seed=0, final={"accuracy": float("nan")}),
        finished_run(method="glora", seed=0, final={"accuracy": float("inf")}),
    ]
    page = page_of(records)
    points = [
        row for rows in page.charts[0][0]["datasets"].values() for row in rows if "seed" in row and row["epoch"] == 3
    ]
    assert [point["value"] for point in points] == [None, None]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([finished_run(method="lora")], id="one run"),
        pytest.param(
            [*study(("lora", "glora"), (0, 1, 2)), *(failed_run(method="adalora", seed=s) for s in (0, 1, 2))],
            id="failed runs in one method only",
        ),
        pytest.param(
            [
                *study(("lora", "glora"), (0, 1, 2)),
                *(
                    finished_run(method="full", seed=seed).model_copy(
                        update={
                            "ranks": {},
                            "initial_ranks": {},
                            "module_shapes": {},
                            "adapter_parameters_before": None,
                            "adapter_parameters_after": None,
                        }
                    )
                    for seed in (0, 1, 2)
                ),
            ],
            id="a method without adapters",
        ),
        pytest.param([run.model_copy(update={"norms": []}) for run in study(METHODS, (0, 1))], id="no norms"),
        pytest.param([run.model_copy(update={"metrics": []}) for run in study(METHODS, (0, 1))], id="no evaluations"),
        pytest.param(
            [*study(METHODS, (0,), task="rte"), *study(METHODS, (0,), task="cola"), failed_run(task="mnli")],
            id="several groups, one of failures alone",
        ),
    ],
)
def test_every_kind_of_study_has_its_page(records: list[RunRecord]) -> None:
    content = content_of(records)
    page = Read(report_html(content))
    assert list(map(len, page.charts)) == [len(section.charts) for section in content.sections]
    assert page.count("h2") == len(content.sections) + 1
    assert page.text.count("failed: ") == sum(run.status == "failed" for run in records)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.0, 1.1, 1.2), "better"),
        ((3.0, 3.1, 3.2), "worse"),
        ((2.0, 2.2, 2.1), "no difference shown"),
    ],
)
def test_of_a_loss_less_is_better(values: tuple[float, ...], verdict: str) -> None:
    records = [finished_run(method="lora", seed=s, final={"loss": v}) for s, v in enumerate((2.0, 2.1, 2.2))]
    records += [finished_run(method="glora", seed=s, final={"loss": v}) for s, v in enumerate(values)]
    page = page_of(records)
    tones = [attributes["class"] for tag, attributes in page.elements if tag == "span" and "class" in attributes]
    tone = {"better": "good", "worse": "bad"}.get(verdict, "open")
    assert tones[0] == f"verdict {tone}"
    assert verdict in page.text
