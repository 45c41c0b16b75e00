"""DM-MSA against references written the long way."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from coma.model.attention import HeadGroup, MultiWindowAttention, attend, attend_within

B, N, C, D = 2, 32, 24, 8
GROUPS = (HeadGroup(window=4, heads=2), HeadGroup(window=16, heads=1), HeadGroup(window=None, heads=3))


@pytest.fixture
def layer() -> MultiWindowAttention:
    torch.manual_seed(0)
    return MultiWindowAttention(C, D, GROUPS)


def blocks_of(parts: list[int]) -> Tensor:
    """[N, N], true where a token may look."""
    return torch.block_diag(*[torch.ones(n, n) for n in parts]).bool()


def reference(layer: MultiWindowAttention, x: Tensor, view_tokens: list[int], gate: bool = True) -> Tensor:
    """Keys and values expanded to every head, windows as masks, groups fused one by one."""
    kv = layer.kv(x).reshape(B, N, len(GROUPS), 2, D)
    alpha = len(GROUPS) * layer.gate(x).softmax(-1)
    outs = []
    for g, group in enumerate(GROUPS):
        q = layer.q[g](x).reshape(B, N, group.heads, D).transpose(1, 2)  # [B, H, N, D]
        k, v = (kv[:, :, g, i, None].expand(B, N, group.heads, D).transpose(1, 2) for i in (0, 1))
        window = group.window
        allowed = blocks_of([window] * (N // window) if window else view_tokens)
        scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(~allowed, float("-inf"))
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, -1)
        outs.append(out * alpha[..., g : g + 1] if gate else out)
    return layer.proj(torch.cat(outs, -1))


@pytest.mark.parametrize("view_tokens", [[32], [16, 16], [20, 12], [12, 8, 8, 4]])
def test_folded_multi_query_equals_expanded_keys_and_values(
    layer: MultiWindowAttention, view_tokens: list[int]
) -> None:
    torch.nn.init.normal_(layer.gate.weight)
    x = torch.randn(B, N, C, requires_grad=True)
    out, expected = layer(x, view_tokens), reference(layer, x, view_tokens)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * weights).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(grad, expected_grad)


def test_zero_gate_equals_no_gate_and_still_learns(layer: MultiWindowAttention) -> None:
    assert not layer.gate.weight.any()
    x = torch.randn(B, N, C)
    out = layer(x, [N])
    torch.testing.assert_close(out, reference(layer, x, [N], gate=False))
    out.square().sum().backward()
    assert layer.gate.weight.grad.abs().sum() > 0


def test_gate_can_give_all_weight_to_one_group(layer: MultiWindowAttention) -> None:
    with torch.no_grad():
        layer.gate.weight[0] = 100
    x = torch.rand(B, N, C)
    k, v = layer.kv(x)[..., : 2 * D].split(D, -1)
    first = attend_within(layer.q[0](x), k, v, 4, (N,))  # [B, N, 2·D]
    expected = F.linear(3 * first, layer.proj.weight[:, : 2 * D], layer.proj.bias)
    torch.testing.assert_close(layer(x, [N]), expected)


def test_one_group_has_no_gate() -> None:
    assert MultiWindowAttention(C, D, [HeadGroup(None, 3)]).gate is None


def test_views_do_not_see_each_other(layer: MultiWindowAttention) -> None:
    x = torch.randn(B, N, C, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x, [16, 16])[:, :16].square().sum(), x)
    assert grad[:, 16:].abs().max() == 0
    assert grad[:, :16].abs().amin() > 0


def test_half_precision_takes_the_other_path_to_the_same_values() -> None:
    q, k, v = torch.randn(2, 3, 16, D), torch.randn(2, 3, 4, D), torch.randn(2, 3, 4, D)
    expected = attend(q, k, v)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
