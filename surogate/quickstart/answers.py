"""Answers of a model to many short questions at once.

What is not here: finding the model (models/inference.py) and judging (score.py). The one idea: greedy, in batches
padded on the left, so that the same model always gives the same replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surogate.models.inference import FoundModel

MAX_NEW_TOKENS = 24
"""Room for the sentence that an untrained model wraps around its answer."""
BATCH_SIZE = 32


def answer_all(found: FoundModel, questions: Sequence[str]) -> list[str]:
    """Ask every question in a conversation of its own and return the replies in order."""
    from surogate.data.chat import ChatRenderer
    from surogate.data.tokenizers import load_tokenizer
    from surogate.models.inference import load_for_inference

    tokenizer = load_tokenizer(found.tokenizer, found.trust_remote_code)
    renderer = ChatRenderer(tokenizer, found.chat)
    model = load_for_inference(found)
    replies: list[str] = []
    for start in range(0, len(questions), BATCH_SIZE):
        chunk = questions[start : start + BATCH_SIZE]
        prompts = [renderer.prompt_ids([{"role": "user", "content": question}]) for question in chunk]
        new_ids = _continue(model, tokenizer, prompts, renderer.end_token_id())
        replies += tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def _continue(model: Any, tokenizer: Any, prompts: list[list[int]], end_token_id: int | None) -> Any:
    import torch
    from transformers import GenerationConfig

    # Padding is told apart by the attention mask, so pad and end may be the same token.
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    model.generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS, eos_token_id=end_token_id, pad_token_id=tokenizer.pad_token_id, use_cache=True
    )
    with torch.inference_mode():
        output = model.generate(**batch)
    return output[:, batch["input_ids"].shape[1] :]
