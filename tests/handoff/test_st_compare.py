"""Rule 20 of the STM32N6: what the compiler did is what was planned, or it is said what is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from handoff.records import report_of, samples
from handoff.test_st_reports import GENERATE, INFO, VALIDATE
from onnxq.artifacts import LayerDistance
from onnxq.cli import main
from onnxq.handoff.st_compare import departures, plan_of
from onnxq.handoff.st_reports import parse_generate, parse_info, parse_validate
from onnxq.handoff.stage import hand_off
from onnxq.store import save_record
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
    (part / "bundle.json").replace(whole / "bundle.json")
    top = json.loads((part / "contract.json").read_text()) | {"model": "pipeline.json"}
    write(whole, "contract.json", json.dumps(top))
    report = write(tmp_path, "r.txt", GENERATE)
    assert run(capsys, part, report)[0] == 0
    code, result = run(capsys, whole, report)
    assert code == 2
    assert str(part) in result["error"]["do"]


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
