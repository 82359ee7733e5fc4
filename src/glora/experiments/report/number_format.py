"""How numbers are written: metrics in the unit of their field, spreads, parameters, times, memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from glora.experiments.report.statistics import Estimate, PairedDifference, PairedRatio

PERCENT_METRICS = ("accuracy", "f1", "precision", "recall", "exact_match")
CORRELATIONS = ("matthews", "pearson", "spearman", "correlation")
NAMES = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "matthews_correlation": "Matthews corr.",
    "pearson": "Pearson corr.",
    "spearman": "Spearman corr.",
}
MISSING = "–"


def metric_name(metric: str) -> str:
    """A metric's name for people: `validation_mismatched/accuracy` -> `Accuracy (validation mismatched)`."""
    split, _, name = metric.rpartition("/")
    shown = NAMES.get(name) or name.replace("_", " ").capitalize()
    return f"{shown} ({split.replace('_', ' ')})" if split else shown


def metric_scale(metric: str) -> tuple[float, str]:
    """Factor and unit in which a metric is shown: shares in percent, correlations times 100 as GLUE reports them.

    Anything else (a loss, a perplexity, a metric of one's own) is shown as it was recorded.
    """
    name = metric.rpartition("/")[2]
    if name.startswith(PERCENT_METRICS):
        return 100.0, "%"
    if name.startswith(CORRELATIONS) or name.endswith("correlation"):
        return 100.0, "×100"
    return 1.0, ""


def metric_header(metric: str) -> str:
    """Name and unit: `Accuracy (%)`."""
    _, unit = metric_scale(metric)
    return f"{metric_name(metric)} ({unit})" if unit else metric_name(metric)


def value_text(metric: str, value: float) -> str:
    """One value of a metric, in the unit of `metric_header`: `81.3`."""
    scale, unit = metric_scale(metric)
    return f"{scale * value:.1f}" if unit else f"{scale * value:.4g}"


def metric_text(metric: str, found: Estimate | None) -> str:
    """`81.3 ± 0.4`, or `81.3 (n = 1)`."""
    scale, unit = metric_scale(metric)
    return with_spread(found, scale=scale, decimals=1 if unit else 3)


def difference_text(metric: str, found: PairedDifference | None) -> str:
    """`+0.52 [-0.10, +1.14]`, in points; without the interval below three seeds."""
    if found is None:
        return MISSING
    scale, unit = metric_scale(metric)
    decimals = 2 if unit else 4
    text = f"{found.mean * scale:+.{decimals}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low * scale:+.{decimals}f}, {found.high * scale:+.{decimals}f}]"


def with_spread(found: Estimate | None, *, scale: float = 1.0, decimals: int = 1) -> str:
    """Mean ± sample standard deviation, or the value with `(n = 1)`."""
    if found is None:
        return MISSING
    mean = f"{found.mean * scale:,.{decimals}f}"
    if found.sd is None:
        return f"{mean} (n = {found.n})"
    return f"{mean} ± {found.sd * scale:,.{decimals}f}"


def interval_text(found: PairedRatio | None, *, decimals: int) -> str:
    """`[0.995, 1.045]`; missing below three seeds."""
    if found is None or found.low is None or found.high is None:
        return MISSING
    return f"[{found.low:.{decimals}f}, {found.high:.{decimals}f}]"


def count_text(after: Estimate | None, before: Estimate | None = None) -> str:
    """A number of parameters or ranks: `331,776`, or `331,776 → 390,144` where it changed during the run.

    The spread is shown only if the seeds differ, since a budget is usually met exactly.
    """
    if after is None:
        return MISSING
    text = f"{after.mean:,.0f}" + (f" ± {after.sd:,.0f}" if after.sd else "")
    if before is None or math.isclose(before.mean, after.mean):
        return text
    return f"{before.mean:,.0f} → {text}"


def share_text(share: float | None) -> str:
    """`100 %`, `130.2 %`, `12,345 %`; with a decimal below 1,000 % where it is not a whole number."""
    if share is None:
        return MISSING
    percent = f"{100 * share:,.1f}" if share < 10 else f"{100 * share:,.0f}"
    return f"{percent.removesuffix('.0')} %"


def time_unit(longest_seconds: float) -> tuple[float, str]:
    """Seconds in the unit that suits the longest time, and the unit's name."""
    if longest_seconds < 600:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest_seconds < 4 * 3600 else (3600.0, "hours")


def time_text(found: Estimate | None) -> str:
    """`123.4 ± 1.2 s`, in minutes or hours where that reads better."""
    if found is None:
        return MISSING
    seconds, name = time_unit(found.mean)
    symbol = {"seconds": "s", "minutes": "min", "hours": "h"}[name]
    text = f"{found.mean / seconds:,.1f}"
    return f"{text} ± {found.sd / seconds:,.1f} {symbol}" if found.sd is not None else f"{text} {symbol}"


def step_text(found: Estimate | None) -> str:
    """Mean milliseconds of a step."""
    return MISSING if found is None else f"{found.mean * 1000:,.1f} ms"


def memory_text(found: Estimate | None) -> str:
    """Mean in GiB, or MiB below one."""
    if found is None:
        return MISSING
    return bytes_text(found.mean)


def bytes_text(count: float) -> str:
    """A number of bytes in GiB, or in MiB below one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


_UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "MiB": 1.0, "GiB": 1024.0}


def sort_number(cell: str) -> float | None:
    """What a cell with a number sorts by: its first number in the unit it ends with; None if it holds none.

    Of `331,776 → 390,144` it is the second, how it ended; of an interval alone, `[0.95, 1.05]`, the lower end.
    """
    shown = cell.rpartition("→")[2].strip()
    found = re.match(r"\[?([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)", shown)
    if found is None:
        return None
    unit = re.search(r"\s(\w+)$", shown)
    return float(found[1].replace(",", "")) * _UNITS.get(unit[1] if unit else "", 1.0)


def settings_text(values: Mapping[str, Any]) -> str:
    """`learning_rate=0.000312, beta=0.91`: four digits are as many as a search finds out."""
    return ", ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items())


def short_name(name: str) -> str:
    """A model or task as configured, but of a local path only the last part: a report names no folder of a machine."""
    local = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if local else name
