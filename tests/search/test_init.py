"""Starting from trained weights."""

import json

import pytest
import torch
import torchvision
from helpers import call, save_network, save_tree, ternary_micronet, with_activations

import run_compound_scaling
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import default_spec

FLAGS = "--dataset ImageFolder --image-size 32 --batch-size 8 --epochs 1 --no-cuda --workers 0"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Images of three classes."""
    return save_tree(tmp_path_factory.mktemp("three"), ("a", "b", "c"), train=6, val=4)


def train(capsys, images, output, *flags):
    common = (*FLAGS.split(), "--data-path", images, "--output", output)
    return call(run_compound_scaling.main, capsys, *common, *flags)


def parameters(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {k: v for k, v in state.items() if "running" not in k and "num_batches" not in k}


def test_a_network_of_ones_own_begins_with_its_weights_and_normalisation(
    trained, three, tmp_path, capsys
):
    source = trained / "best_model.pt"
    code, out, err = train(capsys, three, tmp_path, "--init", source, "--lr", 0)
    assert (code, err) == (0, "")
    assert "linear.weight and linear.bias begin anew, for other classes" in out
    before, after = parameters(source), parameters(tmp_path / "best_model.pt")
    new = {"linear.weight", "linear.bias"}
    assert all(torch.equal(after[key], before[key]) for key in before.keys() - new)
    assert len(after["linear.bias"]) == 3
    given, written = (
        torch.load(path, weights_only=True) for path in (source, tmp_path / "best_model.pt")
    )
    assert written["data"]["mean"] == given["data"]["mean"]
    assert written["network"] == given["network"] | {"num_classes": 3}
    config = json.loads((tmp_path / "cifar_micronet" / "config.json").read_text())
    assert config["init"] == str(source)


def test_the_classifier_is_kept_for_as_many_classes(trained, images, tmp_path, capsys):
    flags = ("--init", trained / "best_model.pt")
    code, out, _ = train(capsys, images, tmp_path, *flags, "--lr", 0)
    assert code == 0 and "anew" not in out
    after = parameters(tmp_path / "best_model.pt")
    assert all(torch.equal(after[k], v) for k, v in parameters(trained / "best_model.pt").items())
    assert train(capsys, images, tmp_path / "default", *flags)[0] == 0
    config = json.loads((tmp_path / "default" / "cifar_micronet" / "config.json").read_text())
    assert config["lr"] == 0.01


@pytest.mark.parametrize(
    ("model", "given", "network", "classifier"),
    [
        ("resnet20", None, lambda: build(default_spec("resnet20", 10)), "linear"),
        ("torchvision:shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5",
         torchvision.models.shufflenet_v2_x0_5, "fc"),
        pytest.param("efficientnet-lite0", None,
                     lambda: pytest.importorskip("timm").create_model("tf_efficientnet_lite0"),
                     "classifier.1", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_foreign_file(three, tmp_path, capsys, model, given, network, classifier):
    state = network().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "net.pt")
    named = ("--model", given) if given else ()
    code, out, err = train(
        capsys, three, tmp_path, "--init", tmp_path / "net.pt", "--lr", 0, *named
    )
    assert (code, err) == (0, "")
    assert f"{classifier}.weight and {classifier}.bias begin anew" in out
    after = parameters(tmp_path / "best_model.pt")
    same = [v for k, v in after.items() if not k.startswith(f"{classifier}.")]
    kept = [v for k, v in state.items() if not k.endswith(("running_mean", "running_var",
            "num_batches_tracked"))][: len(same)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(same, kept, strict=True))
    begun = after[f"{classifier}.weight"]  # torchvision's EfficientNet would begin with up to 0.58
    assert 0.5 * begun[0].numel() ** -0.5 < begun.abs().max() <= begun[0].numel() ** -0.5


def test_the_same_command_goes_on_and_another_file_is_another_run(
    trained, images, tmp_path, capsys
):
    flags = ("--init", trained / "best_model.pt")
    assert train(capsys, images, tmp_path, *flags)[0] == 0
    assert "already trained" in train(capsys, images, tmp_path, *flags)[1]
    code, _, err = train(capsys, images, tmp_path, "--model", "cifar_micronet", "--grid", 1, 1)
    assert code == 0 and not err  # in another folder
    other = tmp_path / "other.pt"
    other.write_bytes((trained / "best_model.pt").read_bytes())
    code, _, err = train(capsys, images, tmp_path, "--init", other)
    assert code == 2 and "init" in err


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "resnet20"], 5, "does not fit resnet20: layer1.1."),
        (["--grid", "1", "1"], 2, "--grid does not go with --init"),
        (["--phi", "1"], 2, "--phi does not go with --init"),
    ],
)
def test_another_architecture_is_one_line(trained, images, tmp_path, capsys, flags, code, said):
    output = tmp_path / "none"
    flags = ["--init", trained / "best_model.pt", *flags]
    found, _, err = train(capsys, images, output, *flags)
    assert found == code and said in err and len(err.splitlines()) == 1
    assert not output.exists()


def test_a_missing_file_is_one_line(images, tmp_path, capsys):
    code, _, err = train(capsys, images, tmp_path / "none", "--init", "nowhere.pt")
    assert code == 5 and "--init nowhere.pt" in err and len(err.splitlines()) == 1


def test_activations_of_few_bits_are_not_trained_here(images, tmp_path, capsys):
    file = save_network(tmp_path / "net.pt", *with_activations(ternary_micronet()))
    code, _, err = train(capsys, images, tmp_path / "none", "--init", file)
    assert code == 2 and "activations have few bits" in err and len(err.splitlines()) == 1
