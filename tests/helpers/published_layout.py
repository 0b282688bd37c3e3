"""Small models in the layout that SPViT's authors publish, and what their code answers.

Weights are random; the reference is written from the paper and the layout alone, step by step,
and shares nothing with the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
GATES = {"skip": [0.0, 0.0, 0.0], "conv1x1": [1.0, 0.0, 0.0], "conv3x3": [1.0, 1.0, 0.0],
         "msa": [1.0, 1.0, 1.0]}  # fmt: skip
# Head map column of kernel position (row, column): DeiT's file counts down the columns, Swin's
# begins with the centre.
DEIT_COLUMN = {(r, c): 3 * c + r for r in range(3) for c in range(3)}
SWIN_COLUMN = {(1, 1): 0, (0, 0): 1, (1, 0): 2, (2, 0): 3, (0, 1): 4, (2, 1): 5, (0, 2): 6,
               (1, 2): 7, (2, 2): 8}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One block: what its attention became, and how many of its hidden units are kept."""

    kind: str
    width: int


@dataclass(frozen=True)
class Sizes:
    """A model. Swin's files divide the head scores by ``alpha``, DeiT's multiply them by 100."""

    stages: tuple[tuple[Block, ...], ...]
    dim: int
    heads: tuple[int, ...]
    image: int
    patch: int
    classes: int
    window: int = 0
    alpha: float = 0.01
    channels: int = 3

    @property
    def swin(self) -> bool:
        return self.window > 0

    def blocks(self) -> list[tuple[str, Block, int, int, int]]:
        """(path, block, dim, heads, stage) in order."""
        rows = []
        for stage, blocks in enumerate(self.stages):
            for index, block in enumerate(blocks):
                path = f"layers.{stage}.blocks.{index}" if self.swin else f"blocks.{index}"
                rows.append((path, block, self.dim << stage, self.heads[stage], stage))
        return rows


DEIT = Sizes(
    ((Block("conv3x3", 11), Block("skip", 48), Block("msa", 5), Block("conv1x1", 20)),),
    dim=12, heads=(4,), image=20, patch=5, classes=6, channels=1,
)  # fmt: skip
SWIN = Sizes(
    (
        (Block("msa", 9), Block("conv3x3", 30)),
        (Block("conv1x1", 64), Block("msa", 64), Block("skip", 3), Block("msa", 17)),
    ),
    dim=16, heads=(2, 4), image=32, patch=4, classes=5, window=4, alpha=0.4,
)  # fmt: skip


def random(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.3


def make_state(sizes: Sizes, qkv_bias: bool = True) -> tuple[State, State]:
    """Checkpoint and FFN indicators."""
    state, indicators = _outside(sizes), {}
    for path, block, dim, heads, _ in sizes.blocks():
        for name in ("norm1", "norm2"):
            state[f"{path}.{name}.weight"] = 1 + random(dim)
            state[f"{path}.{name}.bias"] = random(dim)
        attention = _attention(block.kind, dim, heads, sizes, qkv_bias)
        state |= {f"{path}.attn.{key}": tensor for key, tensor in attention.items()}
        state[f"{path}.mlp.fc1.weight"] = random(block.width, dim)
        state[f"{path}.mlp.fc1.bias"] = random(block.width)
        state[f"{path}.mlp.fc2.weight"] = random(dim, block.width)
        state[f"{path}.mlp.fc2.bias"] = random(dim)
        kept = torch.zeros(4 * dim)
        kept[torch.randperm(4 * dim)[: block.width]] = 1
        indicators[f"{path}.mlp.assigned_indicator_index"] = kept
    return state, indicators


def _outside(sizes: Sizes) -> State:
    last = sizes.dim << (len(sizes.stages) - 1)
    state = {
        "patch_embed.proj.weight": random(sizes.dim, sizes.channels, sizes.patch, sizes.patch),
        "patch_embed.proj.bias": random(sizes.dim),
        "norm.weight": 1 + random(last),
        "norm.bias": random(last),
        "head.weight": random(sizes.classes, last),
        "head.bias": random(sizes.classes),
    }
    if not sizes.swin:
        tokens = (sizes.image // sizes.patch) ** 2 + 1
        return {
            **state,
            "cls_token": random(1, 1, last),
            "pos_embed": random(1, tokens, last),
        }
    state["patch_embed.norm.weight"] = 1 + random(sizes.dim)
    state["patch_embed.norm.bias"] = random(sizes.dim)
    for stage in range(len(sizes.stages) - 1):
        dim = sizes.dim << stage
        state[f"layers.{stage}.downsample.reduction.weight"] = random(2 * dim, 4 * dim)
        state[f"layers.{stage}.downsample.norm.weight"] = 1 + random(4 * dim)
        state[f"layers.{stage}.downsample.norm.bias"] = random(4 * dim)
    return state


def _attention(kind: str, dim: int, heads: int, sizes: Sizes, bias: bool) -> State:
    if kind == "skip":
        return {}
    state = {"v.weight": random(dim, dim), "proj.weight": random(dim, dim),
             "proj.bias": random(dim)}  # fmt: skip
    if bias:
        state["v.bias"] = random(dim)
    if kind == "msa":
        state["qk.weight"] = random(2 * dim, dim)
        if bias:
            state["qk.bias"] = random(2 * dim)
        if sizes.swin:
            table = (2 * sizes.window - 1) ** 2
            state["relative_position_bias_table"] = random(table, heads)
            state["relative_position_index"] = relative_index(sizes.window)
        return state
    norm = "bn_1x1" if kind == "conv1x1" else "bn_3x3"
    d = dim // heads
    state["head_probs"] = random(heads, 9) * sizes.alpha * 5
    state["kernel_thresholds"] = random(3)
    state[f"{norm}.weight"], state[f"{norm}.bias"] = 1 + random(d), random(d)
    state[f"{norm}.running_mean"] = random(d)
    state[f"{norm}.running_var"] = 0.5 + torch.rand(d)
    state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return state


def optimized(state: State, sizes: Sizes) -> State:
    """The same model with its convolutions written out as ``bconv``."""
    result = dict(state)
    for path, block, dim, heads, _ in sizes.blocks():
        if not block.kind.startswith("conv"):
            continue
        norm = "bn_" + block.kind.removeprefix("conv")
        kernel, bias, back = _kernel(state, path, block.kind, dim, heads, sizes)
        attn = f"{path}.attn."
        own = {key: result.pop(key) for key in list(result) if key.startswith(attn)}
        result[f"{attn}bconv.0.weight"], result[f"{attn}bconv.0.bias"] = kernel, bias
        result[f"{attn}bconv.3.weight"] = back[:, :, None, None]
        result[f"{attn}bconv.3.bias"] = own[f"{attn}proj.bias"]
        for key, tensor in own.items():
            if f".{norm}." in key:
                result[key.replace(norm, "bconv.1")] = tensor
    return result


def _kernel(
    state: State, path: str, kind: str, dim: int, heads: int, sizes: Sizes
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel [d, C, k, k], its bias [d], and the way back [C, d]."""
    column = SWIN_COLUMN if sizes.swin else DEIT_COLUMN
    share = (state[f"{path}.attn.head_probs"] / sizes.alpha).softmax(0)
    weight = state[f"{path}.attn.v.weight"]
    bias = state.get(f"{path}.attn.v.bias", torch.zeros(dim))
    proj, d = state[f"{path}.attn.proj.weight"], dim // heads
    positions = [(1, 1)] if kind == "conv1x1" else sorted(column)
    side = 1 if kind == "conv1x1" else 3
    kernel, total = torch.zeros(d, dim, side, side), torch.zeros(d)
    back = torch.zeros(dim, d)
    for row, col in positions:
        for head in range(heads):
            own = slice(head * d, (head + 1) * d)
            p = share[head, column[(row, col)]]
            kernel[:, :, row % side if side > 1 else 0, col % side if side > 1 else 0] += (
                p * weight[own]
            )
            total += p * bias[own]
            back += p * proj[:, own]
    return kernel, total, back


def reference(state: State, sizes: Sizes, images: Tensor) -> Tensor:
    """[B, C, H, W] → logits [B, classes]."""
    x = functional.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"],
        stride=sizes.patch,
    )  # fmt: skip
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2)
    if sizes.swin:
        x = _norm(state, "patch_embed.norm", x, 1e-5)
    else:
        x = torch.cat((state["cls_token"].expand(len(x), -1, -1), x), 1) + state["pos_embed"]
    eps = 1e-5 if sizes.swin else 1e-6
    stage_before = 0
    for path, block, dim, heads, stage in sizes.blocks():
        if stage != stage_before:
            x, side, stage_before = _downsample(state, stage_before, x, side), side // 2, stage
        y = _norm(state, f"{path}.norm1", x, eps)
        x = x + _mix(state, path, block.kind, (dim, heads), sizes, y, side)
        y = _norm(state, f"{path}.norm2", x, eps)
        y = functional.gelu(y @ state[f"{path}.mlp.fc1.weight"].T + state[f"{path}.mlp.fc1.bias"])
        x = x + y @ state[f"{path}.mlp.fc2.weight"].T + state[f"{path}.mlp.fc2.bias"]
    x = _norm(state, "norm", x, eps)
    pooled = x.mean(1) if sizes.swin else x[:, 0]
    return pooled @ state["head.weight"].T + state["head.bias"]


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


def _downsample(state: State, stage: int, x: Tensor, side: int) -> Tensor:
    x = x.unflatten(1, (side, side))
    parts = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
    x = torch.cat(parts, -1).flatten(1, 2)
    x = _norm(state, f"layers.{stage}.downsample.norm", x, 1e-5)
    return x @ state[f"layers.{stage}.downsample.reduction.weight"].T


def _mix(
    state: State, path: str, kind: str, size: tuple[int, int], sizes: Sizes, x: Tensor, side: int
) -> Tensor:
    dim, heads = size
    if kind == "skip":
        return x
    if kind != "msa":
        prefix = 0 if sizes.swin else 1
        kernel, bias, back = _kernel(state, path, kind, dim, heads, sizes)
        image = x[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
        y = functional.conv2d(image, kernel, bias, padding=kernel.shape[-1] // 2)
        norm = f"{path}.attn.bn_{kind.removeprefix('conv')}"
        y = functional.batch_norm(
            y, state[f"{norm}.running_mean"], state[f"{norm}.running_var"],
            state[f"{norm}.weight"], state[f"{norm}.bias"],
        )  # fmt: skip
        y = y.relu().flatten(2).transpose(1, 2) @ back.T + state[f"{path}.attn.proj.bias"]
        return torch.cat((x[:, :prefix], y), 1)
    if not sizes.swin:
        return _attend(state, path, x, heads, torch.zeros(()))
    return _windows(state, path, x, heads, sizes.window, side)


def _attend(state: State, path: str, x: Tensor, heads: int, bias: Tensor) -> Tensor:
    b, n, c = x.shape
    none = torch.zeros(())
    qk = x @ state[f"{path}.attn.qk.weight"].T + state.get(f"{path}.attn.qk.bias", none)
    v = x @ state[f"{path}.attn.v.weight"].T + state.get(f"{path}.attn.v.bias", none)
    q, k = qk.reshape(b, n, 2, heads, c // heads).permute(2, 0, 3, 1, 4)
    v = v.reshape(b, n, heads, c // heads).transpose(1, 2)
    scores = (q @ k.transpose(-1, -2) / (c // heads) ** 0.5 + bias).softmax(-1)
    y = (scores @ v).transpose(1, 2).reshape(b, n, c)
    return y @ state[f"{path}.attn.proj.weight"].T + state[f"{path}.attn.proj.bias"]


def relative_index(window: int) -> Tensor:
    """Row of the position table for each pair of tokens in a window."""
    cells = [(r, c) for r in range(window) for c in range(window)]
    side = 2 * window - 1
    return torch.tensor(
        [[(a[0] - b[0] + window - 1) * side + a[1] - b[1] + window - 1 for b in cells]
         for a in cells]
    )  # fmt: skip


def _windows(state: State, path: str, x: Tensor, heads: int, window: int, side: int) -> Tensor:
    """Odd blocks shift by half a window where there is more than one; no token sees across."""
    odd = int(path.rsplit(".", 1)[1]) % 2 == 1
    shift = window // 2 if odd and side > window else 0
    rolled = x.unflatten(1, (side, side)).roll((-shift, -shift), (1, 2))
    cell = torch.arange(side)
    zone = (cell >= side - window).long() + (cell >= side - shift).long() * (shift > 0)
    zones = zone[:, None] * 3 + zone[None]
    table = state[f"{path}.attn.relative_position_bias_table"]
    bias = table[relative_index(window)].permute(2, 0, 1)
    result = torch.empty_like(rolled)
    for top in range(0, side, window):
        for left in range(0, side, window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            flat = zones[rows, columns].flatten()
            mask = torch.where(flat[:, None] == flat[None], 0.0, -100.0)
            tokens = rolled[:, rows, columns].flatten(1, 2)
            y = _attend(state, path, tokens, heads, bias + (mask if shift else 0))
            result[:, rows, columns] = y.unflatten(1, (window, window))
    return result.roll((shift, shift), (1, 2)).flatten(1, 2)


def write_config(sizes: Sizes, path: Path, indicators: str = "ffn.pth") -> Path:
    """A fine-tuning config: JSON of DeiT, YAML of Swin."""
    gates = [[GATES[block.kind] for block in stage] for stage in sizes.stages]
    if not sizes.swin:
        content = {
            "model": "spvit_deit", "input_size": sizes.image, "patch_size": sizes.patch,
            "embed_dim": sizes.dim, "num_heads": sizes.heads[0], "assigned_indicators": gates[0],
            "searching_model": indicators, "lr": 5e-5,
        }  # fmt: skip
        path.write_text(json.dumps(content))
        return path
    content = {
        "MODEL": {
            "TYPE": "spvit_swin", "NUM_CLASSES": sizes.classes,
            "SWIN": {"EMBED_DIM": sizes.dim, "DEPTHS": [len(s) for s in sizes.stages],
                     "NUM_HEADS": list(sizes.heads), "WINDOW_SIZE": sizes.window},
        },
        "DATA": {"IMG_SIZE": sizes.image, "DATASET": "imagenet"},
        "EXTRA": {"alpha": sizes.alpha, "theta": 1.5, "assigned_indicators": gates,
                  "searching_model": indicators},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def write_files(sizes: Sizes, folder: Path, qkv_bias: bool = True) -> tuple[Path, Path, State]:
    """Config, checkpoint and FFN indicators in a folder; the indicators lie beside the config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(sizes, folder / ("ft.yaml" if sizes.swin else "ft.json"))
    state, indicators = make_state(sizes, qkv_bias)
    torch.save({"model": state}, folder / "checkpoint.pth")
    torch.save({"model": indicators}, folder / "ffn.pth")
    return config, folder / "checkpoint.pth", state
