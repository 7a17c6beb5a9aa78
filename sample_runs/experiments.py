"""Train the article's experiments on MNIST and record every step.

    python sample_runs/experiments.py                          all of them, on the embedded digits
    python sample_runs/experiments.py --pair                   Adam and LAMB at 0.01, side by side
    python sample_runs/experiments.py lamb-lr0.1 --full        one of them, on all 70,000 digits

The network is that of the article's code; every experiment starts from the same weights and sees
the same batches in the same order. A run that diverges is trained to the end like any other.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional
from tqdm.auto import tqdm

import digits
import trustlens
from network import Network
from trustlens.errors import TrustlensError, UsageError
from trustlens.optim import Lamb

BATCH: Final = 512
TEST_EVERY: Final = 20  # steps
HISTOGRAMS_EVERY: Final = 100  # steps
EPOCHS_FULL: Final = 5
EPOCHS_EMBEDDED: Final = 30  # about as many steps as 5 epochs of the full set
MEAN: Final = 0.1307  # of all pixels of MNIST's training images, scaled to 0 to 1
DEVIATION: Final = 0.3081


@dataclass(frozen=True)
class Experiment:
    """An optimizer with its options, and what the article reports (``seen``).

    ``l2`` times the weights is added to the gradient before each step: the weight decay of Adam
    before AdamW, which the article's code used at the time of these experiments.
    """

    name: str
    optimizer: type[torch.optim.Optimizer]
    options: dict[str, Any]
    seen: str
    l2: float = 0.0


class AdamOfTheCode(Lamb):
    """The Adam of the article's later code: its LAMB with r = 1 and no debiasing."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, debias=False, clip_ratio=(1.0, 1.0), **options)


ARTICLE: Final = {"betas": (0.9, 0.99)}
CODE: Final = {"betas": (0.9, 0.999), "weight_decay": 0.01}

EXPERIMENTS: Final = (
    Experiment("adam-lr0.01", torch.optim.Adam, {"lr": 0.01, **ARTICLE}, "learns"),
    Experiment("lamb-lr0.01", Lamb, {"lr": 0.01, **ARTICLE}, "learns, generalises a little better"),
    Experiment("lamb-lr0.1", Lamb, {"lr": 0.1, **ARTICLE}, "converges at once, then diverges"),
    Experiment("lamb-lr0.1-decay0.01", Lamb, {"lr": 0.1, "weight_decay": 0.01, **ARTICLE},
               "does not diverge; r up to about 4.5"),
    Experiment("lamb-lr0.1-l2-0.01", Lamb, {"lr": 0.1, "debias": "rate", "eps": 1e-8, **ARTICLE},
               "the same row, with its code of that time", l2=0.01),
    Experiment("adam-lr0.1", torch.optim.Adam, {"lr": 0.1, **ARTICLE}, "does not learn at all"),
    Experiment("adam-lr0.02-decay0.01", torch.optim.AdamW, {"lr": 0.02, **CODE},
               "stays at loss 2.3"),
    Experiment("adam-of-the-code-lr0.02-decay0.01", AdamOfTheCode, {"lr": 0.02, **CODE},
               "the same row, with its code of that time"),
    Experiment("lamb-lr0.02-decay0.01", Lamb, {"lr": 0.02, **CODE}, "98 % test accuracy"),
)  # fmt: skip
BY_NAME: Final = {experiment.name: experiment for experiment in EXPERIMENTS}
PAIR: Final = ("adam-lr0.01", "lamb-lr0.01")


@dataclass(frozen=True)
class Data:
    """The digits as tensors: images normalised, float32 (n, 1, 28, 28); labels int64 (n,)."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def prepare(source: digits.Digits) -> Data:
    """Turn the digits into normalised tensors."""

    def normalise(images: Any) -> torch.Tensor:
        pixels = torch.tensor(images).unsqueeze(1).float()
        return pixels.div_(255).sub_(MEAN).div_(DEVIATION)

    return Data(
        normalise(source.train_images), torch.tensor(source.train_labels).long(),
        normalise(source.test_images), torch.tensor(source.test_labels).long(),
    )  # fmt: skip


def steps_of(data: Data, epochs: int) -> int:
    """Return the number of steps of ``epochs``; the last batch of an epoch may be smaller."""
    return epochs * -(-len(data.train_labels) // BATCH)


def train(
    experiment: Experiment, data: Data, directory: Path, *, epochs: int, config: dict[str, Any]
) -> Iterator[float]:
    """Train and record one experiment; yield the loss after each step."""
    torch.manual_seed(config["seed"])
    model = Network()
    optimizer = experiment.optimizer(model.parameters(), **experiment.options)
    order = torch.Generator().manual_seed(config["seed"])
    last = steps_of(data, epochs)
    step = 0
    with trustlens.record(
        optimizer,
        directory,
        model=model,
        name=experiment.name,
        config={**config, "l2": experiment.l2},
        histograms_every=HISTOGRAMS_EVERY,
    ) as recorder:
        for _ in range(epochs):
            shuffled = torch.randperm(len(data.train_labels), generator=order)
            for batch in shuffled.split(BATCH):
                step += 1
                output = model(data.train_images[batch])
                loss = functional.nll_loss(output, data.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                if experiment.l2:
                    add_decay(model, experiment.l2)
                optimizer.step()
                recorder.log(loss=loss)
                if step % TEST_EVERY == 0 or step == last:
                    recorder.log(**test(model, data))
                yield loss.item()


@torch.no_grad()
def add_decay(model: Network, l2: float) -> None:
    """Add l2·w to the gradient of each layer."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=l2)


@torch.no_grad()
def test(model: Network, data: Data) -> dict[str, float]:
    """Return loss and accuracy on the test digits."""
    loss = correct = 0.0
    batches = zip(data.test_images.split(1000), data.test_labels.split(1000), strict=True)
    for images, labels in batches:
        output = model(images)
        loss += functional.nll_loss(output, labels, reduction="sum").item()
        correct += (output.argmax(1) == labels).sum().item()
    count = len(data.test_labels)
    return {"test_loss": loss / count, "test_accuracy": correct / count}


def run(
    rounds: list[list[Experiment]], source: digits.Digits, out: Path, *, epochs: int, seed: int
) -> None:
    """Train the rounds one after the other; the experiments of a round alternate step by step."""
    experiments = list(itertools.chain(*rounds))
    for experiment in experiments:
        if (out / experiment.name).exists():  # checked before training, which may take an hour
            raise UsageError(
                f"'{out / experiment.name}' already exists; "
                "name another folder with --out, or remove it"
            )
    data = prepare(source)
    config = {"data": str(source), "batch": BATCH, "epochs": epochs, "seed": seed}
    with tqdm(total=len(experiments) * steps_of(data, epochs), unit="step") as bar:
        for together in rounds:
            turns = [train(e, data, out / e.name, epochs=epochs, config=config) for e in together]
            # zip_longest runs each generator to its end, where it closes its recorder.
            for losses in itertools.zip_longest(*turns):
                bar.update(len(losses))
                shown = zip(together, losses, strict=True)
                bar.set_postfix_str(" | ".join(f"{e.name} loss {x:.3f}" for e, x in shown))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    about, examples, note = (__doc__ or "").strip().split("\n\n")
    parser = argparse.ArgumentParser(
        description=f"{about}\n\n{note}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments to train, see --list (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="list the experiments and stop")
    parser.add_argument(
        "--pair",
        action="store_true",
        help=f"train {' and '.join(PAIR)} in turns",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder to write the runs to (default: runs)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="all 70,000 digits, downloaded if necessary",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the four files of the full MNIST (implies --full)",
    )
    parser.add_argument(
        "--epochs",
        type=_count,
        metavar="N",
        help=f"default: {EPOCHS_EMBEDDED}, with --full {EPOCHS_FULL}",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="seed of the initial weights and the batches (default: 1)",
    )
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of epochs; give 1 or more")
    return int(text)


def choose(names: list[str], *, pair: bool) -> list[list[Experiment]]:
    """Return the rounds: first the pair, if chosen, then each name (default: all)."""
    for name in names:
        if name not in BY_NAME:
            raise UsageError(f"'{name}' is not an experiment; choose from: {', '.join(BY_NAME)}")
    first = [[BY_NAME[name] for name in PAIR]] if pair else []
    names = list(dict.fromkeys(names)) or ([] if pair else list(BY_NAME))
    return first + [[BY_NAME[name]] for name in names if not (pair and name in PAIR)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(arguments)
    if options.list:
        for experiment in EXPERIMENTS:
            print(f"{experiment.name:35}the article: {experiment.seen}")
        return 0
    full = options.full or options.data is not None
    epochs = options.epochs or (EPOCHS_FULL if full else EPOCHS_EMBEDDED)
    try:
        rounds = choose(options.names, pair=options.pair)
        source = digits.full(options.data) if full else digits.embedded()
        run(rounds, source, options.out, epochs=epochs, seed=options.seed)
    except TrustlensError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what was recorded so far is in '{options.out}'", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
