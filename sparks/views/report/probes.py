"""What was measured, in texts: a few probes with their two beginnings, shortened.

The texts are hostile input: each is one line without control characters (`clean_text`), and the
page shows it through `textContent` alone.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from sparks.probes.probes import Message, Probe
from sparks.timeline.timeline import Timeline
from sparks.views.report.words import clean_text

MOST_PROBES, MOST_CONTROLS = 16, 4
"""Probes that are shown, of those that were counted and of the control probes beside them."""
MOST_BYTES = 20_000
"""Of all texts together, as JSON."""
_PROMPT_ENDS, _BEGINNING = (140, 160), 200
"""Characters of the begin and of the end of a prompt, and of a beginning of an answer."""
_MOST_READ = 1_000_000


def probe_data(timeline: Timeline) -> dict[str, Any]:
    """What the page is given.

    Returns:
        `texts`: None where no texts are kept, or not those of all probes; else `shown` (prompt,
        clean, corrupted, group of each) and `groups` (name and number of probes of each, those
        that were counted first).
    """
    kept = {probe.id: probe for probe in timeline.probes or ()}
    first = timeline.snapshots[0]
    if any(name not in kept for name in first.probe_ids):
        return {"texts": None}
    counted = [kept[name] for name in timeline.probe_ids]
    controls: list[Probe] = []
    if timeline.control is not None:
        controls = [kept[name] for name in timeline.control.probe_ids]
    shown, size = [], 0
    for probe in (*counted[:MOST_PROBES], *controls[:MOST_CONTROLS]):
        texts = _shortened(probe)
        size += len(json.dumps(texts))
        if size > MOST_BYTES:
            break
        shown.append(texts)
    numbers = Counter(clean_text(probe.group, 60) for probe in (*counted, *controls))
    return {"texts": {"shown": shown, "groups": list(map(list, numbers.items()))}}


def _shortened(probe: Probe) -> list[str]:
    begin, end = _PROMPT_ENDS
    prompt = _in_a_line(probe.prompt)
    if len(prompt) > begin + end:
        prompt = f"{prompt[:begin]} \N{HORIZONTAL ELLIPSIS} {prompt[-end:]}"
    beginnings = (clean_text(text, _BEGINNING) for text in (probe.clean, probe.corrupted))
    return [prompt, *beginnings, clean_text(probe.group, 60)]


def _in_a_line(prompt: str | list[Message]) -> str:
    """Messages one after another, each behind its role."""
    if isinstance(prompt, str):
        return clean_text(prompt, _MOST_READ)
    return clean_text(" ".join(f"{item['role']}: {item['content']}" for item in prompt), _MOST_READ)
