"""Reports of ST's tool: read whole or refused. The fixtures follow what public reports show."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.errors import UsageError
from onnxq.handoff.st_reports import parse_generate, parse_info, parse_validate, read_report

FIXTURES = Path(__file__).parent / "fixtures" / "st"
GENERATE = (FIXTURES / "network_generate_report.txt").read_text()
INFO = (FIXTURES / "network_c_info.json").read_text()
VALIDATE = (FIXTURES / "network_validate_report.txt").read_text()


def test_a_generate_report_gives_version_format_epochs_and_pools():
    report = read_report(FIXTURES / "network_generate_report.txt")
    assert report.tool_version == "4.0.1-20581"
    assert report.model_format == "ss/sa per channel"
    assert report.profile == "onnxq@user_neuralart.json"
    assert [epoch.runs for epoch in report.epochs] == ["hardware"] * 6
    pools = {pool.pool: (pool.used_bytes, pool.size_bytes) for pool in report.pools}
    assert len(pools) == 8
    assert pools["cpuRAM2"] == (0, 1048576)
    assert pools["npuRAM5"] == (608, 458752)
    assert pools["hyperRAM"] == (0, 33554432)


def test_the_multiply_accumulates_are_read_where_a_report_counts_them():
    assert parse_generate(GENERATE, "r.txt").macc is None
    text = GENERATE.replace("model_fmt  ", "macc               :   336,136\nmodel_fmt  ", 1)
    assert parse_generate(text, "r.txt").macc == 336_136


def test_software_epochs_carry_what_runs_there():
    text = GENERATE.replace("of which 0", "of which 2")
    text = text.replace("epoch 3       HW", "epoch 3      -SW-   (     Softmax     )")
    text = text.replace("epoch 6       HW", "epoch 6      -SW-   ( ReduceMean )")
    epochs = parse_generate(text, "r.txt").epochs
    software = [(e.number, e.operation) for e in epochs if e.runs == "software"]
    assert software == [(3, "Softmax"), (6, "ReduceMean")]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("512  B", 512),
        ("1.500 kB", 1536),
        ("1.500 KiB", 1536),
        ("2.000 MB", 2 * 1024**2),
        ("1,024 B", 1024),
    ],
)
def test_units_count_in_1024(size, expected):
    text = GENERATE.replace("0.594 kB /", f"{size} /")
    pools = {pool.pool: pool.used_bytes for pool in parse_generate(text, "r.txt").pools}
    assert pools["npuRAM5"] == expected


def test_the_line_of_a_pool_that_cannot_be_read_is_no_empty_pool():
    with pytest.raises(UsageError, match=r"npuRAM5 .*cannot be read"):
        parse_generate(GENERATE.replace("0.594 kB /", "much /"), "r.txt")


@pytest.mark.parametrize("lines", [5, 25, 40])
def test_a_report_that_is_cut_off_is_refused(lines):
    with pytest.raises(UsageError, match="epochs"):
        parse_generate("\n".join(GENERATE.splitlines()[:-lines]), "r.txt")


def test_a_miscount_of_software_epochs_is_refused():
    with pytest.raises(UsageError, match=r"6 epochs \(1 in software\) and lists 6 \(0 in"):
        parse_generate(GENERATE.replace("of which 0", "of which 1"), "r.txt")


def test_the_summary_of_a_validation_gives_every_metric():
    (output,) = read_report(FIXTURES / "network_validate_report.txt").outputs
    assert output.output == "X-cross #1"
    assert output.acc is None
    assert (output.rmse, output.mae, output.l2r) == (0.0000629, 0.0000086, 0.000667)
    assert (output.mean, output.std) == (-0.0000021, 0.0000628)
    assert (output.nse, output.cos) == (0.999939, 1.0)


def test_lines_of_pairs_are_read_where_there_is_no_summary():
    line = "rmse=0.0000629 mae=0.0000086 l2r=0.000667 nse=0.999939 cos=1.000000"
    (output,) = parse_validate(line, "v.txt").outputs
    assert (output.rmse, output.nse, output.cos) == (0.0000629, 0.999939, 1.0)
    assert (output.mean, output.std) == (None, None)
    table = parse_validate(VALIDATE, "v.txt").outputs[0]
    pairs = parse_validate(VALIDATE.partition("Evaluation")[0], "v.txt").outputs[0]
    assert pairs.model_dump(exclude={"output"}) == table.model_dump(exclude={"output"})


def test_an_accuracy_in_percent_is_a_share():
    (output,) = parse_validate(VALIDATE.replace("n.a.   ", "97.50% "), "v.txt").outputs
    assert output.acc == 0.975


def test_c_info_gives_bytes_by_pool_and_cycles_by_epoch():
    report = read_report(FIXTURES / "network_c_info.json")
    assert (report.schema_version, report.tool_version) == ("2.0", "4.0.1-20581")
    assert {pool.pool: pool.used_bytes for pool in report.pools} == {
        "npuRAM5": 576,
        "octoFlash": 182,
    }
    assert [epoch.cycles for epoch in report.epochs] == [5120, 640, 320]
    assert report.buffers == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"json_schema_version": "1.0"}, "schema version `1.0`"),
        ({"buffers": None}, "no list of `buffers`"),
        ({"buffers": [{"name": "a", "size_bytes": 3}]}, "none of mempool"),
        ({"buffers": [{"mempool": "a", "size_bytes": "many"}]}, "`many` stands where"),
        ({"epochs": [{"mapping": "DSP"}]}, "runs on `DSP`"),
    ],
)
def test_json_of_another_form_is_refused_by_what_is_wrong_with_it(change, said):
    with pytest.raises(UsageError, match=said):
        parse_info(json.dumps(json.loads(INFO) | change), "c.json")


@pytest.mark.parametrize("text", ["", "hello", "{", "{}", "rmse=", "epoch 1 HW"])
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(UsageError):
        read_report(tmp_path / "r.txt")


@pytest.mark.parametrize("name", ["generate_report.txt", "validate_report.txt", "c_info.json"])
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 5000), length=st.integers(1, 400), filling=st.text(max_size=8))
def test_a_damaged_report_is_read_or_refused_and_nothing_else(
    tmp_path, name, start, length, filling
):
    text = (FIXTURES / f"network_{name}").read_text()
    (tmp_path / "r").write_text(text[:start] + filling + text[start + length :], encoding="utf-8")
    with contextlib.suppress(UsageError):
        assert read_report(tmp_path / "r").file == "r"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["nodes", "cycles", "mapping", "size", "pool", "name", "epochs"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["environment", "buffers", "epochs", "graphs"]), json_values, max_size=4
    )
)
def test_json_of_any_form_is_read_or_refused_and_nothing_else(changes):
    data = {key: value for key, value in json.loads(INFO).items() if key not in changes} | changes
    with contextlib.suppress(UsageError):
        assert parse_info(json.dumps(data), "c.json").schema_version == "2.0"


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path / "none.txt")
    (tmp_path / "r.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path / "r.txt")
