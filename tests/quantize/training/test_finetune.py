"""Fine-tuning: what it learns, when, how fast; what is kept; and what stops it."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from pydantic import ValidationError

from onnxq.artifacts import Interval
from onnxq.errors import DataError, QuantizationError, UsageError
from onnxq.graph import constant_of, load_model
from onnxq.pair_sums import at_risk, has_pair_sums, reduction_rows
from onnxq.progress import silent
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.refined import refined
from onnxq.quantize.training import loop
from onnxq.quantize.training.finetune import Finetuned, finetune
from onnxq.quantize.training.graph import TrainingGraph
from onnxq.quantize.training.means import Means
from onnxq.quantize.training.schedule import learning_rate_at, order_of, steps_of_epoch
from onnxq.quantize.training.student import Student
from onnxq.recipe import FinetuneSection, QuantizeSection
from onnxq.samples import Samples
from tests.quantize.nets import Net, residual, weights
from tests.quantize.test_steps import draft_of, evidence_of


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return residual(tmp_path_factory.mktemp("residual"), inputs={"x": weights(32, 3, 8, 8, size=1)})


@pytest.fixture(scope="module")
def draft(net) -> Draft:
    """Plain rounding, and biases that are off: there is something to gain."""
    draft = draft_of(net, "ort-x86")
    student = Student(draft, ["biases"])
    for offset in student.offsets():
        offset.data.fill_(3.0)
    return student.settle()


def tuned(net: Net, draft: Draft, means: Means | None = None, **options: object) -> Finetuned:
    section = FinetuneSection(**{"epochs": 2, "learning_rate": 0.01, **options})
    return finetune(draft, evidence_of(net), section, means)


def constants(draft: Draft) -> dict[str, bytes]:
    graph = draft.quantized().graph
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in graph.initializer}


def test_a_better_file_is_kept_and_the_record_says_how_much_better(net, draft):
    found = tuned(net, draft, learning_rate=0.1, batch=4)
    record = found.record
    assert record.is_kept
    assert record.worse_by is not None
    assert record.worse_by.high < 0
    assert record.after < record.before
    assert record.best_epoch > 0
    assert constants(found.draft) != constants(draft)
    assert "held-back runs" in record.line


def test_no_better_than_before_is_not_kept(net, draft):
    found = tuned(net, draft, epochs=1, learning_rate=1e-9)
    assert not found.record.is_kept
    assert found.draft is draft
    assert "undone" in found.record.line


@pytest.mark.slow
def test_runs_held_back_are_never_trained_on(net, draft, monkeypatch):
    seen = {}

    def spy(fabric, job, progress):
        seen["job"] = job
        return train(fabric, job, progress)

    train = loop.train
    monkeypatch.setattr("onnxq.quantize.training.finetune.train", spy)
    own = Samples("own", {"x": np.asarray(net.samples.inputs["x"])[::-1].copy()})
    for means in (None, Means(training=own)):
        tuned(net, draft, means, epochs=1)
        lessons = seen["job"].lessons
        parts = [lessons.training.digests, lessons.choosing.digests, lessons.judging.digests]
        assert all(parts)
        assert len(frozenset.union(*parts)) == sum(map(len, parts)) == len(net.samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"epochs": 3}, "epochs"),
        ({"learning_rate": 0.03}, "learning_rate"),
        ({"warm_up": 1}, "warm_up"),
        ({"freeze": 2}, "freeze"),
        ({"seed": 1}, "seed"),
        ({"batch": 8}, "batch"),
        ({"clip": 1e-9}, "clip"),
        ({"learn": ["weights"]}, "learn"),
    ],
)
def test_every_option_changes_the_record_and_the_run(net, draft, change, what):
    one, other = (tuned(net, draft, **options).record for options in ({}, change))
    assert one.options[what] != other.options[what]
    assert [e.loss for e in one.epochs] != [e.loss for e in other.epochs] or what == "clip"
    assert [e.chosen for e in one.epochs] != [e.chosen for e in other.epochs]


@pytest.mark.slow
def test_nothing_is_rounded_in_the_warm_up_and_scales_stay_from_freeze_on(net, draft, monkeypatch):
    moments = []
    step = loop._Training._step

    def spy(self, *arguments, **options):
        before = [p.detach().clone() for p in self.student.offsets(["scales"])]
        found = step(self, *arguments, **options)
        after = self.student.offsets(["scales"])
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        moments.append((options["is_rounded"], moved, found[0]))
        return found

    monkeypatch.setattr(loop._Training, "_step", spy)
    fresh = draft_of(net, "ort-x86")
    record = tuned(net, fresh, epochs=3, warm_up=1, freeze=3).record
    each = len(moments) // 3
    by_epoch = [moments[i * each : (i + 1) * each] for i in range(3)]
    assert [{rounded for rounded, _, _ in e} for e in by_epoch] == [{False}, {True}, {True}]
    assert [{moved for _, moved, _ in e} for e in by_epoch] == [{False}, {True}, {False}]
    assert by_epoch[0][0][2] < 1e-6  # the float graph is FP32's own
    assert [e.is_rounded for e in record.epochs] == [False, True, True]
    assert [e.scales_learn for e in record.epochs] == [False, True, False]


def test_the_learning_rate_ends_with_the_last_of_all_steps(net, draft, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    record = tuned(net, draft, epochs=2, batch=8, learning_rate=0.02).record
    assert len(rates) == record.steps == 2 * 3
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.02)
    judge = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    expected = []
    for _ in range(6):
        expected.append(judge.get_last_lr()[0])
        optimizer.step()
        judge.step()
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_the_order_is_that_of_seed_and_epoch_and_holds_every_run():
    order = order_of(2, 7, 10, 4)
    assert order.shape == (steps_of_epoch(10, 4), 4) == (3, 4)
    assert set(order.ravel()) == set(range(10))
    np.testing.assert_array_equal(order, order_of(2, 7, 10, 4))
    assert not np.array_equal(order, order_of(3, 7, 10, 4))
    assert learning_rate_at(0, 5, 0.1) == 0.1


def test_a_weight_moves_by_about_the_learning_rate_in_steps_of_its_grid(net, draft):
    student = Student(draft, ["weights", "biases", "scales"])
    optimizer = torch.optim.AdamW(student.offsets(), lr=0.01)
    x = torch.from_numpy(np.array(net.samples.inputs["x"][:8]))
    student({"x": x})["y"].square().mean().backward()
    optimizer.step()
    student.place()
    start = TrainingGraph(draft)
    for name, weight in student.graph.weights.items():
        moved = (weight - start.weights[name]) / student.graph.weight_scales[name]
        assert float(moved.detach().abs().max()) == pytest.approx(0.01, rel=1e-3)


class KilledError(Exception):
    """As if the process had been killed."""


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_bits(net, draft, tmp_path, monkeypatch):
    whole = tuned(net, draft, Means(kept=tmp_path / "whole"), epochs=3)
    epoch = loop._Training._epoch

    def die(self, number):
        if number == 3:
            raise KilledError
        return epoch(self, number)

    monkeypatch.setattr(loop._Training, "_epoch", die)
    with pytest.raises(KilledError):
        tuned(net, draft, Means(kept=tmp_path / "killed"), epochs=3)
    state = json.loads((tmp_path / "killed" / "state.json").read_text())
    assert len(state["epochs"]) == 2
    done = []

    def count(self, number):
        done.append(number)
        return epoch(self, number)

    monkeypatch.setattr(loop._Training, "_epoch", count)
    resumed = tuned(net, draft, Means(kept=tmp_path / "killed"), epochs=3)
    assert done == [3]
    assert resumed.record == whole.record
    assert constants(resumed.draft) == constants(whole.draft)


@pytest.mark.slow
def test_a_state_of_another_training_is_not_gone_on_with(net, draft, tmp_path):
    means = Means(kept=tmp_path)
    tuned(net, draft, means, epochs=2, seed=1)
    fresh, after = (tuned(net, draft, m, epochs=2, seed=2).record for m in (None, means))
    assert fresh == after


def test_a_loss_that_is_no_number_stops_and_names_epoch_step_and_layer(
    net, draft, tmp_path, monkeypatch
):
    step = loop._Training._step

    def spoil(self, together, where, **options):
        if "epoch 2, step 2" in where:
            self.student._learnt[1].offset.data.fill_(math.nan)
        return step(self, together, where, **options)

    monkeypatch.setattr(loop._Training, "_step", spoil)
    with pytest.raises(QuantizationError, match="layer `conv_2`") as caught:
        tuned(net, draft, Means(kept=tmp_path), batch=8)
    assert "epoch 2, step 2 of 3" in caught.value.where
    assert "kept in" in str(caught.value)
    assert len(json.loads((tmp_path / "state.json").read_text())["epochs"]) == 1


def test_a_task_loss_without_labels_is_refused(net, draft):
    with pytest.raises(DataError, match="has no labels"):
        tuned(net, draft, task_loss="mse")


def test_more_devices_than_there_are_are_refused(net, draft):
    with pytest.raises(UsageError, match="1000 devices are asked for"):
        tuned(net, draft, devices=1000)


@pytest.mark.parametrize(
    "options",
    [
        {"warm_up": 10},
        {"freeze": 11},
        {"freeze": 3, "warm_up": 2},
        {"learn": []},
        {"distill": {"outputs": 0}},
        {"task_loss": "cross-entrpy"},
        {"task_weight": 2.0},
        {"learn": ["scales"], "warm_up": 1},
        {"epochs": 0},
        {"learning_rate": 0},
    ],
)
def test_options_that_contradict_one_another_are_refused(options):
    with pytest.raises(ValidationError):
        FinetuneSection(**options)


def test_too_few_runs_to_judge_by_are_refused(net, draft):
    few = Evidence(load_model(net.path), net.samples.take(np.arange(15)), 1, silent)
    with pytest.raises(QuantizationError, match="finetune needs 16"):
        finetune(draft, few, FinetuneSection())


@pytest.mark.long
def test_two_processes_do_what_one_does_with_twice_the_batch(net, draft):
    options = {"epochs": 2, "learning_rate": 0.05}
    one = tuned(net, draft, **options, batch=8)
    two = tuned(net, draft, **options, batch=4, devices=2)
    assert one.record.runs_a_step == two.record.runs_a_step == 8
    assert two.record.devices == 2
    for alone, together in zip(one.record.epochs, two.record.epochs, strict=True):
        assert together.loss == pytest.approx(alone.loss, rel=1e-3)
        assert together.gradient == pytest.approx(alone.gradient, rel=1e-2)
        assert together.chosen == pytest.approx(alone.chosen, rel=0.05)


@pytest.mark.slow
def test_what_was_trained_is_what_ships_code_for_code(net, draft):
    section = QuantizeSection(
        steps=("finetune",), finetune={"epochs": 2, "batch": 4, "learning_rate": 0.1}
    )
    found = refined(draft, evidence_of(net), section)
    assert found.finetuning is not None
    assert found.finetuning.is_kept
    assert found.round_trip is not None
    assert found.round_trip.is_proven
    assert found.round_trip.codes > 1000
    assert found.lines == (found.finetuning.line,)


@pytest.mark.slow
def test_a_file_that_is_not_what_was_trained_is_an_error(net, draft, monkeypatch):
    settle = Student.settle

    def other(self):
        settled = settle(self)
        bias = settled.graph.graph.initializers["b3"]
        bias.const_value = ir.tensor(constant_of(bias) * np.float32(1.5), name="b3")
        return settled

    section = QuantizeSection(
        steps=("finetune",), finetune={"epochs": 2, "batch": 4, "learning_rate": 0.1}
    )
    train = loop.train
    monkeypatch.setattr(
        "onnxq.quantize.training.finetune.paired_interval",
        lambda *_: Interval(low=-2, high=-1, method="planted", units="samples", count=2),
    )

    def then_spoil(*arguments):
        trained = train(*arguments)
        monkeypatch.setattr(Student, "settle", other)
        return trained

    monkeypatch.setattr("onnxq.quantize.training.finetune.train", then_spoil)
    with pytest.raises(QuantizationError, match="constants differ"):
        refined(draft, evidence_of(net), section)


def labelled(net: Net, draft: Draft, labels: np.ndarray) -> Evidence:
    samples = Samples("labelled", net.samples.inputs, labels=labels)
    return Evidence(load_model(net.path), samples, 1, silent)


@pytest.mark.slow
def test_labels_teach_what_fp32_does_not_know(net, draft):
    labels = np.random.default_rng(0).integers(0, 3, len(net.samples)) + 4
    options = {"task_loss": "cross-entropy", "distill": {"outputs": 0.0}, "epochs": 3, "batch": 4}
    section = FinetuneSection(**options, learning_rate=0.2)
    record = finetune(draft, labelled(net, draft, labels), section).record
    assert record.loss_of == "loss of the labels"
    assert record.is_kept  # the classes 4 to 6 are likelier than FP32 says
    wrong = labelled(net, draft, labels + 10)
    with pytest.raises(DataError, match="class numbers from 0"):
        finetune(draft, wrong, section)


@pytest.mark.slow
def test_a_loss_of_ones_own_is_called_with_outputs_and_labels(net, draft, tmp_path, monkeypatch):
    Path(tmp_path / "own_loss_for_a_test.py").write_text(
        "def loss(outputs, labels):\n    return (outputs['y'][:, 0] - labels).square().mean()\n"
    )
    labels = np.zeros(len(net.samples), np.float32)
    section = FinetuneSection(
        epochs=2, task_loss="own_loss_for_a_test:loss", distill={"outputs": 0.0},
        learning_rate=0.5, batch=4,
    )  # fmt: skip
    record = finetune(draft, labelled(net, draft, labels), section, Means(search=tmp_path)).record
    assert record.after < record.before


def test_on_targets_of_powers_of_two_scales_stay(net):
    draft = draft_of(net, "ort-x86")
    two = Draft(draft.graph, draft.plan, draft.target.model_copy(update={"power_of_two": True}))
    student = Student(two, ["weights", "scales"])
    assert not student.offsets(["scales"])
    assert "scales of activations" in student.stayed


def test_a_narrow_draft_stays_narrow(net):
    plain = draft_of(net, "ort-x86")
    student = Student(Draft(plain.graph, plain.plan, plain.target, narrow=True), ["weights"])
    free = Student(plain, ["weights"])
    for each in (student, free):
        for offset in each.offsets():
            offset.data.fill_(100.0)
    assert saturating(free.settle()) > saturating(plain)
    assert saturating(student.settle()) == saturating(plain)
    assert set(student.stayed) == {"conv_1", "gemm_1"}


def saturating(draft: Draft) -> int:
    """Channels whose sums of pairs could leave int16."""
    count = 0
    for node in draft.graph.graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        planned = draft.plan.weights.get(str(weight.name)) if weight is not None else None
        if planned is not None and has_pair_sums(node):
            array = constant_of(weight)
            steps = np.rint(array / planned.spread(array.ndim)).clip(-127, 127).astype(int)
            count += int(at_risk(reduction_rows(node, steps)).sum())
    return count
