"""Problems with worked solutions, for the quickstart: no network, no model.

    python recipes/build_reasoning_data.py                  # .cache/reasoning, a few seconds
    python recipes/build_reasoning_data.py --output FOLDER --train 600 --problems 72 --seed 0

Problems come from reasoning-gym's generators; the steps of each solution are worked out here from
the numbers of the problem, and reasoning-gym's own scorer must give every solution 1.0.

    train.jsonl      `prompt` (system and user message) and `completion` (assistant message)
    problems.jsonl   the same and `group` (the task), for `sparks probes`; other questions
    held-out.jsonl   the same, others again: do calls hold on probes that made none of them?
    evaluation.jsonl `prompt` and `answer`, for `sparks evaluate`; others again, answers are numbers
    sums.jsonl       the same: sums of two digits, which a model of this size can learn to solve
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparks.ground.files import write_atomically

DEFAULT_OUTPUT = Path(".cache/reasoning")

# The form that the paper's system prompt asks for.
SYSTEM_PROMPT = (
    "Solve the problem step by step. Write your reasoning between <think> and </think>, then the "
    "final answer alone between <answer> and </answer>:\n"
    "<think>\n...\n</think>\n<answer>\n...\n</answer>"
)

Work = tuple[list[str], str]
"""Lines of reasoning, and the answer."""


# -- worked solutions, each from the metadata of its problem -------------------------------------


def chain_sum(metadata: Mapping[str, Any]) -> Work:
    """Add and subtract from left to right."""
    first, *rest = metadata["expression"].split()
    total = int(first)
    lines = [f"Okay, I need to work out {metadata['expression']} from left to right."]
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {new}.")
        total = new
    return lines, str(total)


def products(metadata: Mapping[str, Any]) -> Work:
    """Multiply by the second factor a digit at a time."""
    left, right = (int(factor) for factor in metadata["expression"].split(" * "))
    parts = [
        int(digit) * 10**place for place, digit in enumerate(reversed(str(right))) if digit != "0"
    ][::-1]
    lines = [f"Okay, I need to multiply {left} by {right}."]
    if len(parts) > 1:
        lines.append(f"I split {right} into {' + '.join(map(str, parts))}.")
    lines += [f"{left} * {part} = {left * part}." for part in parts]
    total = 0
    for part in parts:
        if total:
            lines.append(f"{total} + {left * part} = {total + left * part}.")
        total += left * part
    return lines, str(total)


def gcd(metadata: Mapping[str, Any]) -> Work:
    """Euclid's algorithm."""
    a, b = metadata["numbers"]
    lines = [f"Okay, I need the greatest common divisor of {a} and {b}. I divide with remainder."]
    steps, divisor = _euclid(a, b)
    return [*lines, *steps, f"The last divisor is {divisor}."], str(divisor)


def lcm(metadata: Mapping[str, Any]) -> Work:
    """The product over the greatest common divisor."""
    a, b = metadata["numbers"]
    lines = [
        f"Okay, I need the least common multiple of {a} and {b}. "
        f"It is their product divided by their greatest common divisor."
    ]
    steps, divisor = _euclid(a, b)
    lines += [*steps, f"The greatest common divisor is {divisor}.", f"{a} * {b} = {a * b}."]
    result = a * b // divisor
    return [*lines, f"{a * b} / {divisor} = {result}."], str(result)


def simple_equations(metadata: Mapping[str, Any]) -> Work | None:
    """Bring the constant to the right, divide by the coefficient; None where none is left."""
    name = metadata["variable"]
    left, right = metadata["equation"].split(" = ")
    if name not in left:  # the generator can multiply the variable by 0
        return None
    lines = [f"Okay, I need to solve {metadata['equation']} for {name}."]
    coefficient, constant, value = 0, 0, int(right)
    for term in left.replace(" - ", " + -").split(" + "):
        if term.endswith(name):
            factor = term.removesuffix(name).removesuffix("*")
            coefficient += int(factor + "1" if factor in ("", "-") else factor)
        else:
            constant += int(term)
    if constant:
        verb = "Subtract" if constant > 0 else "Add"
        sign = "-" if constant > 0 else "+"
        new = value - constant
        lines.append(
            f"{verb} {abs(constant)} on both sides: "
            f"{coefficient}*{name} = {value} {sign} {abs(constant)} = {new}."
        )
        value = new
    if coefficient != 1:
        lines.append(
            f"Divide both sides by {coefficient}: {name} = {value} / {coefficient} = "
            f"{value // coefficient}."
        )
    return lines, str(value // coefficient)


def prime_factorization(metadata: Mapping[str, Any]) -> Work:
    """Trial division, the smallest prime first."""
    number = rest = metadata["number"]
    lines = [f"Okay, I need the prime factors of {number}. I try the smallest primes first."]
    factors = []
    divisor = 2
    while divisor * divisor <= rest:
        if rest % divisor:
            divisor += 1
            continue
        lines.append(f"{rest} / {divisor} = {rest // divisor}.")
        factors.append(divisor)
        rest //= divisor
    factors.append(rest)
    return [*lines, f"{rest} is prime."], " × ".join(map(str, factors))


def letter_counting(metadata: Mapping[str, Any]) -> Work:
    """Count word by word."""
    letter, words = metadata["target_letter"], metadata["span"]
    lines = [f'Okay, I need to count the letter "{letter}" word by word.']
    total = 0
    for word in words:
        found = word.lower().count(letter)
        total += found
        lines.append(f"{word}: {found}, so {total} so far.")
    return lines, str(total)


def _euclid(a: int, b: int) -> tuple[list[str], int]:
    lines = []
    a, b = max(a, b), min(a, b)
    while b:
        lines.append(f"{a} = {a // b} * {b} + {a % b}.")
        a, b = b, a % b
    return lines, a


# Task (as reasoning-gym names it), how it is worked, and the size of its problems: small numbers.
TASKS: dict[str, tuple[Callable[[Mapping[str, Any]], Work | None], dict[str, Any]]] = {
    "chain_sum": (chain_sum, {"max_terms": 4, "max_digits": 3}),
    "gcd": (gcd, {"max_value": 500}),
    "simple_equations": (simple_equations, {"max_terms": 3, "max_value": 50}),
    "products": (products, {"max_digits": 3}),
    "prime_factorization": (prime_factorization, {"max_value": 5000}),
    "lcm": (lcm, {"max_value": 60}),
    "letter_counting": (letter_counting, {"max_words": 10}),
}


# -- records -----------------------------------------------------------------------------------

EASY: dict[str, Any] = {"max_terms": 2, "min_digits": 1, "max_digits": 1}
"""Settings of `chain_sum` for sums.jsonl."""

NO_NUMBER = "prime_factorization"
"""Its answers are no single numbers: read as mathematics, 12 would pass for 2 x 2 x 3."""


def completion_text(lines: list[str], answer: str) -> str:
    """The assistant's message."""
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n<answer>\n{answer}\n</answer>"


def answer_in(text: str) -> str | None:
    """The answer in an assistant's message; None where there is none."""
    match = re.search(r"<answer>\s*(.*?)\s*</answer>", text, flags=re.DOTALL)
    return match[1] if match else None


def task_records(
    task: str, seed: int, limit: int, own: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Records of one task, enough for `limit`: no question twice, each solution scored 1.0."""
    import reasoning_gym

    work, settings = TASKS[task]
    settings = settings if own is None else own
    # Room for repeated questions: small numbers meet again.
    problems = reasoning_gym.create_dataset(task, seed=seed, size=20 * limit, **settings)
    seen: set[str] = set()
    for problem in problems:
        question = problem["question"].strip()
        if question in seen:
            continue
        seen.add(question)
        if (worked := work(problem["metadata"])) is None:
            continue
        text = completion_text(*worked)
        score = problems.score_answer(answer_in(text), problem)
        if score != 1.0:
            sys.exit(
                f"build_reasoning_data: {task}: scored {score}, not 1.0: {question!r}, {text!r}"
            )
        yield {
            "prompt": [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": question},
            ],
            "completion": [{"role": "assistant", "content": text}],
            "group": task,
        }


def build(
    train: int, problems: int, evaluation: int, seed: int
) -> tuple[list[dict], list[dict], list[dict]]:
    """Records to train on, for probes and to evaluate on; the tasks take turns in each."""
    wanted = train + problems + evaluation
    # Behind the others, and one task more than is kept.
    limit = -(-(train + problems) // len(TASKS)) + -(-evaluation // (len(TASKS) - 1)) + 1
    tasks = [task_records(task, seed, limit) for task in TASKS]
    turns = itertools.chain.from_iterable(zip(*tasks, strict=False))
    records = list(itertools.islice(turns, train + problems))
    numbers = (to_evaluate(record) for record in turns if record["group"] != NO_NUMBER)
    kept = list(itertools.islice(numbers, evaluation))
    if len(records) + len(kept) < wanted:
        sys.exit(
            f"build_reasoning_data: only {len(records) + len(kept)} different problems, "
            f"{wanted} wanted: lower --train, --problems or --evaluation"
        )
    return records[problems:], records[:problems], kept


def sums(count: int, seed: int) -> list[dict[str, Any]]:
    """At most `count` sums of two digits, to evaluate on."""
    found = task_records("chain_sum", seed, count, EASY)
    return [to_evaluate(record) for record in itertools.islice(found, count)]


def to_evaluate(record: dict[str, Any]) -> dict[str, Any]:
    """The problem with its answer alone."""
    answer = answer_in(record["completion"][0]["content"])
    return {"prompt": record["prompt"], "answer": answer, "group": record["group"]}


def to_jsonl(records: list[dict], *, without: tuple[str, ...] = ()) -> str:
    """The text of a JSONL file."""
    kept = ({k: v for k, v in record.items() if k not in without} for record in records)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write (default: %(default)s)"
    )
    for name, default, text in (
        ("--train", 600, "records to train on"),
        ("--problems", 72, "problems for probes"),
        ("--held-out", 72, "problems for held-out probes"),
        ("--evaluation", 120, "problems to evaluate on"),
        ("--seed", 0, "seed of the problems"),
    ):
        parser.add_argument(name, type=int, default=default, help=text + " (default: %(default)s)")
    args = parser.parse_args()
    if min(args.train, args.problems, args.held_out, args.evaluation) < 1:
        parser.error("--train, --problems, --held-out and --evaluation must be at least 1")
    started = time.perf_counter()
    count = args.problems
    train, asked, evaluation = build(args.train, count + args.held_out, args.evaluation, args.seed)
    write_atomically(args.output / "train.jsonl", to_jsonl(train, without=("group",)))
    write_atomically(args.output / "evaluation.jsonl", to_jsonl(evaluation))
    write_atomically(args.output / "sums.jsonl", to_jsonl(sums(args.evaluation, args.seed)))
    write_atomically(args.output / "problems.jsonl", to_jsonl(asked[:count]))
    write_atomically(args.output / "held-out.jsonl", to_jsonl(asked[count:]))
    print(
        f"{args.output}: train.jsonl with {len(train)}, problems.jsonl with {count}, "
        f"held-out.jsonl with {args.held_out}, evaluation.jsonl with {len(evaluation)} records, "
        f"sums.jsonl; every solution scored 1.0, in {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
