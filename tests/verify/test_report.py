"""What the reports say, for a heart-rate network judged on 12 subjects and for hostile input."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from onnxq.artifacts import (
    AuditRow,
    CellCount,
    CellCoverage,
    Comparison,
    Coverage,
    CoverageLine,
    FileFacts,
    Finding,
    FloatNode,
    FusionLine,
    GateResult,
    GroupRow,
    InputRow,
    Interval,
    LayerDistance,
    MetricRow,
    NodeExecution,
    OutputDistance,
    OutsideRow,
    ParityCheck,
    Passport,
    Provenance,
    SampleChoice,
    SizeLine,
    StabilityRow,
    Sufficiency,
    TensorRange,
    VerificationReport,
)
from onnxq.samples import Samples
from onnxq.verify.report.formatting import number, percent
from onnxq.verify.report.html import html
from onnxq.verify.report.junit import junit
from onnxq.verify.report.markdown import markdown
from onnxq.verify.report.observations import agreement, limits_of_agreement, pairs
from onnxq.verify.report.plots import coverage
from onnxq.verify.report.sections import sections
from onnxq.verify.report.svg import ticks
from onnxq.verify.report.write import write_reports

SUBJECTS = tuple(
    f"subject{number:02d}" for number in (3, 7, 11, 14, 18, 22, 25, 31, 36, 40, 44, 48)
)
VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert('x')</script> | `a` \x07 & ünï\ncode"


@pytest.fixture(scope="module")
def samples() -> Samples:
    """504 windows of 12 subjects, 45 to 155 BPM."""
    rng = np.random.default_rng(7)
    groups = np.repeat(SUBJECTS, 42)
    centre = np.repeat(np.linspace(58, 138, 12), 42)
    labels = np.clip(centre + rng.normal(0, 8, 504), 45, 155).astype(np.float32)
    return Samples("rppg test windows", {"input": np.zeros((504, 1))}, labels, groups)


@pytest.fixture(scope="module")
def predictions(samples: Samples) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    assert samples.labels is not None
    fp32 = 96 + 0.8 * (samples.labels - 96) + rng.normal(0, 7.5, 504)
    int8 = np.round((fp32 + rng.normal(0.3, 1.1, 504)) / 0.588) * 0.588
    variants = {"fp32": fp32, "rewritten": fp32 + 1e-6, "int8": int8, "int8_other": int8 + 0.02}
    return {name: values.astype(np.float32)[:, None] for name, values in variants.items()}


@pytest.fixture(scope="module")
def report(samples: Samples, predictions: dict[str, np.ndarray]) -> VerificationReport:
    return make_report(samples, predictions)


def make_report(samples: Samples, predictions: dict[str, np.ndarray]) -> VerificationReport:
    error = {name: np.abs(p[:, 0] - samples.labels) for name, p in predictions.items()}
    rows = tuple(
        GroupRow(
            group=name,
            samples=42,
            fp32=float(error["fp32"][here].mean()),
            int8=float(error["int8"][here].mean()),
            increase=float((error["int8"] - error["fp32"])[here].mean()),
        )
        for name in SUBJECTS
        for here in [samples.groups == name]
    )
    interval = Interval(
        low=-0.061, high=0.213, method="wider of t and BCa", units="subjects", count=12
    )
    mae = {name: float(values.mean()) for name, values in error.items()}
    rmse = {name: float(np.sqrt((values**2).mean())) for name, values in error.items()}
    metrics = (
        MetricRow(
            metric="mae",
            unit="BPM",
            better="lower",
            **mae,
            increase=mae["int8"] - mae["fp32"],
            interval=interval,
            baseline=23.9,
        ),
        MetricRow(
            metric="rmse",
            unit="BPM",
            better="lower",
            **rmse,
            increase=rmse["int8"] - rmse["fp32"],
            interval=None,
            baseline=27.4,
        ),
        MetricRow(
            metric="pearson",
            unit="",
            better="higher",
            fp32=0.934,
            rewritten=0.934,
            int8=0.931,
            int8_other=0.9309,
            increase=0.003,
            interval=None,
            baseline=math.nan,
        ),
    )
    assert samples.labels is not None
    comparison = Comparison(
        source=samples.name,
        samples=504,
        groups=12,
        judged_as="graph",
        metrics=metrics,
        by_group=rows,
        worst_group=max(rows, key=lambda row: row.increase).group,
        label_low=float(samples.labels.min()),
        label_high=float(samples.labels.max()),
    )
    gates = (
        GateResult(
            metric="mae",
            statement="increase of mae (BPM)",
            allowed=2.0,
            point=0.076,
            bound=0.213,
            judge="bound",
            verdict="passed",
        ),
        GateResult(
            metric="mae_to_fp32",
            statement="distance to FP32 (mae, BPM)",
            allowed=2.0,
            point=0.927,
            bound=1.04,
            judge="bound",
            verdict="passed",
        ),
    )
    names = [f"patch/stage{i // 6 + 1}/{op}_{i}" for i, op in enumerate(("conv", "add") * 12)]
    layers = tuple(
        LayerDistance(
            tensor=name,
            node=name.replace("/", "."),
            op_type="Conv" if "conv" in name else "Add",
            sqnr_db=math.inf if i == 2 else 41 - 0.9 * i + 4 * math.sin(2.3 * i),
            rmse=0.0031 * (i + 1),
            mae=0.0024 * (i + 1),
            l2r=10 ** (-(41 - 0.9 * i) / 20),
            mean=-1.2e-5 * i,
            std=0.0031 * (i + 1),
            nse=-math.inf if i == 23 else 0.9999 - 0.001 * i,
            cos=0.99995 - 0.0002 * i,
        )
        for i, name in enumerate(names)
    )
    ranges = {
        name: TensorRange(
            low=-2.1 - i / 7,
            high=3.4 + i / 5,
            observed_low=-2.3 - i / 7,
            observed_high=3.9 + i / 5,
            values=9_437_184,
            zeros=412_355 * (i % 3),
            outside_fraction=0.0001 * i,
            pinned="recipe: outputs.output.domain" if i == 23 else None,
        )
        for i, name in enumerate(names)
    }
    choice = SampleChoice(
        source="rppg calibration windows",
        plan="stratified by label bins, then by group",
        seed=7,
        asked=200,
        indices=tuple(range(200)),
        digests=("0" * 64,) * 200,
        groups=tuple(f"subject{i % 20:02d}" for i in range(200)),
        label_low=48.2,
        label_high=151.9,
        label_mean=92.7,
    )
    parity = tuple(
        ParityCheck(
            hop=hop,
            inputs=inputs,
            samples=8,
            max_absolute=3.1e-6,
            max_relative=2.9e-8,
            cosine=0.99999997,
            passed=True,
        )
        for hop in ("torch → ONNX", "ONNX → cleaned ONNX")
        for inputs in ("random in domain", "held-out samples")
    )
    operators = (("Add", 12, 12), ("Conv", 21, 22), ("Gemm", 2, 2), ("Sigmoid", 0, 1))
    return VerificationReport(
        verdict="passed",
        reasons=(
            "increase of mae (BPM) is 0.076, at most 0.213 (95 %), allowed 2",
            "distance to FP32 (mae, BPM) is 0.927, at most 1.04 (95 %), allowed 2",
        ),
        name="rppg",
        target="stm32n6",
        fp32=FileFacts(name="rppg.fp32.onnx", sha256="ab" * 32, size_bytes=312_455),
        int8=FileFacts(name="rppg.int8.onnx", sha256="3f" * 32, size_bytes=98_204),
        gates=gates,
        comparison=comparison,
        audit=(
            AuditRow(
                node="patch.stage1.conv_0",
                op_type="Conv",
                weight_type="int8",
                weight_levels=241,
                weight_channels=16,
            ),
        ),
        coverage=Coverage(
            operators=CoverageLine(integer=35, total=37),
            parameters=CoverageLine(integer=70_112, total=70_545),
            macs=CoverageLine(integer=48_211_968, total=48_211_969),
        ),
        fusion=tuple(FusionLine(op_type=o, integer=i, total=t) for o, i, t in operators),
        layers=layers,
        ranges=ranges,
        float_nodes=(FloatNode(node="head.sigmoid_1", op_type="Sigmoid", reason="by recipe"),),
        sizes=(
            SizeLine(what="constants", fp32_bytes=282_180, int8_bytes=71_992),
            SizeLine(what="file", fp32_bytes=312_455, int8_bytes=98_204),
            SizeLine(what="checkpoint", fp32_bytes=301_112, int8_bytes=None),
        ),
        macs=48_211_969,
        executions=(
            NodeExecution(
                node="head.sigmoid_1",
                op_type="Sigmoid",
                runs="float",
                executed_as="Sigmoid",
                elsewhere="float",
                expected="float",
                cause="not quantized",
                why="it has no Q/DQ around it",
                do="quantize it with its neighbours",
            ),
        ),
        fused_against_unfused=OutputDistance(
            samples=60,
            sqnr_db=54.21,
            rmse=0.02,
            mae=0.01,
            l2r=0.002,
            mean=-0.001,
            std=0.02,
            nse=0.9999,
            cos=0.99999,
            largest=0.07,
            steps=1.0,
        ),
        calibration=choice,
        passport=make_passport(names),
        parity=parity,
        findings=(
            Finding(where="patch/stage1/conv_0", what="two channels are always 0", do="prune them"),
            Finding(where="rppg test windows", what="synthetic faces, no recording"),
        ),
        waived=("stm32n6.rank: the input is unpacked inside the graph",),
        provenance=Provenance(
            onnxq="0.1.0",
            packages={"onnx": "1.23.0", "onnxruntime": "1.31.0", "numpy": "2.1.0"},
            machine="Linux x86_64, 16 cores",
            cpu_flags=("avx2", "avx512f", "avx512_vnni"),
            options={"gate": [{"metric": "mae", "max_increase": 2.0}]},
        ),
    )


def make_passport(tensors: list[str]) -> Passport:
    """Calibrated on heart rates below 120 only, and judged on all."""
    drawn, held = (40, 40, 40, 40, 40, 0), (31, 102, 148, 127, 65, 31)
    bins = ("< 60", "[60, 75)", "[75, 90)", "[90, 105)", "[105, 120)", "≥ 120")
    cells = tuple(
        CellCount(cell=cell, calibration=c, evaluation=e)
        for cell, c, e in zip(bins, drawn, held, strict=True)
    )
    groups = tuple(
        CellCount(cell=cell, calibration=c, evaluation=e)
        for cell, c, e in [(f"subject{n:02d}", 25, 0) for n in (1, 2, 5, 9, 12, 19, 27, 30)]
        + [(name, 0, 42) for name in SUBJECTS]
    )
    return Passport(
        evaluated=64,
        overlap_checked=("content", "group"),
        outside=tuple(
            OutsideRow(
                tensor=name,
                is_output=place == 23,
                runs=0.4 / (place + 1),
                share=0.031 / (place + 1),
                calibration_share=0.0 if place % 2 else None,
                excess=4.2 / (place + 1),
                steps=61 / (place + 1),
            )
            for place, name in enumerate(tensors)
        ),
        coverage=(
            CellCoverage(
                kind="label", word="label bin", cells=cells, missing=("≥ 120",), beyond=31
            ),
            CellCoverage(kind="group", word="group", cells=groups),
        ),
        stability=tuple(
            StabilityRow(tensor=name, spread=0.061 / (n + 1), quarter=0.913, half=0.957)
            for n, name in enumerate(tensors)
        ),
        sufficiency=Sufficiency(
            samples=200,
            tensors=24,
            spread=0.048,
            spread_allowed=0.1,
            tolerance=0.05,
            change=0.071,
            change_before=0.094,
            enough=400,
        ),
        inputs=(
            InputRow(
                input="input",
                calibration_mean=0.031,
                calibration_std=0.997,
                evaluation_mean=0.472,
                evaluation_std=0.231,
                shift=0.609,
                ratio=0.2317,
                differs=True,
            ),
        ),
        findings=(
            Finding(
                where="rppg test windows, input `input`",
                what="has mean 0.472 and standard deviation 0.231 in evaluation, 0.031 and 0.997 "
                "in calibration",
                do="preprocess both in the same way: scaling, mean and deviation removed, layout",
            ),
            Finding(
                where="rppg test windows",
                what="calibration has no sample of 1 of the 6 label bins in evaluation: ≥ 120 "
                "(31 of 504 samples)",
                do="calibrate on samples of every label bin (`calibrate: stratify:`)",
            ),
        ),
    )


class _Balance(HTMLParser):
    """Collects tags and text; every tag must be closed by its own."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def parse(page: str) -> _Balance:
    parser = _Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def folder(
    report: VerificationReport,
    samples: Samples,
    predictions: dict[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_reports(report, predictions, samples, place)
    return place


def hostile(report: VerificationReport) -> VerificationReport:
    comparison = report.comparison
    worst = comparison.by_group[0].model_copy(update={"group": HOSTILE})
    groups = (worst, *comparison.by_group[1:])
    return report.model_copy(
        update={
            "name": HOSTILE,
            "target": HOSTILE,
            "reasons": (HOSTILE,),
            "comparison": comparison.model_copy(
                update={"by_group": groups, "worst_group": HOSTILE, "source": HOSTILE}
            ),
            "layers": tuple(
                layer.model_copy(update={"tensor": HOSTILE, "node": HOSTILE})
                for layer in report.layers
            ),
            "findings": (Finding(where=HOSTILE, what=HOSTILE, do=HOSTILE),),
            "passport": hostile_passport(report.passport),
            "gates": (report.gates[0].model_copy(update={"metric": HOSTILE, "needs": HOSTILE}),),
        }
    )


def hostile_passport(passport: Passport) -> Passport:
    cells = (CellCount(cell=HOSTILE, calibration=0, evaluation=3),)
    coverage = CellCoverage(kind="label", word="label class", cells=cells, missing=(HOSTILE,))
    return passport.model_copy(
        update={
            "coverage": (coverage,),
            "findings": (Finding(where=HOSTILE, what=HOSTILE, do=HOSTILE),),
            "inputs": tuple(r.model_copy(update={"input": HOSTILE}) for r in passport.inputs),
            "outside": tuple(r.model_copy(update={"tensor": HOSTILE}) for r in passport.outside),
            "stability": tuple(
                r.model_copy(update={"tensor": HOSTILE}) for r in passport.stability
            ),
        }
    )


def bare(report: VerificationReport) -> VerificationReport:
    """As little as a report can hold."""
    nothing = CoverageLine(integer=0, total=0)
    return VerificationReport(
        verdict="unverified",
        reasons=(),
        name="plain",
        target="ort-x86",
        fp32=report.fp32,
        int8=report.int8,
        gates=(),
        comparison=report.comparison.model_copy(
            update={"metrics": (), "by_group": (), "worst_group": None, "groups": 0}
        ),
        audit=(),
        coverage=Coverage(operators=nothing, parameters=nothing, macs=nothing),
        fusion=(),
        layers=(),
        provenance=report.provenance,
    )


# --- HTML ---------------------------------------------------------------------------------------


def test_html_is_balanced_and_stands_alone(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    seen = parse(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert not re.search(r"https?:|url\(|@import|javascript:|\son\w+=", page)
    assert all(link.startswith("#") and link[1:] in seen.ids for link in seen.links)
    assert len(seen.ids) == len(set(seen.ids))
    assert len(page) < 200_000


def test_html_gives_the_verdict_before_anything_else(folder: Path) -> None:
    text = " ".join(parse((folder / "report.html").read_text("utf-8")).text)
    first = text.index("Passed")
    assert first < text.index("increase of mae") < text.index("Gates") < text.index("Metrics")


def test_every_plot_has_a_title_and_a_description(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    plots = re.findall(r'<svg class="plot".*?</svg>', page, re.S)
    assert len(plots) == 6
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root[0].tag == "title"
        assert root[1].tag == "desc"
        assert root[0].text
        assert root[1].text


def test_every_prediction_is_drawn(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    clouds = re.findall(r'<g class="dots.*?</g>', page, re.S)
    assert [cloud.count("<circle") for cloud in clouds] == [504] * 3


def test_all_tensors_have_a_bar_and_ten_are_marked(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    bars = re.search(r'<ol class="bars".*?</ol>', page, re.S)
    assert bars is not None
    assert bars[0].count("<li") == 24
    assert bars[0].count('class="worst"') == 10


def test_hostile_names_stay_text(
    report: VerificationReport, samples: Samples, predictions: dict[str, np.ndarray]
) -> None:
    page = html(hostile(report), pairs(predictions, samples))
    assert "script" not in parse(page).tags
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_no_number_is_spelt_nan_or_inf(folder: Path, name: str) -> None:
    text = (folder / name).read_text("utf-8")
    text = " ".join(parse(text).text) if name.endswith("html") else text
    assert not re.search(
        r"\b(nan|inf|none|infinity)\b(?! \|| *$)", text.replace("| none |", ""), re.I
    )
    assert "∞" in text
    assert "−∞" in text


def test_what_has_nothing_to_say_is_left_out(report: VerificationReport) -> None:
    page = parse(html(bare(report)))
    assert [name for name in page.ids] == ["files", "provenance"]
    assert "svg" not in page.tags


# --- Markdown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attacked", [False, True])
def test_rows_of_a_markdown_table_have_as_many_cells_as_its_head(
    report: VerificationReport,
    samples: Samples,
    predictions: dict[str, np.ndarray],
    attacked: bool,
) -> None:
    text = markdown(hostile(report) if attacked else report, pairs(predictions, samples))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) > 10
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"\|( -{3}:? \|)+", block[1])


def test_markdown_holds_no_markup_of_others(report: VerificationReport) -> None:
    assert "<script" not in markdown(hostile(report))


def test_what_rewriting_adds_and_what_quantizing_adds_make_up_the_increase(
    report: VerificationReport,
) -> None:
    for row in report.comparison.metrics:
        assert row.rewriting_adds is not None
        assert row.quantizing_adds is not None
        assert row.increase == pytest.approx(row.rewriting_adds + row.quantizing_adds)
    pearson = report.comparison.metrics[2].model_copy(update={"rewritten": 0.936})
    assert pearson.rewriting_adds == pytest.approx(-0.002)  # higher is better: it became better
    assert pearson.quantizing_adds == pytest.approx(0.005)
    neither = pearson.model_copy(update={"better": "neither"})
    assert neither.rewriting_adds is neither.quantizing_adds is None


def test_both_deltas_stand_beside_the_increase(report: VerificationReport) -> None:
    (section,) = (section for section in sections(report) if section.id == "metrics")
    steps = section.tables[1]
    titles = [column.title for column in steps.columns]
    assert titles[1:4] == ["Rewriting adds", "Quantizing adds", "Worse by"]
    assert steps.rows[2].cells[1:4] == ("0", "0.003000", "0.003000")
    for text in (markdown(report), html(report)):
        assert text.count("Rewriting adds") == text.count("Quantizing adds") == 1


# --- the passport -------------------------------------------------------------------------------


def passport_of(report: VerificationReport, **changes: object) -> tuple[str, dict[str, list]]:
    """Lead of the section, and the rows of its tables by title."""
    assert report.passport is not None
    changed = report.model_copy(update={"passport": report.passport.model_copy(update=changes)})
    (section,) = (section for section in sections(changed) if section.id == "passport")
    return section.lead, {
        table.title: [row.cells for row in table.rows] for table in section.tables
    }


def test_the_passport_begins_with_its_verdict(report: VerificationReport) -> None:
    assert passport_of(report)[0] == (
        "The ranges are stable; calibration does not cover all that occurs in evaluation; and "
        "their inputs are not preprocessed alike. Compared on 64 evaluation samples."
    )
    alike = tuple(r.model_copy(update={"differs": False}) for r in report.passport.inputs)
    covered = tuple(c.model_copy(update={"missing": ()}) for c in report.passport.coverage)
    loose = report.passport.sufficiency.model_copy(update={"spread": 0.3})
    assert passport_of(report, inputs=alike, coverage=covered, sufficiency=loose)[0] == (
        "The ranges are not stable: other samples would have given others; calibration covers what "
        "occurs in evaluation; both are preprocessed alike. Compared on 64 evaluation samples."
    )


def test_every_question_of_the_passport_is_answered(report: VerificationReport) -> None:
    answers = {row[0]: row[1:] for row in passport_of(report)[1][""]}
    assert {question: row[0] for question, row in answers.items()} == {
        "Are the ranges stable?": "yes",
        "Are there enough samples?": "no",
        "Is evaluation covered?": "no",
        "Same preprocessing?": "no",
        "Kept apart from evaluation?": "yes",
    }
    assert "about 400 samples are estimated to do" in answers["Are there enough samples?"][1]
    assert answers["Is evaluation covered?"][1] == ("label bin: 1 of 6 have no calibration sample")
    overlap = answers["Kept apart from evaluation?"][1]
    assert "SHA-256 of every sample's inputs and by the names of the groups" in overlap


def test_the_worst_ten_tensors_and_every_output_are_named(report: VerificationReport) -> None:
    tables = passport_of(report)[1]
    outside = tables["Values outside the calibrated ranges"]
    assert [row[1] for row in outside] == ["output", *["activation"] * 10]
    assert outside[1][2:] == ("40.0", "3.1", "–", "4.200", "61.0")
    assert len(tables["Ranges that depend most on the samples drawn"]) == 10


def test_without_evaluation_only_what_was_looked_at_is_asked(report: VerificationReport) -> None:
    lead, tables = passport_of(
        report, evaluated=0, outside=(), inputs=(), coverage=(), overlap_checked=(), findings=()
    )
    assert lead == (
        "The ranges are stable; whether calibration covers evaluation is not known; and no "
        "evaluation was at hand to compare inputs with."
    )
    assert len(tables[""]) == 2
    assert list(tables) == ["", "Ranges that depend most on the samples drawn"]


def test_cells_of_an_evaluation_that_is_not_known_are_not_counted_as_none(
    report: VerificationReport,
) -> None:
    cells = tuple(CellCount(cell=c, calibration=3, evaluation=None) for c in "ab")
    seen = CellCoverage(kind="group", word="group", cells=cells)
    tables = passport_of(report, coverage=(seen,))[1]
    assert tables["Coverage"] == [("group", "2", "–", "–")]
    changed = report.model_copy(
        update={"passport": report.passport.model_copy(update={"coverage": (seen,)})}
    )
    caption = html(changed).split("Share of the samples by group.")[0][-200:]
    assert "calibration" in caption
    assert "evaluation" not in caption


def test_what_cannot_be_said_is_said_so(report: VerificationReport) -> None:
    lead, tables = passport_of(report, sufficiency=None, stability=())
    assert lead.startswith("Whether the ranges are stable cannot be said")
    assert [row[1] for row in tables[""]][:2] == ["cannot be said"] * 2
    few = report.passport.sufficiency.model_copy(update={"change": None, "enough": None})
    assert passport_of(report, sufficiency=few)[1][""][1][1:] == (
        "cannot be said", "too few samples to divide",
    )  # fmt: skip


def test_bars_are_as_long_as_the_share_of_the_samples(report: VerificationReport) -> None:
    drawn = coverage(report.passport.coverage[0])
    root = ElementTree.fromstring(drawn)
    for side, held in (("calibration", [40] * 5), ("evaluation", [31, 102, 148, 127, 65, 31])):
        bars = [float(r.get("width")) for r in root.iter("rect") if r.get("class") == side]
        shares = np.array(held) / sum(held)
        assert np.array(bars) / bars[0] == pytest.approx(shares / shares[0], rel=0.01)
    marked = [text.text for text in root.iter("text") if "worst" in text.get("class", "")]
    assert marked == ["≥ 120"]


def test_more_classes_than_calibration_has_samples_are_not_held_against_it(
    report: VerificationReport,
) -> None:
    cells = tuple(
        CellCount(cell=f"class {n}", calibration=int(n < 200), evaluation=1) for n in range(1000)
    )
    missing = tuple(cell.cell for cell in cells if not cell.calibration)
    seen = CellCoverage(kind="label", word="label class", cells=cells, missing=missing)
    assert seen.is_covered is None
    lead, tables = passport_of(report, coverage=(seen,))
    assert "whether calibration covers evaluation is not known" in lead
    assert tables[""][2][1:] == (
        "cannot be said",
        "label class: 1\N{NARROW NO-BREAK SPACE}000 in evaluation, more than calibration has "
        "samples",
    )
    assert tables["Coverage"][0][:3] == ("label class", "200", "1\N{NARROW NO-BREAK SPACE}000")
    assert "and 788 more" in tables["Coverage"][0][3]
    changed = report.passport.model_copy(update={"coverage": (seen,)})
    page = html(report.model_copy(update={"passport": changed}))
    assert "Share of the samples" not in page  # a thousand bars would help nobody


# --- JUnit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [("passed", None), ("failed", "failure"), ("inconclusive", "error"), ("unverified", "error")],
)
def test_what_is_not_known_to_be_good_does_not_pass_in_ci(
    report: VerificationReport, verdict: str, outcome: str | None
) -> None:
    gate = report.gates[0].model_copy(update={"verdict": verdict, "needs": "9 more subjects"})
    changed = report.model_copy(update={"verdict": verdict, "gates": (gate, report.gates[1])})
    suite = ElementTree.fromstring(junit(changed))[0]
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == [
        "verdict", "gate mae", "gate mae_to_fp32", "audit", "parity", "executed-integer",
    ]  # fmt: skip
    for name in ("verdict", "gate mae"):
        found = [child.tag for child in cases[name]]
        assert found == [outcome or "system-out"]
    assert suite.get("tests") == "6"
    assert suite.get("failures") == ("2" if outcome == "failure" else "0")
    assert suite.get("errors") == ("2" if outcome == "error" else "0")
    assert {case.get("time") for case in suite} == {"0"}


def test_faults_of_the_file_fail_in_ci(report: VerificationReport) -> None:
    row = report.audit[0].model_copy(update={"faults": ("its weight is float",)})
    hop = report.parity[0].model_copy(update={"passed": False, "max_absolute": math.nan})
    judged = report.comparison.model_copy(update={"judged_as": "runtime"})
    lines = (FusionLine(op_type="Conv", integer=0, total=22),)
    changed = report.model_copy(
        update={"audit": (row,), "parity": (hop,), "comparison": judged, "fusion": lines}
    )
    suite = ElementTree.fromstring(junit(changed))[0]
    assert suite.get("failures") == "3"
    assert {case.get("name") for case in suite if case.find("failure") is not None} == {
        "audit", "parity", "executed-integer",
    }  # fmt: skip


def test_junit_of_hostile_names_is_xml(report: VerificationReport) -> None:
    ElementTree.fromstring(junit(hostile(report)))


# --- JSON and the rest --------------------------------------------------------------------------


def test_json_is_the_record(folder: Path, report: VerificationReport) -> None:
    text = (folder / "report.json").read_text("utf-8")
    again = VerificationReport.model_validate_json(text)
    assert again.model_dump_json() == report.model_dump_json()
    assert math.isinf(again.layers[2].sqnr_db)


def test_four_files_are_written(folder: Path) -> None:
    names = {"report.json", "report.md", "junit.xml", "report.html"}
    assert {path.name for path in folder.iterdir()} == names


def test_limits_of_agreement_hold_95_percent_of_normal_differences() -> None:
    rng = np.random.default_rng(3)
    labels = rng.uniform(45, 155, 20_000)
    samples = Samples("normal", {"x": labels[:, None]}, labels)
    int8 = labels + rng.normal(0.5, 2.0, 20_000)
    pair = pairs({"fp32": labels, "int8": int8}, samples)
    assert pair is not None
    limits = limits_of_agreement(pair)
    difference = int8 - labels
    inside = (difference >= limits.low) & (difference <= limits.high)
    assert inside.mean() == pytest.approx(0.95, abs=0.005)
    assert limits.bias == pytest.approx(0.5, abs=0.05)


def test_predictions_that_are_not_finite_are_counted_not_drawn(
    samples: Samples, predictions: dict[str, np.ndarray]
) -> None:
    broken = {name: values.copy() for name, values in predictions.items()}
    broken["int8"][3] = np.nan
    pair = pairs(broken, samples)
    assert pair is not None
    assert (len(pair.label), pair.left_out) == (503, 1)


def test_groups_without_a_finite_figure_are_listed_not_drawn(report: VerificationReport) -> None:
    seen = report.comparison
    broken = seen.by_group[0].model_copy(update={"int8": math.nan, "increase": math.nan})
    for rows in ((broken, *seen.by_group[1:]), (broken,)):
        comparison = seen.model_copy(update={"by_group": rows})
        page = html(report.model_copy(update={"comparison": comparison}))
        parse(page)
        assert not re.search(r"\bnan\b", page)
        assert broken.group in page


def test_equal_models_are_drawn(report: VerificationReport, samples: Samples) -> None:
    flat = np.full(504, 92.0, np.float32)
    parse(html(report, pairs({"fp32": flat, "int8": flat}, samples)))


def test_a_classifier_gets_agreement_by_class(report: VerificationReport, tmp_path: Path) -> None:
    labels = np.array([0, 0, 1, 1, 2])
    scores = np.eye(3, dtype=np.float32)
    predictions = {"fp32": scores[[0, 0, 1, 1, 2]], "int8": scores[[0, 1, 1, 1, 0]]}
    samples = Samples("pictures", {"x": np.zeros((5, 1))}, labels)
    rows = agreement(predictions, samples)
    assert [(row.label, row.fp32_right, row.int8_right, row.same) for row in rows] == [
        ("0", 2, 1, 1),
        ("1", 2, 2, 2),
        ("2", 1, 0, 0),
    ]
    assert pairs(predictions, samples) is None
    write_reports(report, predictions, samples, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Agreement by class" in text
    assert "Bland" not in text


def test_rows_of_every_section_fit_its_columns(
    report: VerificationReport, samples: Samples, predictions: dict[str, np.ndarray]
) -> None:
    made = sections(report, pairs(predictions, samples))
    assert [section.id for section in made] == [
        "gates", "metrics", "predictions", "agreement", "groups", "layers", "ranges", "coverage",
        "executed", "float", "audit", "sizes", "calibration", "passport", "parity", "findings",
        "files",
    ]  # fmt: skip
    for section in made:
        for table in section.tables:
            assert {len(row.cells) for row in table.rows} == {len(table.columns)}


def test_what_a_compiler_decides_is_given_for_information_and_without_a_remedy(
    report: VerificationReport, samples: Samples
) -> None:
    node = NodeExecution(
        node="c", op_type="Conv", runs="float", executed_as="Conv", elsewhere="integer",
        expected="float", macs=1, cause="int8 activations on x86", why="why", do="convert",
    )  # fmt: skip
    report = report.model_copy(update={"executions": (node,)})
    judged = report.comparison.model_copy(update={"judged_as": "runtime"})
    for_runtime = report.model_copy(update={"comparison": judged})
    title, cells = {}, {}
    for key, made in (("graph", report), ("runtime", for_runtime)):
        (section,) = (s for s in sections(made, None) if s.id == "executed")
        title[key], cells[key] = section.title, section.tables[-1].rows[0].cells
    assert title["graph"] == "On this machine's ONNX Runtime, for information"
    assert title["runtime"] == "Executed on integers"
    assert "convert" in cells["runtime"]
    assert cells["graph"] == cells["runtime"][:-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (-0.07613, "−0.07613"),
        (9.99996, "10.00"),
        (312_455.0, "312\N{NARROW NO-BREAK SPACE}500"),
        (1.2e-5, "1.200·10⁻⁵"),
        (8.5e9, "8.500·10⁹"),
    ],
)
def test_numbers_have_four_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    shares = [percent(value) for value in (0.0, 1e-5, 0.5, 0.99999, 1.0)]
    assert shares == ["0.0", "< 0.1", "50.0", "> 99.9", "100.0"]


@pytest.mark.parametrize(
    ("low", "high"), [(45.0, 155.0), (-0.004, 0.011), (1e6, 1.1e6), (-3.0, 3.0)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low <= found[0] < found[-1] <= high
    assert len(set(np.diff(found).round(9))) == 1
