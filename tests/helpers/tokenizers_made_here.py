"""Tiny tokenizers, built in a moment from one page of text."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = """Okay, so I have this problem. To determine the sum of two numbers, we add them.
<think>
Okay, I need to find the answer. The answer is 4.
</think>
What is 2 + 2? What is 3 + 5? The sum of 3 and 5 is 8. Let me think about this step by step.
"""

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]

CHAT = (
    "<s>{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHAT_THINKING = CHAT.replace("'<|assistant|>'", "'<|assistant|><think>\n'")
CHAT_WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHAT
)


def byte_level_tokenizer(
    *, chat: str | None = CHAT, bos: bool = False, eos: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `bos` and `eos` say what a plain call puts around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    around = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return _wrapped(backend, chat)


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with `▁` for a space, whose decoder drops the space that opens a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return _wrapped(backend, None)


def _wrapped(backend: Tokenizer, chat: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = chat
    return tokenizer
