"""transformers' Trainer with what its settings lack: validation by a function, FGM, an order that survives an interruption.

The loop, the schedules, accumulation, mixed precision, several devices, checkpoints and trackers are the Trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import PartialState
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import get_last_checkpoint

from model_export.lowrank import Budget, Whole, adapt
from model_export.options import Options, TrainingError


class Shuffled(Dataset[Any]):
    """Examples in an order of their own in each epoch, those of about the same length together.

    Order and noise are functions of seed, epoch and place alone. So a training that was interrupted goes on with the very
    batches that it would have had, whatever had been read ahead.

    Args:
        count: how many examples.
        make: makes one of them, from its number and a source of chance.
        lengths: of each, in whatever unit; those in a batch are close.
        batch: examples in a batch.
        seed: of the order and of the examples' chance.
    """

    def __init__(self, count: int, make: Callable[[int, Random], Any], lengths: Sequence[int], *, batch: int, seed: int) -> None:
        self._count, self._make, self._lengths, self._batch, self._seed = count, make, lengths, batch, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the data loader calls it."""
        self._epoch = epoch
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = get_length_grouped_indices(self._lengths, self._batch, generator=generator)
        batches = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        whole = [batch for batch in batches if len(batch) == self._batch]
        shuffled = torch.randperm(len(whole), generator=generator).tolist()
        self._order = [i for b in shuffled for i in whole[b]] + [i for b in batches[len(whole) :] for i in b]

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._count

    def __getitem__(self, place: int) -> Any:
        """Return the example at a place of this epoch's order."""
        number = self._order[place]
        return self._make(number, Random(f"{self._seed} {self._epoch} {number}"))


class Adversary:
    """FGM (Miyato et al. 2017, arXiv:1605.07725): a second pass with each text's word vectors moved against it.

    The step is `length` along the gradient of the loss, whose norm is taken over the text's vectors.
    """

    def __init__(self, words: nn.Module, length: float) -> None:
        self._length = length
        self._seen: list[Tensor] = []
        self._steps: list[Tensor] | None = None
        words.register_forward_hook(self._pass)

    def __enter__(self) -> None:
        """Move the vectors in the passes that follow, in the order in which they were seen."""
        self._steps = []
        for vectors in self._seen:
            gradient = vectors.grad
            assert gradient is not None
            norm = gradient.flatten(1).norm(dim=1)[:, None, None]
            self._steps.append(self._length * gradient / norm.clamp_min(1e-12))
        self._seen = []

    def __exit__(self, *error: object) -> None:
        """Leave the vectors as they are again."""
        self._steps = None
        self._seen = []

    def _pass(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._steps:
            return output + self._steps.pop(0)
        if self._steps is None and torch.is_grad_enabled():
            if not output.requires_grad:  # the word vectors are frozen under LoRA
                output = output.detach().requires_grad_()
            output.retain_grad()
            self._seen.append(output)
        return output


class Learner(Trainer):
    """The Trainer; `validate` is called at the end of each epoch and returns metrics by name."""

    def __init__(self, *args: Any, validate: Callable[[], dict[str, float]], adversary: Adversary | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._validate = validate
        self._adversary = adversary

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Add the gradient of the adversarial pass."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self._adversary is not None:
            with self._adversary:
                super().training_step(model, inputs, num_items_in_batch)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the metrics on held-out data."""
        self.model.eval()
        with torch.inference_mode():
            metrics = {f"eval_{name}": value for name, value in self._validate().items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def fit(
    module: nn.Module,
    examples: Shuffled,
    collate: Callable[[list[Any]], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]],
    options: Options,
    folder: Path,
    *,
    metric: str,
    words: nn.Module,
) -> list[dict[str, float]]:
    """Train `module` in place, leave it with the weights of the best validation, and return what was logged.

    Args:
        module: `forward` takes what `collate` returns as keywords, and returns an output with a `loss`.
        examples: to learn from.
        collate: makes a batch of some of them.
        validate: measures the module on held-out data.
        options: `epochs`, `batch_size` and `learning_rate` are given.
        folder: for checkpoints and logs.
        metric: the one of `validate` that decides, the higher the better.
        words: the module of word embeddings, for adversarial training.

    Raises:
        TrainingError: `resume` was asked for and there is no checkpoint, or AdaLoRA's ranks did not move,
            or the tracker's package is missing.
    """
    assert options.epochs is not None
    assert options.batch_size is not None
    assert options.learning_rate is not None
    if options.tracker != "none" and options.tracker not in get_available_reporting_integrations():
        raise TrainingError(f"--tracker {options.tracker}: the package {options.tracker} is not installed")
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if options.resume and checkpoint is None:
        raise TrainingError(f"there is no checkpoint in {folder} to resume from")
    together = options.batch_size * options.accumulate * PartialState(cpu=not torch.accelerator.is_available()).num_processes
    steps = -(-len(examples) // together) * options.epochs
    set_seed(options.seed)
    # Some sums over several threads come out otherwise each time; where an operator has no other form, as some have on a GPU, it warns.
    torch.use_deterministic_algorithms(True, warn_only=True)
    adapted = None if options.method == "full" else adapt(module, options, steps)
    bf16, fp16 = _precision(options.precision)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule if options.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(options.warm_up * steps),
        weight_decay=options.weight_decay,
        max_grad_norm=1.0,
        use_cpu=not torch.accelerator.is_available(),
        bf16=bf16,
        fp16=fp16,
        seed=options.seed,
        train_sampling_strategy="sequential",  # `Shuffled` has the order
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
        logging_steps=max(1, steps // 200),
        report_to=[] if options.tracker == "none" else [options.tracker],
        run_name=folder.name,
        disable_tqdm=not options.progress,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(options.patience)]
    resumed = checkpoint if options.resume else None
    budget = None
    if adapted is not None and isinstance(adapted.base_model, AdaLoraModel):
        budget = Budget(adapted.base_model, resumed)
        callbacks.append(budget)
    learner = Learner(
        model=module if adapted is None else Whole(adapted),
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples,  # the Trainer insists on one; `validate` has its own
        data_collator=collate,
        callbacks=callbacks,
        validate=validate,
        adversary=Adversary(words, options.adversarial) if options.adversarial else None,
    )
    learner.remove_callback(PrinterCallback)  # the trackers have the curves, and each task says what it validated
    learner.model_accepts_loss_kwargs = False  # else the Trainer would leave the mean over accumulated batches to the module
    learner.train(resume_from_checkpoint=resumed)
    if not learner.is_world_process_zero():
        raise SystemExit(0)  # one of several devices' processes writes what they have learned together
    if budget is not None and len(set(budget.ranks())) == 1:
        raise TrainingError("AdaLoRA's ranks did not move: train for more steps, or use --method lora")
    if adapted is not None:
        merged = adapted.merge_and_unload()
        assert merged is module
    module.cpu().eval()
    return list(learner.state.log_history)


def set_dropout(module: nn.Module, probability: float) -> None:
    """Set the probability of every dropout inside."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability


def _precision(asked: str) -> tuple[bool, bool]:
    """Return whether to compute in bf16 and in fp16."""
    if asked == "auto":
        fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return bool(fast), False
    return asked == "bf16", asked == "fp16"
