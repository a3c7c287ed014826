"""sparks: see which attention heads post-training brings to life, while it trains.

    from sparks import SparksCallback
    trainer = SFTTrainer(..., callbacks=[SparksCallback(probes="probes.jsonl")])
    trainer.train()

then `sparks timeline RUN` and `sparks report RUN`. Everything below can be imported from here;
names are loaded on first use, so that reading a run needs neither torch nor a trainer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparks.version import __version__

if TYPE_CHECKING:
    from sparks.arguments import SparksArguments
    from sparks.attribution import edge_attribution, estimate_memory, node_attribution
    from sparks.calibration import CalibrationConfig
    from sparks.callback import SparksCallback
    from sparks.circuit import Circuit, extract_circuit
    from sparks.comparison import Comparison
    from sparks.config import SnapshotConfig
    from sparks.effects.records import EffectTable
    from sparks.effects.study import read_study
    from sparks.errors import SparksError
    from sparks.evaluation.history import EvaluationHistory
    from sparks.evaluation.records import Task, TaskProblem
    from sparks.evaluation.results import Evaluation
    from sparks.evaluation.run import evaluate
    from sparks.evaluation.settings import EvaluationConfig
    from sparks.evaluation.tasks import load_task
    from sparks.export import export_model
    from sparks.faithfulness.measuring import faithfulness_curves
    from sparks.faithfulness.mib import write_mib
    from sparks.faithfulness.results import FaithfulnessCurves
    from sparks.faithfulness.settings import CurveConfig
    from sparks.figures import write_figures
    from sparks.graph import Graph
    from sparks.head_means import HeadMeans, measure_head_means
    from sparks.head_rules import HeadSet, matched_random, select_heads
    from sparks.heads import parse_heads
    from sparks.interventions import intervene
    from sparks.null_bands import NullBand
    from sparks.nulls import null_of
    from sparks.patching import patch_edges
    from sparks.probe_building import ProbeBuildingConfig, build_probes
    from sparks.probes import Probe, ProbeSet
    from sparks.regimes import Regime
    from sparks.replay import replay_checkpoints
    from sparks.report import write_report
    from sparks.scores import EdgeScores, NodeScores
    from sparks.snapshot import Snapshot
    from sparks.store import RunStore
    from sparks.think.comparison import ThinkComparison
    from sparks.think.config import ThinkConfig
    from sparks.think.measuring import measure_think
    from sparks.timeline import Timeline
    from sparks.token_pairs import TokenizedProbes, TokenPair
    from sparks.track import take_snapshot

_HOMES = {
    "CalibrationConfig": "calibration",
    "Circuit": "circuit",
    "Comparison": "comparison",
    "CurveConfig": "faithfulness.settings",
    "EdgeScores": "scores",
    "EffectTable": "effects.records",
    "Evaluation": "evaluation.results",
    "EvaluationConfig": "evaluation.settings",
    "EvaluationHistory": "evaluation.history",
    "FaithfulnessCurves": "faithfulness.results",
    "Graph": "graph",
    "HeadMeans": "head_means",
    "HeadSet": "head_rules",
    "NodeScores": "scores",
    "NullBand": "null_bands",
    "Probe": "probes",
    "ProbeBuildingConfig": "probe_building",
    "ProbeSet": "probes",
    "Regime": "regimes",
    "RunStore": "store",
    "Snapshot": "snapshot",
    "SnapshotConfig": "config",
    "SparksArguments": "arguments",
    "SparksCallback": "callback",
    "SparksError": "errors",
    "Task": "evaluation.records",
    "TaskProblem": "evaluation.records",
    "ThinkComparison": "think.comparison",
    "ThinkConfig": "think.config",
    "Timeline": "timeline",
    "TokenPair": "token_pairs",
    "TokenizedProbes": "token_pairs",
    "build_probes": "probe_building",
    "edge_attribution": "attribution",
    "estimate_memory": "attribution",
    "evaluate": "evaluation.run",
    "export_model": "export",
    "extract_circuit": "circuit",
    "faithfulness_curves": "faithfulness.measuring",
    "intervene": "interventions",
    "load_task": "evaluation.tasks",
    "matched_random": "head_rules",
    "measure_head_means": "head_means",
    "measure_think": "think.measuring",
    "node_attribution": "attribution",
    "null_of": "nulls",
    "parse_heads": "heads",
    "patch_edges": "patching",
    "read_study": "effects.study",
    "replay_checkpoints": "replay",
    "select_heads": "head_rules",
    "take_snapshot": "track",
    "write_figures": "figures",
    "write_mib": "faithfulness.mib",
    "write_report": "report",
}

__all__ = [
    "CalibrationConfig",
    "Circuit",
    "Comparison",
    "CurveConfig",
    "EdgeScores",
    "EffectTable",
    "Evaluation",
    "EvaluationConfig",
    "EvaluationHistory",
    "FaithfulnessCurves",
    "Graph",
    "HeadMeans",
    "HeadSet",
    "NodeScores",
    "NullBand",
    "Probe",
    "ProbeBuildingConfig",
    "ProbeSet",
    "Regime",
    "RunStore",
    "Snapshot",
    "SnapshotConfig",
    "SparksArguments",
    "SparksCallback",
    "SparksError",
    "Task",
    "TaskProblem",
    "ThinkComparison",
    "ThinkConfig",
    "Timeline",
    "TokenPair",
    "TokenizedProbes",
    "__version__",
    "build_probes",
    "edge_attribution",
    "estimate_memory",
    "evaluate",
    "export_model",
    "extract_circuit",
    "faithfulness_curves",
    "intervene",
    "load_task",
    "matched_random",
    "measure_head_means",
    "measure_think",
    "node_attribution",
    "null_of",
    "parse_heads",
    "patch_edges",
    "read_study",
    "replay_checkpoints",
    "select_heads",
    "take_snapshot",
    "write_figures",
    "write_mib",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparks' has no attribute {name!r}")
    return getattr(import_module(f"sparks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
