"""Metrics: name, unit and direction of each, on the main split or on another one."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """A metric on a split.

    Attributes:
        name: as scikit-learn or the loss calls it.
        title: the name for people.
        unit: of the values in a report: "%" for shares, "×100" for correlations (as GLUE reports them), "" as recorded.
        higher_is_better: False for a loss.
        aliases: other names that people write.
        split: a secondary split; empty for the main one.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = True
    aliases: tuple[str, ...] = ()
    split: str = ""

    @property
    def key(self) -> str:
        """The key of `RunRecord.final`: `accuracy`, or `validation_mismatched/accuracy`."""
        return f"{self.split}/{self.name}" if self.split else self.name

    @property
    def scale(self) -> float:
        """Factor from the recorded value to the unit."""
        return 100.0 if self.unit else 1.0

    @property
    def label(self) -> str:
        """Title and split: `Accuracy (validation mismatched)`."""
        return f"{self.title} ({self.split.replace('_', ' ')})" if self.split else self.title

    @property
    def header(self) -> str:
        """Label and unit: `Accuracy (%)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def write(self, value: float) -> str:
        """Return a recorded value in the unit of the header: `81.3`."""
        return f"{self.scale * value:.1f}" if self.unit else f"{value:.4g}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Accuracy", "%", aliases=("acc",)),
        Metric("matthews_correlation", "Matthews corr.", "×100", aliases=("matthews", "mcc", "matthews corrcoef")),
        Metric("f1", "F1", "%", aliases=("f1 measure",)),
        Metric("pearson", "Pearson corr.", "×100", aliases=("pearson correlation", "pearson r")),
        Metric(
            "spearman",
            "Spearman corr.",
            "×100",
            aliases=("spearman correlation", "spearman rho", "spearman rank correlation"),
        ),
        Metric("exact_match", "Exact match", "%", aliases=("exact final number", "final number", "em")),
        Metric(
            "loss",
            "Loss",
            higher_is_better=False,
            aliases=(
                "heldout loss",
                "held out loss",
                "eval loss",
                "evaluation loss",
                "cross entropy",
                "cross entropy loss",
            ),
        ),
        Metric(
            "perplexity",
            "Perplexity",
            higher_is_better=False,
            aliases=("ppl", "heldout perplexity", "held out perplexity"),
        ),
    )
}


def metric_of(name: str, split: str = "") -> Metric:
    """Return a metric by its name, on a secondary split if it is given; an unknown one is shown as recorded."""
    return replace(METRICS.get(name) or Metric(name, name.replace("_", " ").capitalize()), split=split)
