"""Greedy generation with the PyTorch model: the reference that the evaluation compares engines with."""

import torch
from model import DemoModel, KeyValueCache
from torch import Tensor

BATCH_SIZE = 100


def _left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and a validity mask, [B, T] both; rotary positions are relative, so padding in front changes nothing."""
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    valid = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        valid[row, length - len(prompt) :] = True
    return ids, valid


@torch.no_grad()
def _generate_batch(model: DemoModel, prompts: list[list[int]], limit: int, end_id: int) -> list[list[int]]:
    ids, valid = _left_padded(prompts)
    length = ids.shape[1]
    limit = min(limit, model.config.context - length)
    caches = [KeyValueCache() for _ in range(model.config.layers)]
    # A padding row may see itself, so that its softmax is over something; nobody reads its result.
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (causal & valid[:, None, :]) | torch.eye(length, dtype=torch.bool)
    logits = model(ids, mask=mask[:, None], caches=caches)[:, -1]
    finished = torch.zeros(len(prompts), dtype=torch.bool)
    steps: list[Tensor] = []
    for position in range(length, length + limit):
        token = torch.where(finished, end_id, logits.argmax(-1))
        finished |= token == end_id
        steps.append(token)
        if finished.all() or position + 1 == length + limit:
            break
        valid = torch.cat((valid, torch.ones(len(prompts), 1, dtype=torch.bool)), 1)
        logits = model(token[:, None], mask=valid[:, None, None], caches=caches, start=position)[:, -1]
    rows = torch.stack(steps, 1).tolist()
    return [row[: row.index(end_id)] if end_id in row else row for row in rows]


def generate_greedily(model: DemoModel, prompts: list[list[int]], limit: int, end_id: int) -> list[list[int]]:
    """The most likely continuation of each prompt, up to `limit` tokens, without the end token."""
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), BATCH_SIZE):
        indices = by_length[start : start + BATCH_SIZE]
        batch = _generate_batch(model, [prompts[index] for index in indices], limit, end_id)
        for index, answer in zip(indices, batch, strict=True):
            answers[index] = answer
    return answers
