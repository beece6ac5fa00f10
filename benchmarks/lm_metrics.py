"""The name by which task files call the metrics (``!function benchmarks.lm_metrics.exact_label``)."""

from benchmarks.text.metrics import exact_label, exact_label_value, spearman_text, spearman_text_value

__all__ = ["exact_label", "exact_label_value", "spearman_text", "spearman_text_value"]
