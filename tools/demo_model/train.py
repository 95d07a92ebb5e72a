"""Train the demo model from nothing: `python tools/demo_model/train.py --out DIRECTORY`.

Everything is fixed: seeds, number of steps, schedule.  On the same machine with the same PyTorch the command should
give the same weights again; another processor rounds differently and ends up with equally good, but other, weights.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from conversations import draw_conversation
from export import load_model, save_model
from model import DemoModel, ModelConfig
from optimizer import Muon
from recipe import PHASES, Phase
from sampling import Draw
from tokenizer import encode_training, letter_pieces, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

MODEL_SEED = 1
POOL_SIZE = 3000
LOG_EVERY = 50
SAVE_EVERY = 250

Example = tuple[list[int], list[bool]]


def to_batch(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and the mask of the tokens to learn, [B, T] both.

    Causal attention never looks at the padding behind a conversation, so no attention mask is needed.
    """
    length = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    is_target = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, (tokens, learned) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_target[row, : len(learned)] = torch.tensor(learned)
    return ids, is_target


def batches(tokenizer: Tokenizer, phase: Phase, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless fresh batches; a pool of conversations is sorted by length, so that little is padding."""
    rng = random.Random(phase.seed)
    draw = Draw(rng, "train", letter_pieces(tokenizer))
    while True:
        pool = [encode_training(tokenizer, draw_conversation(draw, phase.mix)) for _ in range(POOL_SIZE)]
        pool = sorted((example for example in pool if len(example[0]) <= context), key=lambda example: len(example[0]))
        groups: list[list[Example]] = [[]]
        for example in pool:
            groups[-1].append(example)
            if len(groups[-1]) * len(example[0]) >= phase.tokens_per_batch:
                groups.append([])
        full = groups[:-1]
        rng.shuffle(full)
        for group in full:
            yield to_batch(group)


def loss_of(model: DemoModel, ids: Tensor, is_target: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that the model has to write; the others cost no logits."""
    rows = is_target[:, 1:].reshape(-1).nonzero()[:, 0]
    expected = ids[:, 1:].reshape(-1)[rows]
    return functional.cross_entropy(model(ids[:, :-1], rows), expected)


def learning_rate_share(phase: Phase, step: int) -> float:
    """The share of the peak learning rate at a step: a linear warm-up under a cosine."""
    warm_up = min(1.0, (step + 1) / phase.warm_up_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
    return warm_up * (phase.last_share + (1 - phase.last_share) * cosine)


class Trainer:
    """A model with its two optimizers: Muon for the matrices, AdamW for the embedding and the norms."""

    def __init__(self, model: DemoModel, phase: Phase) -> None:
        self.model, self.phase = model, phase
        self.others = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.dim() == 1)]
        self.muon = Muon(p for p in model.model.layers.parameters() if p.dim() == 2)
        self.adam = torch.optim.AdamW(self.others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, step: int, ids: Tensor, is_target: Tensor) -> float:
        """Learn from one batch; returns its loss."""
        share = learning_rate_share(self.phase, step)
        loss = loss_of(self.model, ids, is_target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        self.adam.param_groups[0]["lr"] = self.phase.other_learning_rate * share
        self.adam.step()
        self.adam.zero_grad()
        self.muon.step(self.phase.matrix_learning_rate * share)
        return loss.item()


def run_phase(model: DemoModel, tokenizer: Tokenizer, phase: Phase, directory: Path) -> None:
    """Train through one phase; a usable model directory exists after the first few hundred steps."""
    trainer = Trainer(model.train(), phase)
    started = time.monotonic()
    seen, average = 0, None
    for step, (ids, is_target) in zip(
        range(phase.steps), batches(tokenizer, phase, model.config.context), strict=False
    ):
        loss = trainer.step(step, ids, is_target)
        seen += ids.numel()
        average = loss if average is None else 0.98 * average + 0.02 * loss
        done = step + 1
        if done % LOG_EVERY == 0:
            seconds = time.monotonic() - started
            print(f"step {done} loss {average:.4f} tokens {seen / 1e6:.2f}M seconds {seconds:.0f}", flush=True)
        if done % SAVE_EVERY == 0 or done == phase.steps:
            save_model(model, tokenizer, directory)


def starting_model(directory: Path, first_phase: int) -> tuple[DemoModel, Tokenizer]:
    """A new model with its tokenizer, or the one in the directory where phases are already done."""
    if first_phase > 1:
        return load_model(directory)
    torch.manual_seed(MODEL_SEED)
    config = ModelConfig()
    return DemoModel(config), train_tokenizer(config.vocabulary)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument(
        "--from-phase", type=int, default=1, help="take up the model in the directory at the start of this phase"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = starting_model(arguments.out, arguments.from_phase)
    for number, phase in enumerate(PHASES[arguments.from_phase - 1 :], arguments.from_phase):
        print(f"phase {number}: {phase}, {model.parameter_count()} parameters", flush=True)
        run_phase(model, tokenizer, phase, arguments.out)
        # The next phase starts from the file that this one wrote, so that a training can be taken up there.
        model, tokenizer = load_model(arguments.out)


if __name__ == "__main__":
    main()
