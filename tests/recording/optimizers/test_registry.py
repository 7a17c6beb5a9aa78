"""The family that each optimizer class gets."""

from __future__ import annotations

import pytest
import torch

from tests.support.supported import CASES
from trustlens.optim import Lamb, Lars
from trustlens.recording.optimizers import family_of
from trustlens.recording.optimizers.registry import FAMILIES, UNKNOWN

KINDS = sorted({case.kind for case in CASES}, key=lambda kind: kind.__name__)


class InheritsStep(torch.optim.AdamW):
    pass


class OwnStep(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


class InheritsLamb(Lamb):
    pass


def of(kind):
    return family_of(kind([torch.nn.Parameter(torch.ones(2, 3))]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_optimizer_of_torch_has_a_family_of_its_name(kind):
    assert of(kind) is FAMILIES["torch", kind.__name__]
    assert of(kind).name == kind.__name__


def test_a_subclass_has_its_parents_family_only_with_its_parents_step():
    assert of(InheritsStep) is FAMILIES["torch", "AdamW"]
    assert of(OwnStep) is UNKNOWN
    assert of(InheritsLamb) is of(Lamb) is FAMILIES["trustlens", "Lamb"]
    assert of(Lars).name == "LARS"


def test_a_class_of_the_same_name_in_another_package_is_unknown():
    class Adam(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        def step(self, closure=None):
            pass

    assert of(Adam) is UNKNOWN
