import pytest

from camox.diagnosis.subject import build_subject


@pytest.fixture
def subject(tiny_experiment):
    """The tiny experiment under examination; what a check breaks, breaks in this copy alone."""

    def make(*overrides):
        return build_subject(tiny_experiment(*overrides))

    return make


@pytest.fixture
def messages():
    """All that a finding has to complain about, with its remedies, as one text."""

    def read(finding):
        return "\n".join(f"{problem.message} → {problem.remedy}" for problem in finding.problems)

    return read
