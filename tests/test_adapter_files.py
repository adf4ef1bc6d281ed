"""What is in an adapter file, and what is refused."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
from nets import disturb, images, net, same, snapshot

import minica


@pytest.fixture
def saved(tmp_path):
    model = disturb(minica.adapt(net("basic"), "conv_parallel", compression=2))
    minica.save_adapter(model, tmp_path / "adapter", classes=["a", "b", "c", "d", "e"], licence="CC0", input_size=64)
    return tmp_path / "adapter", model


def refused(folder, message, model=None):
    """The load fails with ``message`` and leaves the model as it was."""
    model = net("basic") if model is None else model
    before, grads = snapshot(model), [weight.requires_grad for weight in model.parameters()]
    with pytest.raises(ValueError, match=message):
        minica.load_adapter(model, folder)
    assert same(snapshot(model), before)
    assert [weight.requires_grad for weight in model.parameters()] == grads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_folder(saved):
    folder, model = saved
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["backbone"] == "test_resnet" and config["method"] == "conv_adapter"
    assert config["options"]["scheme"] == "conv_parallel" and config["options"]["compression"] == 2
    assert config["classes"] == ["a", "b", "c", "d", "e"] and config["licence"] == "CC0"
    state = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    assert len(state) == config["num_tensors"] == 5 * len(minica.adapters(model)) + 2
    assert "layer1.0.conv1.conv_adapter.alpha" in state, "without the name of the set"
    assert "fc.weight" in state


@pytest.mark.parametrize("method", ["full", "linear", "bias", "norm"])
def test_other_methods_save_what_they_trained(method, tmp_path):
    model = disturb(minica.tune(net("basic"), method)).train()
    model(images("basic", 4))  # statistics move where they train
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(net("basic"), tmp_path)
    assert torch.equal(fresh(images("basic")), model.eval()(images("basic")))
    stored = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert ("layer1.0.bn1.running_mean" in stored) == (method in ("full", "norm"))
    assert ("layer1.0.conv1.weight" in stored) == (method == "full")


def test_under_another_name(saved):
    folder, model = saved
    other = minica.load_adapter(net("basic"), folder, name="task_b")
    assert torch.equal(other(images("basic")), model(images("basic")))
    assert minica.adapters(other, "task_b")


@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.999])
def test_truncated(saved, keep):
    file = saved[0] / "adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    refused(saved[0], "adapter_model.safetensors is damaged")


@pytest.mark.parametrize("place", [0, 3, 100, -1])
def test_one_flipped_bit(saved, place):
    file = saved[0] / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)
    refused(saved[0], "adapter_model.safetensors is damaged")


def format_1(folder, model):
    """The same adapter as format 1 had it: the configuration in a file of its own, one fingerprint for all frozen tensors."""
    config = json.loads((folder / "adapter_config.json").read_text())
    state = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    payload = safetensors.torch.save(state, metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(payload)
    fingerprint = hashlib.sha256()
    for key, value in net("basic").state_dict().items():
        if not key.startswith("fc."):
            fingerprint.update(key.encode())
            fingerprint.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    options = config["options"] | dict(norms=config["norms"], name=config["name"])
    about = {key: config[key] for key in ("backbone", "method", "classes", "licence", "num_tensors", "num_parameters")}
    old = about | dict(format=1, options=options, backbone_sha256=fingerprint.hexdigest())
    old["weights_sha256"] = hashlib.sha256(payload).hexdigest()
    (folder / "adapter_config.json").write_text(json.dumps(old, indent=2))
    return folder / "adapter_config.json"


def test_format_1_is_read(saved):
    folder, model = saved
    format_1(folder, model)
    assert torch.equal(minica.load_adapter(net("basic"), folder)(images("basic")), model(images("basic")))
    with torch.no_grad():
        other = net("basic")
        other.conv1[0].weight.view(-1)[0] += 1e-3
    refused(folder, "trained on other weights of 'test_resnet'", other)
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)
    refused(folder, "does not have the SHA-256")


def test_damaged_or_foreign_configuration(saved):
    config = format_1(*saved)
    good = config.read_text()
    config.write_text(good[:-20])
    refused(saved[0], "adapter_config.json is damaged: not JSON")
    config.write_text("[" * 100_000)
    refused(saved[0], "adapter_config.json is damaged")
    config.write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    refused(saved[0], "was not written by minica")
    config.write_text(good.replace('"format": 1', '"format": 99'))
    refused(saved[0], "has format 99")
    config.write_text(good.replace("conv_parallel", "conv_diagonal"))
    refused(saved[0], "unknown scheme 'conv_diagonal'")
    config.write_text(good.replace('"norms"', '"norns"'))
    refused(saved[0], "its options make no sense")
    config.unlink()
    refused(saved[0], "no adapter in .*adapter_config.json cannot be read")
    refused(saved[0].parent / "nowhere", "no adapter in")


def test_the_copy_for_people_is_not_read(saved):
    folder, model = saved
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace("depthwise", "spatial"))
    with pytest.warns(UserWarning, match="is not what adapter_model.safetensors says of itself, and is not used"):
        assert torch.equal(minica.load_adapter(net("basic"), folder)(images("basic")), model(images("basic")))
    config.unlink()
    assert torch.equal(minica.load_adapter(net("basic"), folder)(images("basic")), model(images("basic")))


def test_never_unpickled(saved):
    class Boom:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    torch.save({"x": Boom()}, saved[0] / "adapter_model.safetensors")
    refused(saved[0], "is damaged")


def test_wrong_backbone(saved):
    refused(saved[0], "belongs to 'test_resnet', this model is 'test_efficientnet'", net("test_efficientnet"))


def test_same_architecture_other_weights(saved):
    model = net("basic")
    with torch.no_grad():
        model.conv1[0].weight.view(-1)[0] += 1e-3
    refused(saved[0], "trained on other weights of 'test_resnet'", model)


def test_wrong_number_of_classes(saved):
    refused(saved[0], r"fc.bias has shape \(5,\) in the file and \(4,\).*num_classes", net("basic", num_classes=4))


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="nothing to save"):
        minica.save_adapter(net("basic"), tmp_path)


def test_no_write_access(saved, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write an adapter to .*file"):
        minica.save_adapter(saved[1], tmp_path / "file" / "adapter")


def test_a_failed_write_keeps_the_old_file(saved, monkeypatch):
    folder, model = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="No space left"):
        minica.save_adapter(disturb(model), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_bad_metadata_keeps_what_was_there(saved):
    folder, model = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for about, message in [(dict(mean=torch.ones(3)), "must be JSON"), (dict(format="png"), "format: these entries")]:
        with pytest.raises(ValueError, match=message):
            minica.save_adapter(disturb(model), folder, **about)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_task_is_written_down(saved, tmp_path):
    task = minica.data.load("solar-cells", size=16)
    minica.save_adapter(saved[1], tmp_path, task=task)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["classes"] == ["functional", "defective"] and config["input_size"] == 16 and config["resize"] == "squash"
    assert config["licence"] == "CC BY-NC-SA 4.0" and config["mean"] == [0.5, 0.5, 0.5] and "elpv" in config["training_data"]


def test_two_tasks_on_one_backbone(saved, tmp_path):
    """Each set brings its own classifier, and either can be saved again."""
    folder, first = saved
    second = disturb(disturb(minica.adapt(net("basic"), "residual_sequential")))
    minica.save_adapter(second, tmp_path / "second")
    x, both = images("basic"), minica.load_adapter(net("basic"), folder, name="first")
    minica.load_adapter(both, tmp_path / "second", name="second")
    for name, model in [("second", second), ("first", first), ("second", second)]:
        minica.switch(both, name)
        assert torch.equal(both(x), model(x))
        minica.save_adapter(both, tmp_path / "again")
        assert torch.equal(minica.load_adapter(net("basic"), tmp_path / "again")(x), model(x))


def test_compiled_models_can_be_saved(saved, tmp_path):
    minica.save_adapter(torch.compile(saved[1]), tmp_path)
    assert torch.equal(minica.load_adapter(net("basic"), tmp_path)(images("basic")), saved[1](images("basic")))
