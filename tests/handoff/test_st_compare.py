"""Rule 20 of the STM32N6: what the compiler did is what was planned, or it is said what is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from handoff.dumps import manifest_of
from handoff.records import report_of, samples
from handoff.test_st_reports import GENERATE, INFO, VALIDATE
from onnxq.artifacts import LayerDistance
from onnxq.cli import main
from onnxq.errors import StaleRecordError
from onnxq.handoff.contract import Contract
from onnxq.handoff.st_compare import departures, plan_of
from onnxq.handoff.st_reports import parse_generate, parse_info, parse_validate
from onnxq.handoff.st_values import refuse_another_model
from onnxq.handoff.stage import hand_off
from onnxq.store import load_record, save_record
from onnxq.target import load_target

N6 = load_target("stm32n6")


@pytest.fixture(scope="module")
def plan(nets):
    return plan_of(nets["stm32n6"], N6)


@pytest.fixture(scope="module")
def bundle(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans") / "bundle"
    hand_off(
        model=nets["stm32n6"], target=N6, folder=folder, samples=samples(), allow_unverified=True
    )
    return folder


def with_software(operation):
    text = GENERATE.replace("of which 0", "of which 1")
    return text.replace("epoch 3       HW", f"epoch 3      -SW-   ( {operation} )")


def found(plan, text):
    return departures(plan, parse_generate(text, "network_generate_report.txt"))


def test_a_report_as_planned_departs_in_nothing(plan):
    assert plan.software == frozenset()
    assert found(plan, GENERATE) == ()
    assert departures(plan, parse_info(INFO, "c.json")) == ()
    assert departures(plan, parse_validate(VALIDATE, "v.txt")) == ()


def test_a_software_epoch_of_a_node_planned_for_the_npu_is_named(plan):
    (departure,) = found(plan, with_software("GlobalAveragePool"))
    assert departure.where == "epoch 3"
    assert "a `GlobalAveragePool`" in departure.what
    assert "0 of these 1 in software" in departure.what
    assert departure.do


def test_the_node_itself_is_named_where_the_report_names_it(plan):
    name = next(name for name, op_type in plan.operators.items() if op_type == "Gemm")
    (departure,) = found(plan, with_software(f"Gemm {name}"))
    assert f"`{name}` (Gemm), planned for the NPU" in departure.what


def test_a_software_epoch_of_what_the_graph_does_not_hold_is_told(plan):
    (departure,) = found(plan, with_software("Identity"))
    assert "`Identity`, which the graph does not hold" in departure.what


def test_software_that_was_planned_is_no_departure(plan):
    name = next(name for name, op_type in plan.operators.items() if op_type == "Gemm")
    soft = replace(plan, software=frozenset({name}))
    assert found(soft, with_software("Gemm")) == ()
    assert found(soft, with_software("QuantizeLinear")) == ()
    assert len(found(plan, with_software("QuantizeLinear"))) == 1
    assert found(replace(plan, float_edges=True), with_software("QuantizeLinear")) == ()


def test_bytes_in_external_ram_that_were_not_planned_are_told(plan):
    line = next(line for line in GENERATE.splitlines() if "hyperRAM" in line)
    (departure,) = found(plan, GENERATE.replace(line, line.replace("0  B /", "2.000 MB /", 1)))
    assert departure.where == "hyperRAM"
    assert "2,097,152 bytes lie in external RAM" in departure.what
    spilled = plan.memory.model_copy(update={"external_bytes": 1})
    changed = GENERATE.replace(line, line.replace("0  B /", "2.000 MB /", 1))
    assert found(replace(plan, memory=spilled), changed) == ()


def test_c_info_tells_of_external_ram_too(plan):
    text = INFO.replace('"mempool": "npuRAM5"', '"mempool": "xSPI1"', 1)
    (departure,) = departures(plan, parse_info(text, "c.json"))
    assert "external RAM" in departure.what


def test_a_pool_that_holds_more_than_it_can_is_told(plan):
    (departure,) = found(plan, GENERATE.replace("0.594 kB /", "500.000 kB /"))
    assert departure.where == "npuRAM5"
    assert "holds 512,000 bytes and has 458,752" in departure.what


@pytest.mark.parametrize(
    ("pool", "said"), [("cpuRAM1", "application's memory"), ("tcmRAM", "does not know")]
)
def test_bytes_in_memory_that_is_not_the_networks_are_told(plan, pool, said):
    (departure,) = found(plan, GENERATE.replace("npuRAM5 ", f"{pool} "))
    assert said in departure.what


@pytest.mark.parametrize("version", ["2.2.0-123", "4.0.11", "4.1.0-1"])
def test_another_version_of_the_tool_is_told(plan, version):
    (departure,) = found(plan, GENERATE.replace("4.0.1-20581", version))
    assert f"is of ST Edge AI Core {version}; the bundle was checked for 4.0.1" in departure.what
    assert "stm32n6@2.2" in departure.do


def test_a_report_without_a_version_is_not_taken_for_the_right_one(plan):
    (departure,) = found(plan, GENERATE.replace("ST Edge AI Core v4.0.1-20581", ""))
    assert "names no version" in departure.what


@pytest.mark.parametrize("used", ["0.250 kB", "0  B"])
def test_fewer_activations_than_the_network_needs_are_told(plan, used):
    text = GENERATE.replace("activations:      0.594 kB\n", f"activations:      {used}\n")
    (departure,) = found(plan, text)
    assert departure.where == "activations"
    assert f"needs {plan.memory.band[0]:,} at least" in departure.what
    assert plan.memory.band[0] < 3 * 8 * 8 + 6 * 8 * 8 < plan.memory.band[1]  # image and `r`


@pytest.mark.parametrize("stored", ["0.100 kB", "6.000 kB"])
def test_weights_that_are_not_the_files_are_told(plan, stored):
    text = GENERATE.replace(
        "-- weights:      0.396 kB                  act",
        f"-- weights:      {stored}                  act",
    )
    (departure,) = found(plan, text)
    assert departure.where == "weights"
    assert "and the file has 277" in departure.what


def test_c_info_tells_of_memory_that_the_network_cannot_have(plan):
    text = INFO.replace("384", "38").replace("162", "16200")
    told = departures(plan, parse_info(text, "c.json"))
    assert [departure.where for departure in told] == ["activations", "weights"]


# --- the model ----------------------------------------------------------------------------------

IMAGE, SCORES = "int8(1x3x8x8), 192", "int8(1x4), 4 B"


@pytest.fixture(scope="module")
def told(bundle):
    return load_record(Contract, bundle / "contract.json")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("net_int8.onnx\ntype", "other.onnx\ntype", "it names other.onnx, not net_int8.onnx"),
        (IMAGE, "int8(1x3x9x9), 243", "inputs are int8.1x3x9x9., the contract's float32/int8/"),
        (IMAGE, "int16(1x3x8x8), 384", "inputs are int16"),
        (SCORES, "int8(1x5), 5 B", "outputs are int8.1x5."),
    ],
)
def test_a_generate_report_of_another_model_is_refused(told, old, new, said):
    assert old in GENERATE
    with pytest.raises(StaleRecordError, match=f"report of another model: .*{said}") as refused:
        refuse_another_model(parse_generate(GENERATE.replace(old, new), "r.txt"), told)
    assert refused.value.do


@pytest.mark.parametrize(
    "form",
    ["int8(1x3x8x8)", "f32(1x3x8x8)", "uint8(1x8x8x3)", "s8(1 x 8 x 8 x 3)", "int8(3x8x8)"],
)
def test_the_types_and_layouts_that_the_options_allow_are_the_same_model(told, form):
    text = GENERATE.replace("int8(1x3x8x8)", form)
    assert refuse_another_model(parse_generate(text, "r.txt"), told)


def test_a_report_with_another_number_of_inputs_is_refused(told):
    line = next(line for line in GENERATE.splitlines() if line.startswith("input 1/1"))
    two = "\n".join([line.replace("1/1", "1/2"), line.replace("1/1", "2/2")])
    with pytest.raises(StaleRecordError, match="inputs are"):
        refuse_another_model(parse_generate(GENERATE.replace(line, two), "r.txt"), told)


@pytest.mark.parametrize(
    ("old", "new"), [("   net_int8.onnx", "   C:\\nets\\n.onnx"), ("int8(1x4)", "int8(1x7)")]
)
def test_a_validate_report_of_another_model_is_refused(told, old, new):
    assert refuse_another_model(parse_validate(VALIDATE, "v.txt"), told)
    with pytest.raises(StaleRecordError, match="report of another model"):
        refuse_another_model(parse_validate(VALIDATE.replace(old, new), "v.txt"), told)


def test_c_info_that_names_another_file_is_refused(told):
    assert not refuse_another_model(parse_info(INFO, "c.json"), told)
    for name in ("net_int8.onnx", "/a folder/net_int8.onnx"):
        text = INFO.replace('"environment": {', f'"environment": {{"model": "{name}", ')
        assert refuse_another_model(parse_info(text, "c.json"), told)
    text = INFO.replace('"environment": {', '"environment": {"arguments": "-m x/other.onnx -O3", ')
    with pytest.raises(StaleRecordError, match=r"it names other\.onnx"):
        refuse_another_model(parse_info(text, "c.json"), told)


# --- the command --------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compare-st", *map(str, arguments), "--json"])
    return ended.value.code, json.loads(capsys.readouterr().out)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_the_command_ends_with_0_where_the_plan_held(bundle, tmp_path, capsys):
    reports = [
        write(tmp_path, "network_generate_report.txt", GENERATE),
        write(tmp_path, "network_c_info.json", INFO),
        write(tmp_path, "network_validate_report.txt", VALIDATE),
    ]
    code, result = run(capsys, bundle, *reports)
    assert code == result["exit_code"] == 0
    assert [report["file"] for report in result["reports"]] == [path.name for path in reports]


def test_the_command_ends_with_1_where_it_did_not(bundle, tmp_path, capsys):
    report = write(tmp_path, "r.txt", with_software("Softmax"))
    code, result = run(capsys, bundle, report)
    assert code == 1
    assert "Softmax" in result["departures"][0]["what"]


def test_the_command_ends_with_2_where_it_cannot_judge(bundle, tmp_path, capsys):
    assert run(capsys, bundle, write(tmp_path, "r.txt", "nothing"))[0] == 2
    code, result = run(capsys, tmp_path, write(tmp_path, "r.txt", GENERATE))
    assert code == 2
    assert "no bundle" in result["error"]["what"]


def test_a_part_is_judged_in_its_own_folder_and_the_whole_points_there(bundle, tmp_path, capsys):
    whole, part = tmp_path / "whole", tmp_path / "whole" / "Body"
    shutil.copytree(bundle, part)
    record = json.loads((part / "bundle.json").read_text())
    for file in (*record["files"], record["model"]):
        file["name"] = f"Body/{file['name']}"
    write(whole, "bundle.json", json.dumps(record))
    (part / "bundle.json").unlink()
    top = json.loads((part / "contract.json").read_text()) | {"model": "pipeline.json"}
    write(whole, "contract.json", json.dumps(top))
    shutil.copytree(part, whole / "ort-x86")  # the whole for another target is no part
    save_record(manifest_of(("Body", "Body/net_int8.onnx")), whole / "pipeline.json")
    report = write(tmp_path, "r.txt", GENERATE)
    assert run(capsys, part, report)[0] == 0
    code, result = run(capsys, whole, report)
    assert code == 2
    assert result["error"]["do"] == f"give the folder of that part: {part}"


def test_a_report_of_another_model_is_not_judged(bundle, tmp_path, capsys):
    report = write(tmp_path, "r.txt", GENERATE.replace("net_int8.onnx", "other.onnx"))
    code, result = run(capsys, bundle, report)
    assert (code, result["error"]["kind"]) == (2, "StaleRecordError")
    assert "report of another model" in result["error"]["what"]


def test_a_bundle_that_is_not_for_st_is_not_judged(nets, tmp_path, capsys):
    hand_off(
        model=nets["ort-x86"], target=load_target("ort-x86"), folder=tmp_path / "bundle",
        samples=samples(), allow_unverified=True,
    )  # fmt: skip
    code, result = run(capsys, tmp_path / "bundle", write(tmp_path, "r.txt", GENERATE))
    assert code == 2
    assert "handed off for ort-x86, which ST's tool does not compile" in result["error"]["what"]
    assert "stm32n6" in result["error"]["do"]


def test_a_report_that_names_no_model_is_said_to(bundle, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare-st", str(bundle), str(write(tmp_path, "c.json", INFO))])
    assert "names no model" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none.txt", "latin.txt"])
def test_a_report_that_cannot_be_read_says_what_to_do(bundle, tmp_path, capsys, name):
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xe9")
    code, result = run(capsys, bundle, tmp_path / name)
    assert code == 2
    assert "check the path" in result["error"]["do"]


def test_a_model_that_was_changed_after_the_hand_off_is_not_judged(bundle, tmp_path, capsys):
    other = shutil.copytree(bundle, tmp_path / "other")
    with (other / "net_int8.onnx").open("ab") as file:
        file.write(b"\0")
    code, result = run(capsys, other, write(tmp_path, "r.txt", GENERATE))
    assert (code, result["error"]["kind"]) == (2, "StaleRecordError")


def test_people_read_what_departs_and_what_to_do(bundle, tmp_path, capsys):
    report = write(tmp_path, "r.txt", with_software("Softmax"))
    with pytest.raises(SystemExit):
        main(["compare-st", str(bundle), str(report)])
    text = capsys.readouterr().out
    assert "6 epochs, 1 in software" in text
    assert "estimated for activations on chip: 576 bytes (ST's: 505 to 812)" in text
    assert "compiled with the profile onnxq@user_neuralart.json" in text
    assert "→" in text
    with pytest.raises(SystemExit):
        main(["compare-st", str(bundle), str(write(tmp_path, "v.txt", VALIDATE))])
    assert "ST: X-cross #1" in capsys.readouterr().out


def test_onnxqs_own_distances_stand_beside_those_of_validate(bundle, nets, tmp_path, capsys):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    row = LayerDistance(
        tensor="scores", node="n", op_type="Gemm", sqnr_db=40.0, rmse=0.25, mae=0.125, l2r=0.5,
        mean=0.0625, std=0.75, nse=0.875, cos=0.9375,
    )  # fmt: skip
    inner = row.model_copy(update={"tensor": "inner"})
    report = report_of(nets["stm32n6"], layers=(inner, row))
    (folder / "report").mkdir()
    save_record(report, folder / "report" / "report.json")
    validation = write(tmp_path, "v.txt", VALIDATE)
    assert run(capsys, folder, validation)[1]["own_metrics"] == [row.model_dump(mode="json")]
    with pytest.raises(SystemExit):
        main(["compare-st", str(folder), str(validation)])
    lines = capsys.readouterr().out.splitlines()
    metrics = {"rmse", "mae", "l2r", "mean", "std", "nse", "cos"}
    cells = [words for words in map(str.split, lines) if words and words[0] in metrics]
    assert cells == [
        ["rmse", "6.29e-05", "0.25"],
        ["mae", "8.6e-06", "0.125"],
        ["l2r", "0.000667", "0.5"],
        ["mean", "-2.1e-06", "0.0625"],
        ["std", "6.28e-05", "0.75"],
        ["nse", "0.999939", "0.875"],
        ["cos", "1", "0.9375"],
    ]
    assert any("ST: X-cross #1" in line and "onnxq: scores" in line for line in lines)
