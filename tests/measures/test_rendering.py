"""Tables of text, for Markdown and LaTeX."""

from camox.measures.rendering import TextTable, latex, markdown

TABLE = TextTable("A & B", ["method", "source", "s_measure"], [["x|y_1", "≥ 10%", "-0.5 [-0.7, +0.1]"]], ["So."], 2)


def test_markdown_aligns_numbers_right_and_keeps_its_bars():
    lines = markdown([TABLE], ["Below."]).splitlines()
    assert lines[0] == "## A & B"
    assert lines[2:5] == ["| method | source | S |", "| --- | --- | ---: |", "| x\\|y_1 | ≥ 10% | -0.5 [-0.7, +0.1] |"]
    assert lines[-1] == "Below."
    assert "So." in lines


def test_latex_escapes_text_and_sets_signs():
    text = latex([TABLE], ["Below."])
    assert "\\begin{tabular}{llr}" in text
    assert "method & source & $S_\\alpha$ \\\\" in text
    assert "x|y\\_1 & $\\ge$ 10\\% & $-$0.5 [$-$0.7, +0.1] \\\\" in text
    assert text.index("% Below.") < text.index("% A & B") < text.index("% So.") < text.index("\\begin")


def test_a_measure_has_its_title_in_the_first_column_too():
    table = TextTable("t", ["measure", "mine"], [["f_weighted", "0.5"]])
    assert "| wF | 0.5 |" in markdown([table], [])
    assert "$F_\\beta^w$ & 0.5 \\\\" in latex([table], [])


def test_hyphens_in_names_stay():
    assert "COD10K-v3 & DINOv2-4 \\\\" in latex([TextTable("t", ["a", "b"], [["COD10K-v3", "DINOv2-4"]])], [])
