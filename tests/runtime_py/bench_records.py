"""Synthetic records of the benchmark."""

from runtime_py.bench.accounting import Sample
from runtime_py.bench.records import make_record
from runtime_py.bench.tasks import SPECULATIVE, Task

FACTS = {"rounds": 3, "processors": 2, "busy_before": 0.0, "time": "2026-01-01T00:00:00Z", "artifact": "toy",
         "artifact_digest": "5" * 64, "target": "cpu", "host": "here", "quantization": "q4f16_1", "activations": None,
         "built_by_tvm": "0.27", "weight_bytes": 1 << 30, "device": "cpu", "device_name": "a processor", "driver": None,
         "clock_mhz": 2600.0, "processor": "a processor", "system": "Linux", "tvm": "0.27", "source": "abc",
         "text": "random tokens", "load_s": 1.5, "first_pass_s": 0.25, "draft": "eagle"}
FINISHED = {"peak_memory_bytes": 2 << 30, "roof_gb_per_s": 20.0, "roof_gop_per_s": 400.0}


def record(*seconds, task=None, threads=2, **facts):
    """Of a task that took ``seconds`` in its rounds."""
    task = task or Task("tg", 8, 64, "sparse")
    drafts = task.mode == SPECULATIVE
    samples = [Sample(s, 4, 1 << 30, None if drafts else 1 << 31, 0.25, 0.5, 2.0 if drafts else None) for s in seconds]
    return make_record(FACTS | FINISHED | {"threads": threads} | facts, task, samples)
