"""Which tensor of what a network returns are the logits."""

import pytest
import torch
from structured_networks import FORMS, Structured, images

from data.errors import UserError
from model_compound_scaling.networks.logits import Logits, logits_of, tensors


def structured(form: str) -> Structured:
    torch.manual_seed(0)
    return Structured(form, 5).eval()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_logits_in_every_form(form, count):
    expected = structured("plain")(images(count))
    assert torch.equal(logits_of(structured(form)(images(count)), count, 5), expected)
    assert torch.equal(Logits(structured(form), 5)(images(count)), expected)


def test_shape_decides_then_the_name_then_the_order():
    a, b, c = torch.zeros(4, 3), torch.ones(4, 3), torch.zeros(4, 7)
    assert logits_of((c, a, b), 4, 3) is a
    assert logits_of({"x": a, "logits": b}, 4, 3) is b
    assert logits_of({"logits": c, "x": a}, 4, 3) is a
    assert logits_of([c, a], 4) is c
    assert logits_of((torch.zeros(4, 3, 2), b[None], a), 4, 3) is a  # the very shape first
    # as many images as classes, one image, one class
    assert logits_of((torch.zeros(3, 3, 3), torch.ones(3, 3)), 3, 3).sum() == 9
    assert logits_of(torch.ones(1, 1, 3), 1, 3).shape == (1, 3)
    assert logits_of(torch.ones(4, 1, 1, 1), 4, 1).shape == (4, 1)


@pytest.mark.parametrize(
    "output",
    [None, "logits", (), torch.zeros(3, 4), torch.zeros(12), torch.zeros(4, 3, 2), {"a": [None]}],
)
def test_none_is_said_in_a_line(output):
    with pytest.raises(UserError, match=r"maps a batch of 4 to .*, not to 3 classes") as caught:
        logits_of(output, 4, 3)
    assert "\n" not in str(caught.value)


def test_tensors_of_nested_structures():
    found = tensors({"b": [torch.tensor(1), {"out": torch.tensor(0), "c": (torch.tensor(2),)}]})
    assert sorted(map(int, found)) == [0, 1, 2]
