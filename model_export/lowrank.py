"""LoRA (Hu et al. 2021, arXiv:2106.09685) and AdaLoRA (Zhang et al. 2023, arXiv:2303.10512), by peft.

The encoder's matrices stay as they are while low-rank updates of them are trained; then the two are merged, and nothing of it is
left in the exported graph.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from transformers import TrainerCallback

from model_export.options import Options

LAYERS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"


class Whole(nn.Module):
    """Keeps from the Trainer that an adapter is inside: it would save that alone, and without the state of its ranks."""

    def __init__(self, adapted: PeftModel) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, **inputs: Tensor) -> Any:
        """Return what the module inside returns."""
        return self.adapted(**inputs)


def adapt(module: nn.Module, options: Options, steps: int) -> PeftModel:
    """Freeze all but the head, and low-rank updates of the encoder's products that are put into `module`."""
    heads = ["head"] if any(name.endswith("head") for name, _ in module.named_modules()) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft looks for a config that this kind of module has not
        if options.method == "lora":
            config = LoraConfig(
                r=options.rank,
                lora_alpha=2 * options.rank,
                lora_dropout=options.dropout,
                target_modules=LAYERS,
                modules_to_save=heads,
            )
        else:
            config = AdaLoraConfig(
                init_r=options.rank + options.rank // 2,
                target_r=options.rank,
                lora_alpha=2 * options.rank,
                lora_dropout=options.dropout,
                target_modules=LAYERS,
                modules_to_save=heads,
                tinit=steps // 10,
                tfinal=steps // 3,
                deltaT=max(1, steps // 100),
                total_step=steps,
            )
        return get_peft_model(module, config)


class Budget(TrainerCallback):
    """Moves AdaLoRA's ranks to where they are worth most, before the gradients are cleared. Nothing else calls it.

    What it has averaged of each matrix's worth, and the ranks in force, go into the checkpoints too: peft leaves them out.
    """

    FILE = "ranks.pt"
    AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, model: AdaLoraModel, checkpoint: str | None) -> None:
        self.model = model
        self._checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over what a checkpoint has."""
        if self._checkpoint is not None:
            saved = torch.load(Path(self._checkpoint) / self.FILE, weights_only=True)
            for name in self.AVERAGES:
                setattr(self.model.rankallocator, name, saved[name])
            self.model.peft_config["default"].rank_pattern = saved["ranks"]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Allocate."""
        self.model.update_and_allocate(state.global_step + 1)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the averages beside the weights."""
        saved = {name: getattr(self.model.rankallocator, name) for name in self.AVERAGES}
        saved["ranks"] = self.model.peft_config["default"].rank_pattern
        torch.save(saved, Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE)

    def ranks(self) -> list[int]:
        """Return how many directions each matrix has left."""
        return [int((p != 0).sum()) for name, p in self.model.named_parameters() if ".lora_E." in name]
