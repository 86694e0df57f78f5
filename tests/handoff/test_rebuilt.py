"""Two bundles compared, and why they may differ."""

import json

import pytest

from handoff.records import N6, samples
from onnxq.artifacts import Bundle, Ingredient, Origin
from onnxq.errors import StoreError
from onnxq.handoff.rebuilt import changes_since, compare_bundles
from onnxq.handoff.stage import hand_off
from onnxq.provenance import cpu_flags, provenance
from onnxq.store import load_record

ORIGIN = Origin(
    kind="file",
    source="eval.npz",
    target="stm32n6",
    ingredients=(Ingredient(what="samples", name="eval.npz", sha256="1"),),
    code_sha256="2",
)


@pytest.fixture
def two(nets, tmp_path):
    """Two bundles of the same, in different folders."""
    for name in ("one", "other"):
        hand_off(
            model=nets["stm32n6"], target=N6, folder=tmp_path / name, samples=samples(2),
            origin=ORIGIN, recipe_text="name: small\n",
        )  # fmt: skip
    return tmp_path / "one", tmp_path / "other"


def differences(check):
    return {finding.where: finding.what for finding in check.differences}


def test_equal_bundles_have_no_difference(two):
    check = compare_bundles(*two, ())
    assert check.differences == ()
    assert check.files == len([file for file in two[0].rglob("*") if file.is_file()])
    assert (two[0] / "recipe.yaml").read_text() == "name: small\n"


def test_what_running_the_bundle_leaves_behind_is_no_difference(two):
    (two[0] / "outputs.npz").write_text("")
    assert compare_bundles(*two, ()).differences == ()


def test_changed_and_missing_files_are_named(two):
    one, other = two
    with (one / "contract.h").open("a") as file:
        file.write("/* by hand */")
    (one / "self_test.c").unlink()
    (other / "README.md").unlink()
    found = differences(compare_bundles(one, other, ()))
    assert set(found) == {"contract.h", "self_test.c", "README.md"}
    assert "was changed after the hand-off; differs: " in found["contract.h"]
    assert found["self_test.c"] == "is missing, and is made again"
    assert found["README.md"] == "is not made again"


def test_of_a_record_the_differing_keys_are_named(two):
    one, other = two
    facts = json.loads((other / "contract.json").read_text())
    facts["inputs"][0]["quantization"]["scale"] = 0.5
    (other / "contract.json").write_text(json.dumps(facts))
    found = differences(compare_bundles(one, other, ()))
    assert found == {"contract.json": "differs in inputs.0.quantization.scale"}


def test_the_first_differing_byte_is_named_where_sizes_agree(two):
    one, other = two
    changed = bytearray((other / "net_int8.onnx").read_bytes())
    changed[100] ^= 1
    (other / "net_int8.onnx").write_bytes(changed)
    assert differences(compare_bundles(one, other, ())) == {
        "net_int8.onnx": "differs from byte 100 on"
    }


def test_versions_processor_and_ingredients_are_reasons(two):
    bundle = load_record(Bundle, two[0] / "bundle.json")
    now = provenance({})
    assert changes_since(bundle, now, ORIGIN) == ()
    packages = now.packages | {"onnxruntime": "1.2.3"}
    del packages["numpy"]
    then = now.model_copy(update={"packages": packages, "cpu_flags": ("sparc",), "machine": "Sun"})
    again = ORIGIN.model_copy(
        update={
            "ingredients": (ORIGIN.ingredients[0].model_copy(update={"sha256": "3"}),),
            "code_sha256": "4",
        }
    )
    reasons = changes_since(bundle.model_copy(update={"provenance": then}), now, again)
    told = {reason.where: reason.what for reason in reasons}
    assert told == {
        "numpy": f"absent then, {now.packages['numpy']} now",
        "onnxruntime": f"1.2.3 then, {now.packages['onnxruntime']} now",
        "processor": f"sparc then, {' '.join(cpu_flags())} now",
        "machine": f"Sun then, {now.machine} now",
        "onnxq": "its own code changed within this version",
        "samples `eval.npz`": "is not what it was then",
    }


def test_a_folder_without_checksums_is_no_bundle(tmp_path, two):
    with pytest.raises(StoreError, match="SHA256SUMS"):
        compare_bundles(tmp_path, two[0], ())
