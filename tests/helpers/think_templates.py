"""Chat templates with a thinking mode, each after the way in which one family of models has it."""

from __future__ import annotations

TURNS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '\n' }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}<|assistant|>"

QWEN3 = (
    f"<s>{TURNS}{OPENS}{{% if enable_thinking is defined and enable_thinking is false %}}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Off: an empty thought; on: nothing, the model opens the thought itself."""

QWEN35 = (
    f"<s>{TURNS}{OPENS}{{% if enable_thinking is defined and enable_thinking is false %}}"
    "{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
"""On: the thought is opened."""

DEEPSEEK = (
    "<s>{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    f"{TURNS}{OPENS}{{% if thinking %}}<think>{{% else %}}</think>{{% endif %}}{{% endif %}}"
)
"""Another name, off where it is not given; the tags differ in one character."""

SMOLLM3 = (
    "<s>{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<|system|>Mode: {{ '/think' if enable_thinking else '/no_think' }}\n"
    f"{TURNS}{OPENS}{{% if not enable_thinking %}}{{{{ '<think>\n\n</think>\n' }}}}{{% endif %}}"
    "{% endif %}"
)
"""The system message tells the mode, before the question."""

FLAGS = (
    "<s>{% set off = '/no_think' in messages[0]['content'] %}"
    f"{TURNS}{OPENS}{{% if off %}}{{{{ '<think></think>' }}}}{{% endif %}}{{% endif %}}"
)
"""Only what the system message says counts."""

IGNORED = f"<s>{TURNS}{OPENS}{{% set told = enable_thinking is defined %}}{{% endif %}}"
"""Names the variable, and renders the same."""
