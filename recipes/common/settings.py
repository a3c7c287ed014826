"""Settings that recipes have beside those of their trainer, and the parser that reads them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from sparks.ground.errors import SparksError
from sparks.probes.problems import one_line


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class RecipeArguments:
    """Data to train on, and how probes are built where their file is not there."""

    dataset_name: str | None = _option(
        None, "a JSONL file, or a data set of the Hugging Face hub; columns: recipes/common/data.py"
    )
    dataset_config: str | None = _option(None, "name of the subset of a hub data set")
    dataset_train_split: str = _option("train", "split to train on")
    max_train_rows: int | None = _option(None, "train on the first so many rows")
    system_prompt: str | None = _option(
        None,
        "system message of every prompt, in place of the data's own; `paper` stands for one that "
        "asks for the paper's <think> and <answer>",
    )
    probe_data: str | None = _option(None, "problems for probes, as dataset_name")
    probe_config: str | None = _option(None, "name of the subset of probe_data")
    probe_split: str = _option("train", "split of probe_data")
    probe_count: int = _option(64, "probes to build; with 16, hardly any change of a head is found")
    control_count: int = _option(
        12, "control probes behind them, of what is not trained: copying and plain recall"
    )
    control_probes: str | None = _option(
        None, "JSONL file of control probes, in place of the built-in ones"
    )
    probe_max_new_tokens: int = _option(32, "tokens of a beginning")
    probe_clean_model: str | None = _option(
        None, "a trained model whose beginnings are the clean ones, not the reference answers"
    )


class RecipeParser(TrlParser):
    """TRL's parser, which tells a mistake in one line."""

    def __init__(self, kinds: Sequence[Any], **settings: Any) -> None:
        super().__init__(kinds, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Stop with exit code 2."""
        raise SparksError(f"{message} (help: --help)")

    def read(self, arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The settings of the command line and of the file that `--config` names.

        Raises:
            SparksError: the file cannot be read, a key is unknown, or a value does not fit.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        if given[-1:] == ["--config"]:
            raise SparksError("--config needs a YAML file")
        try:
            return self.parse_args_and_config(given)
        except SparksError:
            raise
        except (ValueError, TypeError, OSError, ImportError, yaml.YAMLError) as error:
            raise SparksError(f"settings: {one_line(error)}") from error


def run(recipe: Callable[[], None]) -> None:
    """Run a recipe; a mistake is told in one line, with exit code 2."""
    try:
        recipe()
    except SparksError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
