"""Other packages that observe a training at every step, used as their documentation says.

Each package is imported where it is used, so that a missing or failing one becomes an entry that
says why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.contenders import JsonLines, Watcher, contender
from benchmarks.common.measure import Contender
from benchmarks.common.models import Training

PACKAGES = (
    "ormas-monitor",
    "thermoclaw",
    "trainscope",
    "trainpulse",
    "wandb",
    "tensorboard",
    "cockpit-for-pytorch",
    "backpack-for-pytorch",
)
"""Distributions whose versions the results contain."""


class ComposerPattern(JsonLines):
    """The calls of Composer's OptimizerMonitor for AdamW: five norms of each tensor.

    The package itself needs its own trainer; its cost is that of these calls.
    """

    @torch.no_grad()
    def after_step(self, loss: Tensor | None) -> None:
        """Compute the norms, then read them one by one, as Composer's loggers do."""
        metrics: dict[str, Tensor] = {} if loss is None else {"loss": loss}
        squares: Any = 0.0
        group = self.training.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        for name, w in self.named:
            state, g = self.training.optimizer.state[w], w.grad
            count = state["step"].item()
            root = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt().add_(group["eps"])
            update = state["exp_avg"].div(root).mul_(group["lr"] / (1 - beta1**count))
            norm = torch.linalg.vector_norm(g)
            squares = squares + norm**2
            metrics[f"l2_norm/grad/{name}"] = norm
            metrics[f"l2_norm/moment/{name}"] = torch.linalg.vector_norm(state["exp_avg"])
            metrics[f"l2_norm/param/{name}"] = torch.linalg.vector_norm(w)
            metrics[f"l2_norm/update/{name}"] = torch.linalg.vector_norm(update)
        metrics["l2_norm/grad/global"] = squares**0.5
        self.write({name: value.item() for name, value in metrics.items()})


class Ormas(Watcher):
    """ormas-monitor with a check at every step."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        from ormas_monitor import Monitor  # noqa: PLC0415

        self.monitor = Monitor(
            training.model,
            training.optimizer,
            out=folder / "ormas",
            check_every=1,
            verbose=False,
        )

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients and pass them to the monitor."""
        loss.backward()
        self.monitor.step(loss)

    def close(self) -> dict[str, Any]:
        """Close the monitor, which writes its files."""
        self.monitor.close(report=False)
        return {}


class Thermoclaw(Watcher):
    """thermoclaw's observer, with one parameter group for each module."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        import thermoclaw  # noqa: PLC0415

        # It needs these groups. An optimizer that is never stepped has them, so that the step that
        # is measured is the same as for the others.
        groups = thermoclaw.make_param_groups(training.model, lr=training.optimizer.defaults["lr"])
        shown = torch.optim.AdamW(groups)
        shown.state = training.optimizer.state
        self.observer = thermoclaw.Observer(training.model, shown)

    def after_step(self, loss: Tensor | None) -> None:
        """Pass the step to the observer."""
        self.observer.step(loss=None if loss is None else loss.item())

    def close(self) -> dict[str, Any]:
        """Write the observer's table."""
        self.observer.to_csv(str(self.folder / "thermoclaw.csv"))
        return {}


class Trainscope(Watcher):
    """trainscope with one of its profiles."""

    def __init__(self, training: Training, folder: Path, profile: str) -> None:
        super().__init__(training, folder)
        from trainscope import TrainScope  # noqa: PLC0415
        from trainscope.core.config import TrainScopeConfig  # noqa: PLC0415
        from trainscope.core.profiles import get_profile  # noqa: PLC0415

        config = TrainScopeConfig(run_dir=str(folder), **get_profile(profile))
        self.scope = TrainScope(training.model, training.optimizer, config=config).attach()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients and pass them to the monitor."""
        loss.backward()
        self.scope.step(loss.item())

    def close(self) -> dict[str, Any]:
        """Detach it, which writes its files."""
        self.scope.detach()
        return {}


class Trainpulse(Watcher):
    """trainpulse's monitor, with the loss and the gradient norm of each tensor."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        from trainpulse import Monitor  # noqa: PLC0415

        self.monitor = Monitor()
        self.named = training.named()
        self.count = 0

    def after_step(self, loss: Tensor | None) -> None:
        """Log the loss and the norms."""
        self.monitor.step_start()
        if loss is not None:
            self.monitor.log("loss", self.count, loss.item())
        for name, parameter in self.named:
            self.monitor.log(f"grad_norm/{name}", self.count, parameter.grad.norm().item())
        self.monitor.step_end(self.count)
        self.count += 1


class WandbWatch(Watcher):
    """wandb.watch of gradients and parameters at every step, offline."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        os.environ |= {
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            **{f"WANDB_{kind}_DIR": str(folder) for kind in ("CACHE", "CONFIG", "DATA")},
        }
        import wandb  # noqa: PLC0415

        self.run = wandb.init(
            project="benchmark",
            dir=folder,
            mode="offline",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.watch(training.model, log="all", log_freq=1)

    def after_step(self, loss: Tensor | None) -> None:
        """Log the loss, and with it the watched tensors."""
        self.run.log({} if loss is None else {"loss": loss.item()})

    def close(self) -> dict[str, Any]:
        """Finish the run."""
        self.run.unwatch()
        self.run.finish()
        return {}


class TensorBoard(Watcher):
    """TensorBoard's SummaryWriter: four norms of each tensor, or histograms of w and g."""

    def __init__(self, training: Training, folder: Path, *, histograms: bool) -> None:
        super().__init__(training, folder)
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self.histograms = histograms
        self.named = training.named()
        self.writer = SummaryWriter(folder)
        self.count = 0

    @torch.no_grad()
    def after_step(self, loss: Tensor | None) -> None:
        """Add the loss, and the norms or histograms."""
        add = self.writer.add_histogram if self.histograms else self.writer.add_scalar
        if loss is not None:
            self.writer.add_scalar("loss", loss.item(), self.count)
        for name, w in self.named:
            shown = {"weight": w, "gradient": w.grad}
            if not self.histograms:
                state = self.training.optimizer.state[w]
                shown |= {"momentum": state["exp_avg"], "variance": state["exp_avg_sq"]}
                shown = {kind: value.norm().item() for kind, value in shown.items()}
            for kind, value in shown.items():
                add(f"{kind}/{name}", value, self.count)
        self.count += 1

    def close(self) -> dict[str, Any]:
        """Close the writer."""
        self.writer.close()
        return {}


class Cockpit(Watcher):
    """Cockpit: its economy set, or three quantities that need no per-sample gradients."""

    def __init__(self, training: Training, folder: Path, *, economy: bool) -> None:
        super().__init__(training, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports deprecated modules
            from cockpit import Cockpit as Own  # noqa: PLC0415
            from cockpit import quantities  # noqa: PLC0415
            from cockpit.utils.configuration import configuration  # noqa: PLC0415
            from cockpit.utils.schedules import linear  # noqa: PLC0415

        schedule = linear(1)
        norms = (quantities.GradNorm, quantities.UpdateSize, quantities.Distance)
        if economy:
            if training.samples is None:
                raise NotImplementedError("BackPACK has no per-sample gradients for this model")
            from backpack import extend  # noqa: PLC0415

            extend(training.model)
            chosen = configuration("economy", schedule)
        else:
            chosen = [kind(schedule) for kind in norms]
        self.cockpit = Own(training.model.parameters(), quantities=chosen)
        self.count = 0

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients within Cockpit's context."""
        info = {"loss": loss, "optimizer": self.training.optimizer}
        if self.training.samples is not None:
            samples = self.training.samples()
            info |= {"individual_losses": samples, "batch_size": len(samples)}
        with self.cockpit(self.count, info=info):
            loss.backward(create_graph=self.cockpit.create_graph(self.count))
        self.count += 1

    def close(self) -> dict[str, Any]:
        """Write Cockpit's file."""
        self.cockpit.write(str(self.folder / "cockpit"))
        return {}


def rivals(
    training: Callable[[], Training], sequential: Callable[[], Training] | None = None
) -> list[Contender]:
    """Return all rivals, each with its own training.

    Parameters
    ----------
    training : callable
        Returns a new training.
    sequential : callable, optional
        Returns the same training with an ``nn.Sequential`` model, for Cockpit's economy set.
    """
    make = partial(contender, training=training)
    return [
        make("Composer's pattern", "five norms of each tensor, .item()", watcher=ComposerPattern),
        make("ormas-monitor", "gradient norms, check_every=1", watcher=Ormas),
        make("thermoclaw", "Observer, one group per module", watcher=Thermoclaw),
        make(
            "trainscope",
            "its default profile",
            watcher=partial(Trainscope, profile="default"),
        ),
        make(
            "trainscope, full",
            "its debug profile: histograms and activations at every step",
            watcher=partial(Trainscope, profile="debug"),
        ),
        make("trainpulse", "gradient norm of each tensor", watcher=Trainpulse),
        make("wandb.watch", "gradients and parameters, log_freq=1, offline", watcher=WandbWatch),
        make(
            "TensorBoard scalars",
            "four norms of each tensor",
            watcher=partial(TensorBoard, histograms=False),
        ),
        make(
            "TensorBoard histograms",
            "weights and gradients",
            watcher=partial(TensorBoard, histograms=True),
        ),
        make(
            "Cockpit, norms",
            "GradNorm, UpdateSize and Distance",
            watcher=partial(Cockpit, economy=False),
        ),
        contender(
            "Cockpit, economy",
            "its cheapest set, with per-sample gradients",
            sequential or training,
            partial(Cockpit, economy=True),
            slow=True,
        ),
    ]
