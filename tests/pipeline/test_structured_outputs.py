"""Networks that return more than their logits, through all three scripts."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import call
from structured_networks import FORMS, Structured
from torchvision.models.googlenet import GoogLeNetOutputs

import run_compound_scaling
import run_quantization
import run_scoring
from data.errors import UserError
from model_compound_scaling.networks.logits import tensors as outputs_of
from model_compound_scaling.training.evaluation import require_fit
from model_compound_scaling.training.optimizers import make_sgd
from model_compound_scaling.training.step import TrainStep
from model_scoring.counting.scoring import score
from model_scoring.dead_channels.removal import thin

QUICK = ("features_first", "in_a_dataclass")
MODELS = [form if form in QUICK else pytest.param(form, marks=pytest.mark.slow) for form in FORMS]


def tensors(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def stages(images, tmp_path_factory):
    """form -> folder of the first two stages' results with that network, each made once."""
    made = {}

    def make(form):
        if form not in made:
            output, model = (
                tmp_path_factory.mktemp(form),
                ["--model", f"structured_networks:{form}"],
            )
            common = ["--data-path", str(images), "--batch-size", "8", "--no-cuda", *model]
            first = ["--dataset", "ImageFolder", "--image-size", "16", "--epochs", "1"]
            command = [*common, *first, "--lr", "0.01", "--output", str(output / "1")]
            assert run_compound_scaling.main(command) == 0
            source = ["--model-dict", str(output / "1" / "best_model.pt"), "--epochs", "1"]
            source += ["--retrain-epochs", "1", "--ini-c-divrs", "0.3", "--eval"]
            command = [*common, *source, "--lambda-max-divrs", "0.15", "--output", str(output)]
            assert run_quantization.main(command) == 0
            made[form] = output
        return made[form]

    return make


@pytest.mark.parametrize("form", MODELS)
def test_all_stages_train_and_evaluate_the_same_network(form, stages, images, tmp_path, capsys):
    plain, found = (stages(name) / "Ternary_best_acc.pt" for name in ("plain", form))
    expected, state = tensors(plain), tensors(found)
    assert all(torch.allclose(state[name], expected[name], atol=1e-6) for name in expected)
    said = []
    for name, path in (("plain", plain), (form, found)):
        files = [tmp_path / f"{name}{end}" for end in (".json", ".ec2t", ".pt")]
        flags = ["--eval", "--data-path", images, "--json", files[0], "--export", files[1]]
        flags += [
            "--thin",
            files[2],
            "--predict",
            images / "val",
            "--no-cuda",
            "--no-halfprecision",
        ]
        model = ["--t-model", path, "--model", f"structured_networks:{name}"]
        code, out, err = call(run_scoring.main, capsys, *model, *flags)
        assert code == 0, err
        shares = [line for line in out.splitlines() if line.endswith("%") and ".png" in line]
        assert len(shares) == 16
        said.append((shares, json.loads(files[0].read_text())["top1"]))
        again = ["--t-model", files[1], "--model", f"structured_networks:{name}"]
        assert call(run_scoring.main, capsys, *again)[0] == 0
    assert said[0] == said[1]


def test_without_logits_a_line(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(FORMS, "nothing", lambda f, g, y, a: {"features": f})
    command = ["--dataset", "ImageFolder", "--image-size", "16", "--no-cuda", "--batch-size", "8"]
    command += ["--data-path", images, "--output", tmp_path]
    command += ["--model", "structured_networks:nothing"]
    code, _, err = call(run_compound_scaling.main, capsys, *command)
    assert (code, err.count("\n")) == (2, 1) and "(1, 12), not to 2 classes" in err


@pytest.mark.parametrize("form", FORMS)
def test_all_that_is_returned_counts_and_stays(form):
    """Features that nobody reads are outputs: their channels are not dead, their costs count."""
    torch.manual_seed(0)
    network = Structured(form, 5).eval()
    network.second.weight.data[3], network.second.bias.data[3] = 0, 0
    features, maps, logits, auxiliary = (torch.zeros(2, n) for n in (12, 8, 5, 5))
    returned = [id(t) for t in outputs_of(FORMS[form](features, maps, logits, auxiliary))]
    result = score(network, (3, 8, 8))
    live = {
        r.name: c.live_out for r, c in zip(result.records, result.counts["strict"], strict=True)
    }
    assert live["head"] == 5 and (live["aux"] == 5) == (id(auxiliary) in returned)
    kept = thin(network, (3, 8, 8)).network.second.out_channels
    assert kept == (12 if id(features) in returned else 11)


def test_a_step_takes_the_logits_of_googlenet_s_outputs():
    def named(x):
        y = x.mean((2, 3)) @ weight
        return GoogLeNetOutputs(y, y.detach() + 1, None)

    weight = torch.nn.Parameter(torch.eye(3))
    network = torch.nn.ParameterList([weight])
    sgd = make_sgd(network, lr=0.1, momentum=0, weight_decay=0)
    step = TrainStep(named, network=network, optimizer=sgd, classes=3)
    loss, _ = step(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), seed=0, number=0)
    assert float(loss) == pytest.approx(torch.log(torch.tensor(3.0)).item())
    step.forward = lambda x: {"features": x}
    with pytest.raises(UserError, match="not to 3 classes"):
        step(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), seed=0, number=1)


class Narrowing(torch.nn.Module):
    """Its training alone needs 12 pixels, for an auxiliary head; and it counts its steps."""

    def __init__(self, num_classes):
        super().__init__()
        self.head, self.aux = torch.nn.Conv2d(3, num_classes, 8), torch.nn.Conv2d(3, 1, 12)
        self.norm, self.steps = torch.nn.BatchNorm2d(3), 0

    def forward(self, x):
        self.steps += 1
        x = self.norm(torch.nn.functional.dropout(x, 0.5, self.training))
        y = self.head(x).mean((2, 3))
        return (y, self.aux(x)) if self.training else y


def test_a_network_must_fit_its_images_in_training_too():
    torch.manual_seed(0)
    network, random = Narrowing(5), torch.random.get_rng_state()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    require_fit(network, SimpleNamespace(channels=3, image_size=12, classes=5))
    with pytest.raises(UserError, match=r"cannot take images of 3x8x8 in training .*image-size"):
        require_fit(network, SimpleNamespace(channels=3, image_size=8, classes=5))
    with pytest.raises(UserError, match=r"cannot take images of 3x7x7 \("):
        require_fit(network, SimpleNamespace(channels=3, image_size=7, classes=5))
    with pytest.raises(UserError, match="not to 4 classes"):
        require_fit(network, SimpleNamespace(channels=3, image_size=12, classes=4))
    assert network.training and network.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
