"""Grouping, pairing and labelling of records against small cases worked out by hand."""

from __future__ import annotations

import math
import random
import re

import pytest

from glora.experiments.data.metric import METRICS
from glora.experiments.records.schema import RunRecord
from glora.experiments.report.cells import cell_text
from glora.experiments.report.content import report_content
from glora.experiments.report.sentences import caveats
from glora.experiments.report.summary import GroupSummary, summarise
from glora.experiments.report.tables import budget_table, cost_table
from unit.experiments.synthetic_records import MACHINE, failed_run, finished_run, study

SHAPES = {"layer.0.a": (4, 6), "layer.0.b": (2, 8)}


def small_study() -> list[RunRecord]:
    """Accuracies 0.80, 0.82, 0.84 for lora and 0.81, 0.84, 0.87 for glora; times 100, 200, 400 and 110, 200, 400."""
    runs = []
    for seed, (lora, glora, slow, also_slow) in enumerate(
        [(0.80, 0.81, 100, 110), (0.82, 0.84, 200, 200), (0.84, 0.87, 400, 400)]
    ):
        for method, accuracy, seconds in (("lora", lora, slow), ("glora", glora, also_slow)):
            final = {"accuracy": accuracy, "validation_mismatched/accuracy": accuracy - 0.5}
            runs.append(finished_run(method=method, seed=seed, final=final, train_seconds=seconds, shapes=SHAPES))
    return runs


def only(groups: list[GroupSummary]) -> GroupSummary:
    assert len(groups) == 1
    return groups[0]


def test_means_spreads_and_pairs() -> None:
    group = only(summarise(small_study()))
    lora, glora = group.methods
    assert (lora.label, lora.is_reference, lora.seeds) == ("LoRA", True, (0, 1, 2))
    assert (glora.label, glora.is_reference) == ("GLoRA by gradient norm", False)
    accuracy = lora.metric(METRICS["accuracy"])
    assert accuracy is not None
    assert (accuracy.mean, accuracy.sd) == pytest.approx((0.82, 0.02))
    assert glora.differences["accuracy"].mean == pytest.approx(0.02)
    assert glora.differences["accuracy"].low == pytest.approx(
        0.02 - 0.95 / math.sqrt(2 * 0.975 * 0.025) * 0.01 / math.sqrt(3)
    )
    assert glora.time_ratio is not None
    assert glora.time_ratio.mean == pytest.approx((1.1 + 1 + 1) / 3)
    assert glora.time_ratio.sd == pytest.approx(0.1 / math.sqrt(3))
    assert lora.differences == {}


def test_the_primary_metric_comes_first_and_secondary_splits_last() -> None:
    run = finished_run(final={"f1": 0.5, "accuracy": 0.4, "auc": 0.2}, epochs=1)
    other = run.metrics[0].model_copy(update={"split": "a_split", "values": {"f1": 0.3}})
    run = run.model_copy(update={"metrics": [*run.metrics, other], "final": {**run.final, "a_split/f1": 0.3}})
    group = only(summarise([run]))
    assert [metric.key for metric in group.metrics] == ["f1", "accuracy", "auc", "a_split/f1"]
    assert group.methods[0].metric(group.metrics[-1]).mean == 0.3


def test_parameters_are_told_as_a_share_of_loras() -> None:
    lora = finished_run(method="lora", rank=3, shapes=SHAPES)
    rows = sum(d_out for d_out, _ in SHAPES.values())
    bigger = {"adapter_parameters_after": 60 + rows, "trainable_parameters_after": 60 + rows + 770}
    dora = finished_run(method="dora", rank=3, shapes=SHAPES).model_copy(update=bigger)
    none = {"ranks": {}, "initial_ranks": {}, "adapter_parameters_after": 0, "trainable_parameters_after": 8300}
    full = finished_run(method="full", rank=3, shapes=SHAPES).model_copy(update=none)
    group = only(summarise([lora, dora, full]))
    shares = {m.label: (m.adapter_share, m.trainable_share) for m in group.methods}
    assert lora.adapter_parameters_after == 60
    assert shares == {"LoRA": (1, 1), "DoRA": (66 / 60, pytest.approx(836 / 830)), "full fine-tuning": (0, 10)}
    columns = budget_table(group).columns
    cells = {row[0]: dict(zip(columns, map(cell_text, row))) for row in budget_table(group).rows}
    assert cells["DoRA"]["adapter / LoRA"] == "110 %"
    assert cells["full fine-tuning"]["all / LoRA"] == "1,000 %"
    assert cells["full fine-tuning"]["total rank"] == "–"
    assert any("DoRA ends with 10% more" in line for line in caveats(group))
    assert any("full fine-tuning has no adapter" in line for line in caveats(group))
    alone = only(summarise([full]))
    assert (alone.methods[0].adapter_share, alone.methods[0].trainable_share) == (None, None)


def test_preparation_has_a_column_where_there_is_some() -> None:
    lora, eva = (finished_run(method=method, train_seconds=100.0) for method in ("lora", "eva"))
    assert "of it preparation" not in cost_table(only(summarise([lora, eva]))).columns
    eva = eva.model_copy(update={"preparation_seconds": 12.5})
    table = cost_table(only(summarise([lora, eva])))
    place = table.columns.index("of it preparation")
    assert [cell_text(row[place]) for row in table.rows] == ["–", "12.5 s"]


def test_both_budgets_are_counted() -> None:
    group = only(summarise([finished_run(method="lora", rank=3, shapes=SHAPES)]))
    assert tuple(map(cell_text, budget_table(group).rows[0][:3])) == ("LoRA", "6", str(3 * (4 + 6) + 3 * (2 + 8)))


def test_order_of_the_records_does_not_matter() -> None:
    records = [*small_study(), *study(("adalora", "shuffled"), (2, 0), shapes=SHAPES)]
    shuffled = records[:]
    random.Random(0).shuffle(shuffled)
    assert summarise(shuffled) == summarise(records)
    assert [method.label for method in summarise(records)[0].methods] == [
        "LoRA",
        "AdaLoRA",
        "GLoRA by gradient norm",
        "shuffled GLoRA by gradient norm",
    ]


def test_a_group_for_each_task_model_and_rank() -> None:
    records = [
        finished_run(task=task, model=model, rank=rank)
        for task in ("rte", "cola")
        for model in ("m", "org/m")
        for rank in (8, 4)
    ]
    found = [(group.task, group.model, group.rank) for group in summarise(records)]
    assert found == sorted(found)
    assert len(found) == 8


def test_no_mean_over_different_settings() -> None:
    records = [
        finished_run(method="glora", seed=seed, beta=beta, final={"accuracy": beta})
        for seed in (0, 1)
        for beta in (0.5, 0.9)
    ]
    group = only(summarise(records))
    assert [method.label for method in group.methods] == [
        "GLoRA by gradient norm (beta=0.5)",
        "GLoRA by gradient norm (beta=0.9)",
    ]
    assert [[run.final["accuracy"] for run in method.runs] for method in group.methods] == [[0.5] * 2, [0.9] * 2]


def test_each_row_is_compared_with_the_lora_of_its_schedule() -> None:
    records = [
        finished_run(method=method, learning_rate=rate, final={"accuracy": accuracy}, train_seconds=100)
        for method, rate, accuracy in [
            ("lora", 1e-4, 0.5),
            ("lora", 1e-3, 0.8),
            ("glora", 1e-4, 0.6),
            ("glora", 1e-3, 0.7),
        ]
    ]
    differences = {
        method.label: round(method.differences["accuracy"].mean, 6)
        for method in only(summarise(records)).methods
        if method.differences
    }
    assert differences == {
        "GLoRA by gradient norm (learning_rate=0.0001)": 0.1,
        "GLoRA by gradient norm (learning_rate=0.001)": -0.1,
    }


def test_settings_that_lora_does_not_have_do_not_part_it_from_the_others() -> None:
    records = [finished_run(method="lora"), finished_run(method="glora", beta=0.5, budget="parameters")]
    assert only(summarise(records)).methods[1].differences.keys() == {"accuracy", "matthews_correlation"}


def test_a_method_tuned_by_itself_is_compared_with_the_only_lora() -> None:
    records = [finished_run(method="lora"), finished_run(method="glora", learning_rate=1e-3, epochs=2, beta=0.5)]
    group = only(summarise(records))
    assert group.methods[1].differences
    (line,) = [line for line in caveats(group) if "under other settings" in line]
    assert "GLoRA by gradient norm is compared with LoRA" in line
    assert "(learning_rate=0.001 against 0.0002, epochs=2.0 against 3.0)" in line
    alike = [finished_run(method="lora"), finished_run(method="glora", beta=0.5)]
    assert not any("under other settings" in line for line in caveats(only(summarise(alike))))


def test_without_the_same_schedule_and_several_loras_nothing_is_compared() -> None:
    records = [
        finished_run(method="lora", learning_rate=1e-4),
        finished_run(method="lora", learning_rate=1e-3),
        finished_run(method="glora", learning_rate=1e-2),
    ]
    assert only(summarise(records)).methods[2].differences == {}


def test_other_data_is_not_paired() -> None:
    records = [finished_run(method="lora", seed=s) for s in (0, 1)]
    records += [finished_run(method="glora", seed=0), finished_run(method="glora", seed=1, data="f" * 16)]
    group = only(summarise(records))
    assert group.methods[1].differences["accuracy"].seeds == (0,)
    assert any("the same data" in line for line in caveats(group))


def test_times_of_other_machines_are_not_divided() -> None:
    other = MACHINE.model_copy(update={"cpu": "Another CPU"})
    group = only(summarise([finished_run(method="lora"), finished_run(method="glora", machine=other)]))
    assert group.methods[1].time_ratio is None
    assert group.methods[1].differences["accuracy"].seeds == (0,)
    assert any("different machines" in line for line in caveats(group))


def started(run: RunRecord, process: str | None) -> RunRecord:
    return run.model_copy(update={"provenance": run.provenance.model_copy(update={"process_started_at": process})})


def test_times_of_other_commands_are_not_divided() -> None:
    """One machine, but lora ran yesterday and glora today: not side by side."""
    seconds = {"lora": (100, 100, 100), "glora": (150, 103, 103)}
    commands = {"lora": ("monday", "tuesday", "tuesday"), "glora": ("tuesday", "tuesday", "tuesday")}
    group = only(
        summarise(
            [
                started(finished_run(method=method, seed=seed, train_seconds=seconds[method][seed]), command)
                for method in seconds
                for seed, command in enumerate(commands[method])
            ]
        )
    )
    ratio = group.methods[1].time_ratio
    assert ratio is not None
    assert (ratio.n, ratio.mean, ratio.low) == (2, pytest.approx(1.03), None)
    assert group.methods[1].differences["accuracy"].seeds == (0, 1, 2)
    assert any("by one command" in line for line in caveats(group))


def test_records_that_do_not_say_which_command_made_them_are_told() -> None:
    old = [started(run, None) for run in study(("lora", "glora"), (0,))]
    group = only(summarise(old))
    assert group.methods[1].time_ratio is not None
    assert any("too old" in line for line in caveats(group))
    new = only(summarise([started(run, "monday") for run in old]))
    assert not any("command" in line for line in caveats(new))


def test_failed_runs_are_listed_and_not_counted() -> None:
    group = only(summarise([finished_run(method="lora"), failed_run(method="glora", seed=3), failed_run(seed=1)]))
    assert [method.label for method in group.methods] == ["LoRA"]
    assert [(run.config.method, run.config.seed) for run in group.failures] == [("glora", 1), ("glora", 3)]


def test_a_group_of_failures_alone_has_no_rows() -> None:
    group = only(summarise([failed_run()]))
    assert (group.methods, group.primary_metric, group.metrics) == ((), None, ())
    assert caveats(group) == []


def test_of_two_runs_of_one_seed_the_later_one_counts() -> None:
    first = finished_run(method="lora", final={"accuracy": 0.1})
    later = finished_run(method="lora", final={"accuracy": 0.9})
    later = later.model_copy(update={"key": "other", "finished_at": "2027-01-01T00:00:00+00:00"})
    for records in ([first, later], [later, first]):
        row = only(summarise(records)).methods[0]
        assert [(run.config.seed, run.final["accuracy"]) for run in row.runs] == [(0, 0.9)]


def test_caveats_name_what_misleads() -> None:
    enough = caveats(only(summarise(study(("lora", "glora"), (0, 1, 2)))))
    assert not any("nothing can be concluded" in line for line in enough)
    assert any("fewer adapter parameters than LoRA" in line for line in enough)
    uneven = caveats(only(summarise([*study(("lora",), (0, 1)), *study(("glora",), (0,))])))
    assert any("different seeds (LoRA: 0, 1; GLoRA by gradient norm: 0)" in line for line in uneven)
    alone = caveats(only(summarise(study(("glora",), (0,)))))
    assert any("no finished run of `lora`" in line for line in alone)
    broken = caveats(only(summarise([finished_run(method="lora", seed=4, final={"accuracy": math.nan})])))
    assert any("LoRA seed 4: accuracy" in line for line in broken)


def test_learning_rates_that_do_not_suit_a_method_are_pointed_out() -> None:
    def warnings_of(method: str, rate: float) -> list[str]:
        runs = [finished_run(method="lora", learning_rate=2e-4), finished_run(method=method, learning_rate=rate)]
        return [line for line in caveats(only(summarise(runs))) if "usual for it are" in line]

    (line,) = warnings_of("adalora", 2e-4)
    assert re.search("AdaLoRA .*learning rate of 0.0002; .*0.0005 to 0.0022", line)
    assert "full fine-tuning was trained" in warnings_of("full", 2e-4)[0]
    assert warnings_of("adalora", 1e-3) == warnings_of("full", 2e-5) == warnings_of("glora", 5e-2) == []


def test_models_and_data_whose_names_look_alike_are_told_apart() -> None:
    names = ("/a/train.csv", "/b/train.csv", "数据.csv", "文件.csv")
    records = [finished_run(task=name, model="/m/final", method="lora", shapes=SHAPES) for name in names]
    records += [finished_run(task="rte", model=f"/{folder}/final", shapes=SHAPES) for folder in ("m", "n")]
    records += [finished_run(task="sst2", model="/m/final", shapes=SHAPES)]
    content = report_content(summarise([RunRecord.model_validate_json(r.model_dump_json()) for r in records]))
    assert len({section.heading for section in content.sections}) == len(names) + 3
    pictures = [chart.name for section in content.sections for chart in section.charts]
    assert len(set(pictures)) == len(pictures)
