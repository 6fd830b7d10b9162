import pytest
import torch

from persona_lens.errors import HookNeverFiredError, InvalidArgumentError, LayerOutOfRangeError
from persona_lens.models.hooks.applying import RowInterventions
from persona_lens.models.hooks.intervention import NOTHING, Intervention, check_steps
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.recording import ResidualRecorder
from persona_lens.models.hooks.sites import Site
from persona_lens.tensors.operations import Ablate, Add

ONES = Add(torch.ones(48), 1.0)


def test_each_row_gets_what_was_assigned_to_it():
    rows = RowInterventions([Site(1)])
    double = Add(torch.ones(48), 2.0)
    rows.assign([NOTHING, Intervention.of(1, ONES), Intervention.of(1, double, ONES)], torch.device("cpu"))
    ((name, hook),) = rows.hook_pairs()
    found = hook(torch.zeros(4, 1, 48), None)  # the fourth row is idle
    assert name == "blocks.1.hook_resid_post"
    assert found[:, 0, 0].tolist() == [0.0, 1.0, 3.0, 0.0]
    rows.assign([NOTHING, NOTHING], torch.device("cpu"))
    assert hook(torch.zeros(4, 1, 48), None) is None


def test_a_rows_order_and_repeats_hold_whatever_the_rows_beside_it():
    ablate = Ablate(torch.ones(48))
    orders = [(ONES, ablate), (ablate, ONES), (ONES, ONES, ablate, ONES)]
    rows = RowInterventions([Site(1)])
    rows.assign([Intervention.of(1, *order) for order in orders], torch.device("cpu"))
    ((_, hook),) = rows.hook_pairs()
    torch.testing.assert_close(hook(torch.zeros(3, 1, 48), None)[:, 0, 0], torch.tensor([0.0, 1.0, 1.0]))
    rows.assign([Intervention.of(1, ONES, ONES)], torch.device("cpu"))
    assert hook(torch.zeros(1, 1, 48), None)[0, 0, 0].item() == 2.0


def test_a_recorder_that_saw_no_pass_says_so(tiny_model):
    recorder = ResidualRecorder(3)
    recorder.expect(lambda residual, layer: residual[:, -1])
    with pytest.raises(HookNeverFiredError, match=r"\[0, 1, 2\]"):
        recorder.read()
    with attached(tiny_model, recorder.hook_pairs()):
        tiny_model(torch.tensor([[1, 2, 3]]))
    assert recorder.read().shape == (3, 1, 48)
    recorder.expect(lambda residual, layer: residual[:, -1])
    with pytest.raises(HookNeverFiredError):
        recorder.read()  # what was recorded before does not stand in for what was expected now


def test_hooks_leave_with_the_context_and_those_of_the_user_stay(tiny_model):
    point = tiny_model.hook_dict["blocks.0.hook_resid_post"]
    point.add_hook(lambda residual, hook: None)
    try:
        with pytest.raises(ZeroDivisionError), attached(tiny_model, [(point.name, lambda residual, hook: 1 / 0)]):
            tiny_model(torch.tensor([[1, 2, 3]]))
        assert len(point.fwd_hooks) == 1
    finally:
        tiny_model.reset_hooks()


def test_interventions_that_do_not_fit_are_refused():
    check_steps(Intervention.of(2, ONES).steps, 3, 48, 6, 8)
    with pytest.raises(LayerOutOfRangeError, match=r"\[0, 2\)"):
        check_steps(Intervention.of(2, ONES).steps, 2, 48, 6, 8)
    with pytest.raises(InvalidArgumentError, match="another model"):
        check_steps(Intervention.of(2, ONES).steps, 3, 64, 6, 8)
