"""CKA and MMD: what they must not change under, and agreement with their definitions written out."""

import copy
import math

import pytest
import torch
from nets import disturb, images, net

import minica
from minica.experiments.similarity import feature_cka, filter_matrix, hsic, linear_cka, median_distance, mmd, weight_cka


def sample(n, p, seed=0):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defined_hsic(one, other, unbiased):
    """Word by word, with loops where the formula has sums."""
    n = len(one)
    if not unbiased:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        return torch.trace(one @ h @ other @ h) / (n - 1) ** 2
    pairs = quads = triples = 0.0
    for i in range(n):
        for j in range(n):
            if j == i:
                continue
            pairs += one[i, j] * other[i, j]
            for q in range(n):
                if q in (i, j):
                    continue
                triples += one[i, j] * other[i, q]
                for r in range(n):
                    quads += 0 if r in (i, j, q) else one[i, j] * other[q, r]
    falling = math.perm
    return pairs / falling(n, 2) + quads / falling(n, 4) - 2 * triples / falling(n, 3)


@pytest.mark.parametrize("unbiased", [False, True])
def test_hsic_is_as_defined(unbiased):
    x, y = sample(7, 3), sample(7, 5, 1)
    k, m = x @ x.T, y @ y.T
    assert hsic(k, m, unbiased).item() == pytest.approx(defined_hsic(k, m, unbiased).item(), rel=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("n, p, q", [(40, 6, 9), (12, 30, 20)])
def test_cka(unbiased, n, p, q):
    x, y = sample(n, p), sample(n, q, 1)
    y[:, : min(p, q)] += x[:, : min(p, q)]
    value = linear_cka(x, y, unbiased)
    k, m = x @ x.T, y @ y.T
    parts = [defined_hsic(a, b, unbiased) if not unbiased or n < 15 else hsic(a, b, True) for a, b in ((k, m), (k, k), (m, m))]
    assert value == pytest.approx((parts[0] / (parts[1] * parts[2]).sqrt()).item(), rel=1e-10)
    assert 0 < value < 1
    assert linear_cka(x, x, unbiased) == pytest.approx(1, abs=1e-12)
    rotation = torch.linalg.qr(sample(p, p, 2)).Q
    assert linear_cka(3.7 * x @ rotation + 5, y, unbiased) == pytest.approx(value, abs=1e-10)
    stretched = x * torch.linspace(0.1, 3, p)  # not isotropic
    assert linear_cka(stretched, y, unbiased) != pytest.approx(value, abs=1e-3)


def test_the_unbiased_one_is_not_drawn_to_one():
    x, y = sample(10, 2_000), sample(10, 2_000, 1)  # unrelated
    assert linear_cka(x, y) > 0.9 and abs(linear_cka(x, y, unbiased=True)) < 0.1


def test_filters_are_read_in_two_ways():
    weight = sample(6 * 4, 9).reshape(6, 4, 3, 3)
    assert filter_matrix(weight).shape == (24, 9) and filter_matrix(weight, "filters").shape == (6, 36)
    assert torch.equal(filter_matrix(weight)[5], weight[1, 1].flatten())
    depthwise = weight.reshape(24, 1, 3, 3)
    assert torch.equal(filter_matrix(depthwise), filter_matrix(depthwise, "filters"))
    for pointwise in (weight[..., :1, :1], weight[..., 0, 0]):
        assert all(filter_matrix(pointwise, reading).shape == (6, 4) for reading in ("kernels", "filters"))
    with pytest.raises(ValueError, match="unknown reading 'channels'; choose one of kernels, filters"):
        filter_matrix(weight, "channels")


def test_weights_of_two_networks():
    one = net("basic")
    other = copy.deepcopy(one)
    assert all(value == pytest.approx(1) for value in weight_cka(one, other).values())
    with torch.no_grad():
        other.layer2[0].conv1.weight.copy_(
            sample(other.layer2[0].conv1.weight.numel(), 1).reshape_as(other.layer2[0].conv1.weight)
        )
    other.reset_classifier(7)
    changed = {name for name, value in weight_cka(one, other).items() if value < 0.999}
    assert changed == {"layer2.0.conv1"} and "fc" not in weight_cka(one, other)
    with pytest.raises(ValueError, match="no convolution or linear layer of the same name and shape"):
        weight_cka(one, torch.nn.Identity())


def test_features_of_layers():
    model, places = net("basic"), ["layer1", "layer2", "layer3"]
    pictures = images("basic", batch=24)
    batches = pictures.split(12)
    same = feature_cka(model, places, batches)
    assert same.shape == (3, 3) and torch.allclose(same.diagonal(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(same, same.T) and not model.training
    parts = []
    for batch in batches:  # by the definition, batch by batch
        maps, x = {}, batch
        for name, module in model.named_children():
            x = module(x)
            maps[name] = x
            if name == "layer3":
                break
        grams = [(f := maps[name].flatten(1).double()) @ f.T for name in places]
        parts.append([[hsic(a, b, True) for b in grams] for a in grams])
    total = torch.tensor(parts).sum(0)
    assert torch.allclose(same, total / (total.diagonal()[:, None] * total.diagonal()[None]).sqrt(), atol=1e-6)

    adapted = disturb(minica.adapt(net("basic"), "residual_parallel"))
    across = feature_cka(model, places, batches, adapted, ["layer3"])
    assert across.shape == (3, 1) and across[2, 0] < 0.9999
    with pytest.raises(ValueError, match="'layer9' is no part of ResNet"):
        feature_cka(model, ["layer9"], batches)
    with pytest.raises(ValueError, match="no batch of at least four images"):
        feature_cka(model, places, pictures[:6].split(3))
    assert not any(module._forward_hooks for module in model.modules())


def test_mmd():
    x, y = sample(60, 4), sample(50, 4, 1) + 0.5
    assert mmd(x, x) == pytest.approx(0, abs=1e-12) and mmd(x, y) > 0
    assert mmd(x, y) == pytest.approx(mmd(y, x)) and mmd(x, y, unbiased=True) < mmd(x, y)
    s = median_distance(x, y)
    both = torch.cat([x, y])
    distances = sorted((both[i] - both[j]).norm().item() for i in range(110) for j in range(i))
    assert s == pytest.approx(distances[(len(distances) - 1) // 2])

    def mean(a, b, leave_out=False):
        values = [
            math.exp(-(p - q).square().sum().item() / (2 * s**2))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (leave_out and i == j)
        ]
        return sum(values) / len(values)

    for unbiased in (False, True):
        expected = mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y)
        assert mmd(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)


def test_mmd_of_two_gaussians():
    """For N(0, 1) and N(m, 1) in d dimensions it is 2 (s^2 / (s^2 + 2))^(d / 2) (1 - exp(-|m|^2 / (2 (s^2 + 2))))."""
    d, s, shift, n = 3, 1.5, 0.8, 1_000
    expected = 2 * (s**2 / (s**2 + 2)) ** (d / 2) * (1 - math.exp(-(shift**2) / (2 * (s**2 + 2))))
    apart, alike = [], []
    for seed in range(0, 16, 2):
        x, y = sample(n, d, seed), sample(n, d, seed + 1)
        alike.append(mmd(x, y, s, unbiased=True))
        y[:, 0] += shift
        apart.append(mmd(x, y, s, unbiased=True))
    assert sum(apart) / 8 == pytest.approx(expected, rel=0.1)
    assert abs(sum(alike) / 8) < 0.05 * expected


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"as many rows, one a sample, got \(3, 2\) and \(4, 2\)"):
        linear_cka(sample(3, 2), sample(4, 2))
    with pytest.raises(ValueError, match="n at least 4"):
        linear_cka(sample(3, 2), sample(3, 2), unbiased=True)
    with pytest.raises(ValueError, match=r"two samples .* got \(3, 2\) and \(3, 4\)"):
        mmd(sample(3, 2), sample(3, 4))
    with pytest.raises(ValueError, match="are all points the same"):
        mmd(torch.ones(3, 2), torch.ones(3, 2))
