import pytest

from benchmarks.calibration_table import Run, System, table

COUNTS = (32, 128, 1024)


def run(system, samples, ratio, peak_mb=300.0):
    return Run(system, "mobilenet", samples, 10 * ratio, 10.0, peak_mb, 100.0, 0.0)


def row_of(runs, title, counts=COUNTS):
    lines = [line for line in table(runs, counts).splitlines() if line.startswith(f"| {title} |")]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_a_cell_is_the_median_ratio_and_the_largest_peak():
    runs = [run(System("onnxq", "mse"), 32, ratio, 100 * ratio) for ratio in (1.0, 3.0, 2.0)]
    assert row_of(runs, "onnxq mse")[1:7] == ["2.0", "–", "–", "300", "–", "–"]


@pytest.mark.parametrize(
    ("method", "ratio", "peaks", "verdict"),
    [
        ("minmax", 2.5, (300, 320, 369), "met"),
        ("minmax", 2.6, (300, 320, 369), "**missed** at 1,024"),
        ("percentile", 6.0, (300, 320, 369), "met"),
        ("percentile", 2.0, (300, 320, 370), "**missed** growth"),
        ("percentile", 2.0, (300, 390, 401), "**missed** peak"),
    ],
)
def test_goals_are_judged(method, ratio, peaks, verdict):
    system = System("onnxq", method)
    ratios = (1.0, 1.0, ratio)
    runs = [run(system, *figures) for figures in zip(COUNTS, ratios, peaks, strict=True)]
    assert row_of(runs, f"onnxq {method}")[-1].endswith(f": {verdict}")


@pytest.mark.parametrize(("ratio", "verdict"), [(44.0, "met"), (43.0, "**missed**")])
def test_speed_up_is_that_over_the_same_method_of_onnxruntime(ratio, verdict):
    runs = [
        run(System("onnxq", "entropy"), 32, 4.0),
        run(System("onnxruntime", "Entropy"), 32, ratio),
    ]
    assert row_of(runs, "onnxruntime Entropy")[-1] == (
        f"onnxq is {ratio / 4:.1f} × faster; ≥ 11 ×: {verdict}"
    )
