"""What `camox inspect --json` prints: one object each for a scan and for a difference."""

import json
import math
from typing import Any

from camox.checkpoints.difference import Difference
from camox.checkpoints.scan import Report, SubjectReport, TensorReport


def report_as_json(report: Report, every_tensor: bool) -> str:
    """A scan; tensors that are finite only where `every_tensor`."""
    return _text(
        {
            "path": str(report.path),
            "exit_code": report.exit_code,
            "checkpoints": [_subject_table(subject, every_tensor) for subject in report.subjects],
            "notes": list(report.notes),
        }
    )


def difference_as_json(difference: Difference) -> str:
    """A difference, with every tensor that differs. A relative difference from nothing but zeros is null."""
    first, second = difference.paths
    return _text(
        {
            "a": str(first),
            "b": str(second),
            "exit_code": difference.exit_code,
            "identical": difference.is_identical,
            "relative": {group: _finite_or_none(value) for group, value in difference.relative.items()},
            "only_in_a": list(difference.only_in[0]),
            "only_in_b": list(difference.only_in[1]),
            "other_dtype_or_shape": [
                {"name": tensor.name, "a": tensor.first, "b": tensor.second} for tensor in difference.other_form
            ],
            "changed": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "relative": _finite_or_none(tensor.relative),
                    "max_abs": _finite_or_none(tensor.max_abs),
                    "changed": tensor.changed,
                    "changed_share": tensor.changed_share,
                }
                for tensor in difference.changed
            ],
            "equal_count": difference.equal,
            "not_finite": [
                {"in": "ab"[tensor.side], "name": tensor.name, "nan": tensor.nan, "inf": tensor.inf}
                for tensor in difference.not_finite
            ],
        }
    )


def _text(table: dict[str, Any]) -> str:
    return json.dumps(table, indent=2, allow_nan=False)


def _subject_table(subject: SubjectReport, every_tensor: bool) -> dict[str, Any]:
    manifest = subject.manifest
    return {
        "path": str(subject.path),
        "epoch": manifest.epoch if manifest else None,
        "step": manifest.step if manifest else None,
        "measures": {name: _finite_or_none(score) for name, score in manifest.measures.items()} if manifest else {},
        "pointers": list(subject.pointers),
        "finite": subject.is_finite,
        "defects": list(subject.defects),
        "files": [
            {
                "name": file.path.name,
                "size": file.size,
                "tensor_count": len(file.tensors),
                "nan": sum(tensor.nan for tensor in file.tensors),
                "inf": sum(tensor.inf for tensor in file.tensors),
                "tensors": [_tensor_table(tensor) for tensor in (file.tensors if every_tensor else file.bad)],
            }
            for file in subject.files
        ],
    }


def _tensor_table(tensor: TensorReport) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "nan": tensor.nan,
        "inf": tensor.inf,
        "zeros": tensor.zeros,
        "zero_share": tensor.zero_share,
        "absmax": tensor.absmax,
    }


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
