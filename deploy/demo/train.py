"""Train the demo model: tokenizer, base, adapters. `python -m deploy.demo.train all` makes `models/` anew.

Reproducible: the data are seeded streams and every random choice is seeded. The same machine type, library versions and
number of threads give the same weights; anything else gives the same figures within noise.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from deploy.demo import data, golden, quantise, vocabulary
from deploy.demo.batches import IGNORED, Batch, batches
from deploy.demo.samples import Sample

MODELS: Final = Path(__file__).parent / "models"
BASE: Final = MODELS / "base"
ADAPTERS: Final = MODELS / "adapters"
SEED: Final = 20261122
LOG_EVERY_STEPS: Final = 20
BATCH_TOKENS: Final = 1536
HEAD_ROWS_MULTIPLE: Final = 128

log = logging.getLogger("demo.train")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train. Learning rates rise, stay, and fall to zero over the last `decay_share`."""

    num_steps: int
    num_batches: int
    matrix_lr: float
    other_lr: float
    prompt_share: float = 0.0
    warmup_steps: int = 40
    decay_share: float = 0.5
    rounding_share: float = 0.0

    def factor(self, step: int) -> float:
        """Return the share of the full learning rate at a step."""
        decay_steps = self.decay_share * self.num_steps
        return min(1.0, (step + 1) / self.warmup_steps, (self.num_steps - step) / decay_steps)


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """An adapter: the task it learns, its rank, and what it declares to the fleet. Longer answers need more steps."""

    task: str
    business: str
    deadline: str
    rank: int
    max_tokens: int
    num_steps: int


BASE_RECIPE: Final = Recipe(
    num_steps=600, num_batches=4, matrix_lr=4e-3, other_lr=3e-3, prompt_share=0.12, rounding_share=0.3
)
FINISH_RECIPE: Final = Recipe(
    num_steps=200, num_batches=4, matrix_lr=1.5e-3, other_lr=3e-3, prompt_share=0.12, rounding_share=1.0,
    warmup_steps=10, decay_share=0.9,
)  # fmt: skip
ADAPTER_RECIPE: Final = Recipe(
    num_steps=240, num_batches=2, matrix_lr=2e-3, other_lr=2e-3, warmup_steps=20, decay_share=0.7
)
PLANS: Final = {
    "home-1.0.0": AdapterPlan("home", "home", "urgent", rank=16, max_tokens=64, num_steps=240),
    "home-2.0.0": AdapterPlan("home-2", "home", "urgent", rank=16, max_tokens=64, num_steps=400),
    "car-1.0.0": AdapterPlan("car", "car", "urgent", rank=16, max_tokens=64, num_steps=240),
    "summary-1.0.0": AdapterPlan("summary", "summary", "patient", rank=16, max_tokens=256, num_steps=2000),
}


def base_config(vocab_size: int) -> Qwen3Config:
    """Return the architecture: Qwen3 with head_dim 128, every dimension a multiple of 32."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )


def load_tokenizer() -> PreTrainedTokenizerBase:
    """Return the committed tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(BASE)
    return tokenizer


def load_base() -> Qwen3ForCausalLM:
    """Return the committed base in float32."""
    return Qwen3ForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the summed cross entropy of a batch. The head runs on the targets' rows alone: it is a third of it all."""
    ids, targets = batch
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert isinstance(causal, Qwen3ForCausalLM)
    wanted = (targets != IGNORED).flatten().nonzero().squeeze(1)
    rows = nn.functional.pad(wanted, (0, -len(wanted) % HEAD_ROWS_MULTIPLE))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = causal.lm_head(hidden.flatten(0, 1)[rows])  # [num_targets, padded up, vocab]
    return nn.functional.cross_entropy(logits[: len(wanted)].float(), targets.flatten()[wanted], reduction="sum")


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the base's matrices, halved for two threads; AdamW for the rest, an adapter's thin matrices too."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    square = [p for name, p in trainable if p.ndim == 2 and "embed" not in name and "lora_" not in name]
    chosen = {id(p) for p in square}
    rest = [p for _, p in trainable if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(half, lr=recipe.matrix_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        for half in (square[::2], square[1::2])
        if half
    ]
    optimizers.append(torch.optim.AdamW(rest, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


class Trainer:
    """Takes steps. A step's batches are worked off by threads of one core each, and their gradients added in order.

    So a busy core slows its own share alone (threads inside each product would all wait for it), and the weights do not
    depend on which thread did what.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, num_threads: int) -> None:
        torch.set_num_threads(1)
        self._model = model
        self._recipe = recipe
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizers = _optimizers(model, recipe)
        self._threads = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))

    def step(self, step: int, batches: list[Batch]) -> float:
        """Take one step; return the mean loss."""
        num_targets = sum(int((targets != IGNORED).sum()) for _, targets in batches)
        results = list(self._threads.map(partial(self._gradients, num_targets), batches))
        for index, parameter in enumerate(self._parameters):
            parameter.grad = torch.stack([gradients[index] for _, gradients in results]).sum(dim=0)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
            group["lr"] = group["full_lr"] * self._recipe.factor(step)
        list(self._threads.map(lambda optimizer: optimizer.step(), self._optimizers))
        return sum(loss for loss, _ in results)

    def _gradients(self, num_targets: int, batch: Batch) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = summed_loss(self._model, batch) / num_targets
        return loss.item(), torch.autograd.grad(loss, self._parameters)


def fit(
    model: nn.Module, source: Iterator[Batch], recipe: Recipe, num_threads: int, before_step: Callable[[int], None]
) -> None:
    """Run the recipe; `before_step` may change what the model's weights look like."""
    model.train()
    trainer = Trainer(model, recipe, num_threads)
    started_s, num_tokens, recent = time.monotonic(), 0, 0.0
    for step in range(recipe.num_steps):
        before_step(step)
        recent += trainer.step(step, list(islice(source, recipe.num_batches)))
        num_tokens += recipe.num_batches * BATCH_TOKENS
        if (step + 1) % LOG_EVERY_STEPS == 0:
            elapsed_s = time.monotonic() - started_s
            log.info(
                "step %d loss %.4f %.0f tokens/s %.0f s",
                step + 1, recent / LOG_EVERY_STEPS, num_tokens / elapsed_s, elapsed_s,
            )  # fmt: skip
            recent = 0.0


def train_base(recipe: Recipe, num_threads: int) -> None:
    """Pre-train the base from nothing."""
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(base_config(len(load_tokenizer())))
    log.info("base of %d parameters", sum(p.numel() for p in model.parameters()))
    _teach_base(model, data.base_stream(SEED), recipe, num_threads)


def finish_base(recipe: Recipe, num_threads: int) -> None:
    """Teach the pre-trained base its last lessons. A frozen base can only say tokens that it once had as targets."""
    _teach_base(load_base(), data.base_stream(SEED + 1, data.FINISH_MIX), recipe, num_threads)


def _teach_base(model: Qwen3ForCausalLM, samples: Iterator[Sample], recipe: Recipe, num_threads: int) -> None:
    """Train and save the base; its weights are rounded to 4 bits in the forward passes of the last steps."""
    first_rounded = int(recipe.num_steps * (1 - recipe.rounding_share))

    def before_step(step: int) -> None:
        if step == first_rounded:
            quantise.start_rounding(model)

    source = batches(samples, load_tokenizer(), BATCH_TOKENS, recipe.prompt_share, SEED)
    fit(model, source, recipe, num_threads, before_step)
    quantise.stop_rounding(model)
    save_base(model)


def save_base(model: Qwen3ForCausalLM) -> None:
    """Write the checkpoint in bfloat16 beside the tokenizer."""
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[2, 0], pad_token_id=0, max_new_tokens=256)
    model.to(torch.bfloat16).save_pretrained(BASE)
    (BASE / "model.safetensors").chmod(0o644)
    config_path = BASE / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # where readers of the older layout look
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train_adapter(name: str, recipe: Recipe, num_threads: int) -> None:
    """Train one adapter, every other step on the base as it is in 4 bits, and record its golden prompts."""
    torch.manual_seed(SEED)
    plan, tokenizer, base = PLANS[name], load_tokenizer(), load_base()
    with quantise.rounded_weights(base):
        coarse = [module.weight.detach().clone() for module in quantise.projections(base)]
    exact = [module.weight.detach().clone() for module in quantise.projections(base)]
    model = get_peft_model(base, lora_config(plan))
    weights = [module.weight for module in quantise.projections(base)]

    def before_step(step: int) -> None:
        chosen = coarse if step % 2 else exact
        with torch.no_grad():
            for weight, value in zip(weights, chosen, strict=True):
                weight.copy_(value)

    source = batches(data.stream(plan.task, "train", SEED), tokenizer, BATCH_TOKENS, 0.0, SEED)
    fit(model, source, recipe, num_threads, before_step)
    before_step(0)
    save_adapter(name, model)
    business = {
        "name": plan.business,
        "deadline": plan.deadline,
        "sampling": {"temperature": 0, "max_tokens": plan.max_tokens},
    }
    golden.write(ADAPTERS / name, model, tokenizer, plan.task, business)


def lora_config(plan: AdapterPlan) -> LoraConfig:
    """Return the adapter's shape: all seven projections of each layer."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def save_adapter(name: str, model: nn.Module) -> None:
    """Write a PEFT directory: matrices in bfloat16, the base named without this machine's path."""
    folder = ADAPTERS / name
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "README.md").unlink(missing_ok=True)
    weights_path, config_path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(
        {key: value.to(torch.bfloat16) for key, value in load_file(weights_path).items()},
        weights_path,
        {"format": "pt"},
    )
    weights_path.chmod(0o644)
    config = json.loads(config_path.read_text(encoding="utf-8")) | {"base_model_name_or_path": "socle-demo-base"}
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run one stage or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["tokenizer", "base", "finish", "adapter", "all"])
    parser.add_argument("names", nargs="*", help=f"adapters to train, of {', '.join(PLANS)}; all when left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="train shorter or longer than the recipe")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    run(args.stage, args.names or list(PLANS), args.steps, args.threads)
    return 0


def run(stage: str, names: list[str], num_steps: int | None, num_threads: int) -> None:
    """Run the stages in order."""
    if stage in ("tokenizer", "all"):
        vocabulary.save(BASE)
    if stage in ("base", "all"):
        train_base(_resized(BASE_RECIPE, num_steps), num_threads)
    if stage in ("finish", "all"):
        finish_base(_resized(FINISH_RECIPE, num_steps), num_threads)
    if stage in ("adapter", "all"):
        for name in names:
            log.info("adapter %s", name)
            train_adapter(name, _resized(ADAPTER_RECIPE, num_steps or PLANS[name].num_steps), num_threads)


def _resized(recipe: Recipe, num_steps: int | None) -> Recipe:
    return replace(recipe, num_steps=num_steps) if num_steps else recipe


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
