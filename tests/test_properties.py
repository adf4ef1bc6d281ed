"""What must hold for every backbone and scheme: the ten properties, through the public face."""

import copy
import pickle
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from nets import FAMILIES, TINY, disturb, hooks, images, net, same, snapshot

import minica
from minica.recipe import classifier_names

SCHEMES = tuple(minica.SCHEMES)
pytestmark = pytest.mark.filterwarnings("ignore:.*of this backbone")

every = pytest.mark.parametrize("family", FAMILIES)
schemes = pytest.mark.parametrize("scheme", SCHEMES)
tiny = pytest.mark.parametrize("name", TINY)


def is_ours(key: str) -> bool:
    return "_adapter." in key


def is_head(model, key: str) -> bool:
    return key.startswith(tuple(f"{name}." for name in classifier_names(model)))


# 1, 4, 9 ------------------------------------------------------------------------------------------------------------------


@every
@schemes
def test_identity_keys_and_detach(family, scheme):
    model, x = net(family), images(family)
    before, expected, kind, own_hooks = snapshot(model), model(x), type(model), hooks(model)
    grads = {key: weight.requires_grad for key, weight in model.named_parameters()}
    next(model.parameters()).requires_grad_(False)  # a flag of the user's own must come back too
    grads[next(iter(grads))] = False

    returned = minica.adapt(model, scheme)
    assert returned is model and minica.adapters(model)
    assert torch.equal(model(x), expected), "identity start: the output is the backbone's, bit for bit"
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before), "no key of the backbone changed"
    assert all(is_ours(key) for key in after.keys() - before.keys())
    model.load_state_dict(before, strict=False)  # any checkpoint of the plain backbone still loads

    assert not torch.equal(disturb(model)(x), expected)
    model.load_state_dict(before, strict=False)
    assert minica.detach(model) is model
    assert type(model) is kind and same(model.state_dict(), before)
    assert torch.equal(model(x), expected)
    assert {key: weight.requires_grad for key, weight in model.named_parameters()} == grads
    assert hooks(model) == own_hooks
    assert vars(model).keys() == vars(net(family)).keys()


# 2 ------------------------------------------------------------------------------------------------------------------------


@every
@schemes
def test_frozen_is_frozen(family, scheme):
    model = minica.adapt(net(family), scheme, init="published")
    before = snapshot(model)
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=1e-3, weight_decay=0.1)
    for step in range(2):
        model.train()
        F.cross_entropy(model(images(family, 4)), torch.arange(4) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert step or all(m.training for m in [model, model.get_classifier()])
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved, "something trained"
    assert all(is_ours(key) or is_head(model, key) for key in moved), moved


# 3 ------------------------------------------------------------------------------------------------------------------------


def adapter_gradients(model, family):
    model.train()
    model.zero_grad()
    F.cross_entropy(model(images(family, 4)), torch.arange(4) % 5).backward()
    grads = {}
    for place, adapter in minica.adapters(model).items():
        grads |= {f"{place}.{key}": weight.grad for key, weight in adapter.named_parameters()}
    return grads


@every
@schemes
def test_everything_learns(family, scheme):
    model = minica.adapt(net(family), scheme, init="published")
    for key, grad in adapter_gradients(model, family).items():
        assert grad is not None and torch.isfinite(grad).all() and grad.abs().sum() > 0, key

    model = minica.adapt(net(family), scheme, init="identity")
    for key, grad in adapter_gradients(model, family).items():
        assert (grad.abs().sum() > 0) == key.endswith(("up.weight", "up.bias")), key
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.sub_(1e-2 * weight.grad.sign())
    for key, grad in adapter_gradients(model, family).items():
        assert grad.abs().sum() > 0, key


# 6 ------------------------------------------------------------------------------------------------------------------------


@every
@schemes
def test_round_trip(family, scheme, tmp_path):
    model = disturb(minica.adapt(net(family), scheme))
    expected = model.eval()(images(family))
    minica.save_adapter(model, tmp_path)
    fresh = net(family)
    assert minica.load_adapter(fresh, tmp_path) is fresh
    assert torch.equal(fresh(images(family)), expected)
    assert same(fresh.state_dict(), model.state_dict())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 4 * trained < size < 4 * trained + 200 * len(model.state_dict()), "adapters and head, nothing more"


# 7 ------------------------------------------------------------------------------------------------------------------------


@every
@schemes
def test_any_size_the_host_accepts(family, scheme):
    host = net(family)
    model = disturb(minica.adapt(net(family), scheme, init="published"))
    accepted = []
    for size in [(64, 96), (65, 97), (47, 50), (33, 33), (64, 64)]:
        x = images(family, 1, size)
        try:
            with torch.no_grad():
                plain = host(x)
        except (RuntimeError, AssertionError):
            continue  # an anti-alias pool floors what the shortcut rounds up; Swin's windows are fixed
        with torch.no_grad():
            adapted = model(x)
        assert adapted.shape == plain.shape and torch.isfinite(adapted).all() and not torch.equal(adapted, plain)
        accepted.append(size)
    assert len(accepted) >= (1 if family == "swin" else 2 if family == "anti-alias" else 5), accepted


# 8 ------------------------------------------------------------------------------------------------------------------------


@tiny
@schemes
def test_copies_use_their_own_adapters(name, scheme):
    model, x = disturb(minica.adapt(net(name), scheme)), images(name)
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
        with torch.no_grad():
            for adapter in minica.adapters(copied).values():
                adapter.alpha.zero_()
        assert not torch.equal(copied(x), expected)
        assert torch.equal(model(x), expected), "the original is untouched"
        minica.detach(copied)
        assert minica.adapters(model)


@tiny
@schemes
def test_memory_formats_and_precision(name, scheme):
    model, x = disturb(minica.adapt(net(name), scheme)), images(name)
    expected = model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16, "nothing promotes the feature maps to float32"
    assert F.cosine_similarity(half.float().flatten(), expected.flatten(), dim=0) > 0.99
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    double = minica.adapt(net(name).double(), scheme)
    assert {adapter.alpha.dtype for adapter in minica.adapters(double).values()} == {torch.float64}


@tiny
@schemes
def test_gradient_checkpointing(name, scheme):
    model = disturb(minica.adapt(net(name), scheme, init="published"))
    plain = adapter_gradients(model, name)
    model.set_grad_checkpointing(True)
    for key, grad in adapter_gradients(model, name).items():
        torch.testing.assert_close(grad, plain[key], rtol=1e-4, atol=1e-4)


@tiny
def test_compile(name):
    model, x = disturb(minica.adapt(net(name), "conv_parallel")), images(name)
    expected = model(x).detach()
    # The eager backend traces the whole network into one graph and runs that; code generation takes a minute a net.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    model.train()  # frozen norms go back to evaluation inside the compiled graph too
    before = snapshot(model)
    F.cross_entropy(compiled(x), torch.tensor([0, 1])).backward()
    assert same(snapshot(model), before)
    assert all(weight.grad is not None for weight in minica.adapters(model)[next(iter(minica.adapters(model)))].parameters())
    minica.switch(model, None)
    assert not torch.equal(compiled.eval()(x), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "scheme"), [*zip(TINY, ("conv_parallel", "residual_parallel", "conv_sequential"), strict=True)]
)
def test_onnx(name, scheme, tmp_path):
    import onnxruntime

    model, x = disturb(minica.adapt(net(name), scheme)), images(name, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-4)


def _ddp_worker(rank: int, rendezvous: str, name: str, scheme: str, result: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    model = disturb(minica.adapt(net(name), scheme, init="published")).train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    x, y = images(name, 4), torch.arange(4) % 5
    mine = slice(2 * rank, 2 * rank + 2)
    F.cross_entropy(parallel(x[mine]), y[mine]).backward()
    if rank == 0:
        torch.save({key: weight.grad for key, weight in model.named_parameters() if weight.requires_grad}, result)
    torch.distributed.destroy_process_group()


@tiny
def test_two_processes(name, tmp_path):
    scheme, result = "conv_parallel", tmp_path / "grads.pt"
    torch.multiprocessing.spawn(_ddp_worker, (str(tmp_path / "rendezvous"), name, scheme, str(result)), nprocs=2)
    model = disturb(minica.adapt(net(name), scheme, init="published")).train()
    F.cross_entropy(model(images(name, 4)), torch.arange(4) % 5).backward()
    for key, grad in torch.load(result, weights_only=True).items():
        torch.testing.assert_close(grad, model.get_parameter(key).grad, rtol=1e-3, atol=1e-5)


# 10 -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224"])
def test_networks_without_units_are_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    for call in (lambda: minica.adapt(model), lambda: minica.tune(model, "conv_adapter")):
        with pytest.raises(ValueError, match="no convolutional unit.*ResNet"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scheme="conv"), "unknown scheme 'conv'; choose one of conv_parallel"),
        (dict(compression=0.5), "compression must be at least 1, got 0.5"),
        (dict(compression=float("nan")), "compression must be at least 1"),
        (dict(name="my.task"), "letters, digits and _ only, got 'my.task'"),
        (dict(name="train"), "got 'train'"),
        (dict(form="circular"), "unknown adapter form 'circular'; choose one of depthwise"),
        (dict(init="zeros"), "unknown initialisation 'zeros'; choose one of identity"),
    ],
)
def test_bad_options_leave_the_model_untouched(options, message):
    model = net("test_resnet")
    before = {key: weight.requires_grad for key, weight in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        minica.adapt(model, **options)
    assert {key: weight.requires_grad for key, weight in model.named_parameters()} == before
    assert not minica.adapters(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_switching_is_exact():
    """Every set comes back with the classifier that was trained beside it."""
    model, x = net("test_resnet"), images("test_resnet")
    disturb(minica.adapt(model, "conv_parallel", name="first"))
    first = model(x)
    with pytest.raises(ValueError, match="already has adapters named 'first'"):
        minica.adapt(model, name="first")
    disturb(minica.adapt(model, "residual_sequential", name="second"))
    second = model(x)
    assert all(not weight.requires_grad for a in minica.adapters(model, "first").values() for weight in a.parameters())
    with pytest.raises(ValueError, match="no adapters named 'third'; the model has first, second"):
        minica.switch(model, "third")
    for name, expected in [("first", first), ("second", second), (None, None), ("first", first)]:
        minica.switch(model, name)
        assert bool(minica.adapters(model)) == (name is not None)
        assert {w.requires_grad for w in model.get_classifier().parameters()} == {name is not None}
        assert expected is None or torch.equal(model(x), expected)


def test_threads_do_not_mix():
    """A server's threads share one adapted network."""
    from concurrent.futures import ThreadPoolExecutor

    model = disturb(minica.adapt(net("test_resnet"), "conv_parallel"))
    inputs = [images("test_resnet", 1) * (1 + i / 10) for i in range(24)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(torch.no_grad()(model), inputs))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_an_interrupted_forward_leaves_nothing_behind():
    model, x = disturb(minica.adapt(net("test_resnet"), "conv_parallel")), images("test_resnet")
    expected = model(x)
    handle = model.layer2[0].bn1.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    assert torch.equal(copy.deepcopy(model)(x), expected) and torch.equal(model(x), expected)


def test_heavy_adapters_warn_once_and_name_the_cheaper_scheme():
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    with pytest.warns(UserWarning, match="2,082,496 parameters, 61.8% of this backbone; 'residual_parallel' would have 2.9%"):
        minica.adapt(model, "conv_parallel")
    minica.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minica.adapt(model, "residual_parallel")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
