"""What docs/report.md says that a page takes is what was measured."""

import json

from tests.docs.commands import ROOT


def test_its_numbers_are_those_of_the_results():
    text = (ROOT / "docs" / "report.md").read_text()
    measured = json.loads((ROOT / "benchmarks" / "results" / "report.json").read_text())
    whole, numbers = measured["report"], measured["report --no-gallery"]
    expected = (
        f"{whole['wall_seconds']:.1f} seconds and {whole['megabytes']:.1f} MB, without the gallery "
        f"{numbers['wall_seconds']:.1f} seconds and {numbers['megabytes']:.1f} MB"
    )
    assert expected in text, expected
