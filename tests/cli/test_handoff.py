"""``onnxq handoff`` on a plain file whose broken rule is let pass by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from handoff.qdq_models import images, quantized_net
from onnxruntime.quantization import QuantType

from cli.test_shell import shell
from onnxq.artifacts import Bundle
from onnxq.store import load_record

__all__ = ["shell"]

WAIVED, REASON = "stm32n6.activation-type", "the device's compiler was patched"


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory) -> Path:
    """uint8 activations, which stm32n6 does not take."""
    return quantized_net(tmp_path_factory.mktemp("unsigned") / "net", QuantType.QUInt8)


@pytest.fixture
def packed(unsigned, shell, tmp_path, monkeypatch):
    """Hand off with these flags, on data in the current folder."""
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", image=images(12))

    def pack(*flags: str) -> tuple[int, dict]:
        code, out, _ = shell(
            "handoff", unsigned, "--data", "data.npz", "--target", "stm32n6",
            "--allow-unverified", "-o", "out", *flags, "--json",
        )  # fmt: skip
        return code, json.loads(out)

    return pack


def test_a_waived_rule_lets_the_file_pass_and_stands_in_the_bundle(packed):
    code, refused = packed()
    assert code == 1
    assert WAIVED in refused["error"]["what"]
    assert not Path("out").exists()
    code, _ = packed("--waive", f"{WAIVED}={REASON}")
    assert code == 0
    bundle = load_record(Bundle, Path("out/bundle.json"))
    waived = {r.rule: r.waived for r in bundle.rules if r.severity == "error"}
    assert waived == {WAIVED: REASON}
    assert REASON in Path("out/README.md").read_text()


def test_a_bundle_with_a_waived_rule_is_made_again(packed, shell):
    assert packed("--waive", f"{WAIVED}={REASON}")[0] == 0
    code, out, err = shell("rebuild", "out")
    assert code == 0, out + err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (f"{WAIVED}", "not of the form NAME=REASON"),
        (f"{WAIVED}= ", "not of the form NAME=REASON"),
        ("stm32n6.activation-typ=x", f"did you mean `{WAIVED}`"),
    ],
)
def test_a_waiver_without_a_reason_or_of_no_rule_is_refused(packed, flag, said):
    code, told = packed("--waive", flag)
    assert code == 2
    assert said in told["error"]["what"]
    assert told["error"]["where"] == "--waive"


def test_a_recipe_keeps_its_waivers_itself(shell, tmp_path):
    (tmp_path / "r.yaml").write_text("name: x\n")
    code, out, _ = shell("handoff", tmp_path / "r.yaml", "--waive", f"{WAIVED}=x", "--json")
    assert code == 2
    assert "`--waive` is for plain files only" in json.loads(out)["error"]["what"]
