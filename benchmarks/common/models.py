"""Trainings to measure: a small GPT, the article's network, and bare tensors with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from sample_runs.network import Network

SEED = 0


@dataclass(frozen=True)
class Training:
    """An optimizer with its model and its loss. Bare tensors have neither model nor loss.

    ``samples`` returns the per-sample losses of the last call of ``loss``.
    """

    optimizer: Optimizer
    model: nn.Module | None = None
    loss: Callable[[], Tensor] | None = None
    samples: Callable[[], Tensor] | None = None

    def named(self) -> list[tuple[str, Tensor]]:
        """Return the parameters with their names."""
        if self.model is not None:
            return list(self.model.named_parameters())
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [(f"tensor{place}", parameter) for place, parameter in enumerate(parameters)]


@dataclass(frozen=True)
class Shape:
    """The sizes of a GPT and of its batch."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    batch: int
    length: int


class Block(nn.Module):
    """A pre-norm transformer block: attention, then two linear layers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(shape.width)
        self.attn = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        self.norm2 = nn.LayerNorm(shape.width)
        self.mlp1 = nn.Linear(shape.width, 4 * shape.width)
        self.mlp2 = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.attn(self.norm1(x)).split(width, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp2(functional.gelu(self.mlp1(self.norm2(x))))


class GPT(nn.Module):
    """A GPT whose output layer shares the weights of its token embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length) to logits (batch, length, vocabulary)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions(places)))
        return functional.linear(x, self.tokens.weight)


def gpt(shape: Shape, *, device: str = "cpu", autocast: bool = False) -> Training:
    """Return a GPT on random tokens, trained by fused AdamW."""
    torch.manual_seed(SEED)
    model = GPT(shape).to(device)
    tokens = torch.randint(shape.vocabulary, (shape.batch, shape.length + 1)).to(device)

    def loss() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(tokens[:, :-1])
            return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return Training(AdamW(model.parameters(), lr=1e-4, fused=True), model, loss)


def mnist(batch: int) -> Training:
    """Return the article's network on random images, trained by fused AdamW."""
    torch.manual_seed(SEED)
    model = Network()
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)
    return Training(optimizer, model, lambda: functional.nll_loss(model(images), labels))


def mnist_sequential(batch: int) -> Training:
    """Return the same training with an ``nn.Sequential`` model, which some packages need."""
    plain = mnist(batch)
    own: Any = plain.model
    pooled = (nn.ReLU(), nn.MaxPool2d(2))
    again = (nn.ReLU(), nn.MaxPool2d(2))
    linear = (nn.Flatten(), own.fc1, nn.ReLU(), own.fc2)
    model = nn.Sequential(own.conv1, *pooled, own.conv2, *again, *linear)
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    last: list[Tensor] = []

    def loss() -> Tensor:
        losses = functional.cross_entropy(model(images), labels, reduction="none")
        last[:] = [losses]
        return losses.mean()

    return Training(plain.optimizer, model, loss, lambda: last[0])


def tensors(
    shapes: Sequence[tuple[int, ...]],
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    *,
    device: str = "cpu",
) -> Training:
    """Return parameters with fixed gradients: a step is that of the optimizer alone."""
    torch.manual_seed(SEED)
    parameters: list[nn.Parameter] = []
    for shape in shapes:
        parameter = nn.Parameter(torch.randn(shape, device=device))
        parameter.grad = torch.randn(shape, device=device)
        parameters.append(parameter)
    made: Any = optimizer or fused_adamw
    return Training(made(parameters))


def fused_adamw(parameters: list[nn.Parameter]) -> Optimizer:
    """Return torch's fused AdamW, the baseline."""
    return AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
