"""sparks: see which attention heads post-training brings to life, while it trains.

    from sparks import SparksCallback
    trainer = SFTTrainer(..., callbacks=[SparksCallback()])
    trainer.train()

then `sparks timeline RUN` and `sparks report RUN`. Everything below can be imported from here;
names are loaded on first use, so that reading a run needs neither torch nor a trainer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparks.ground.version import __version__

if TYPE_CHECKING:
    from sparks.attribution.circuit import Circuit, extract_circuit
    from sparks.attribution.eap_ig import edge_attribution, estimate_memory, node_attribution
    from sparks.attribution.faithfulness.measuring import faithfulness_curves
    from sparks.attribution.faithfulness.mib import write_mib
    from sparks.attribution.faithfulness.results import FaithfulnessCurves
    from sparks.attribution.faithfulness.settings import CurveConfig
    from sparks.attribution.patching import patch_edges
    from sparks.attribution.scores import EdgeScores, NodeScores
    from sparks.attribution.snapshot import Snapshot
    from sparks.attribution.take_snapshot import take_snapshot
    from sparks.effects.choose_heads import HeadSet, matched_random, select_heads
    from sparks.effects.export import export_model
    from sparks.effects.head_means import HeadMeans, measure_head_means
    from sparks.effects.interventions import intervene
    from sparks.effects.records import EffectTable
    from sparks.effects.study import read_study
    from sparks.evaluation.records import Task, TaskProblem
    from sparks.evaluation.results import Evaluation
    from sparks.evaluation.run import evaluate
    from sparks.evaluation.settings import EvaluationConfig
    from sparks.evaluation.tasks import load_task
    from sparks.ground.config import SnapshotConfig
    from sparks.ground.errors import SparksError
    from sparks.models.graph import Graph
    from sparks.models.heads import parse_heads
    from sparks.probes.building import build_probes
    from sparks.probes.pairs import TokenizedProbes, TokenPair
    from sparks.probes.probes import Probe, ProbeSet
    from sparks.probes.settings import ProbeBuildingConfig
    from sparks.runs.null_band import NullBand
    from sparks.runs.run_folder import RunStore
    from sparks.thinking.comparison import ThinkComparison
    from sparks.thinking.measuring import measure_think
    from sparks.thinking.settings import ThinkConfig
    from sparks.timeline.answers import EvaluationHistory
    from sparks.timeline.comparison import Comparison
    from sparks.timeline.growth.settings import GrowthConfig
    from sparks.timeline.nulls import null_of
    from sparks.timeline.regimes.regime import Regime
    from sparks.timeline.timeline import Timeline
    from sparks.training.arguments import SparksArguments
    from sparks.training.callback import SparksCallback
    from sparks.training.replay import replay_checkpoints
    from sparks.views.figures import write_figures
    from sparks.views.report import write_report

_HOMES = {
    "Circuit": "attribution.circuit",
    "Comparison": "timeline.comparison",
    "CurveConfig": "attribution.faithfulness.settings",
    "EdgeScores": "attribution.scores",
    "EffectTable": "effects.records",
    "Evaluation": "evaluation.results",
    "EvaluationConfig": "evaluation.settings",
    "EvaluationHistory": "timeline.answers",
    "FaithfulnessCurves": "attribution.faithfulness.results",
    "Graph": "models.graph",
    "GrowthConfig": "timeline.growth.settings",
    "HeadMeans": "effects.head_means",
    "HeadSet": "effects.choose_heads",
    "NodeScores": "attribution.scores",
    "NullBand": "runs.null_band",
    "Probe": "probes.probes",
    "ProbeBuildingConfig": "probes.settings",
    "ProbeSet": "probes.probes",
    "Regime": "timeline.regimes.regime",
    "RunStore": "runs.run_folder",
    "Snapshot": "attribution.snapshot",
    "SnapshotConfig": "ground.config",
    "SparksArguments": "training.arguments",
    "SparksCallback": "training.callback",
    "SparksError": "ground.errors",
    "Task": "evaluation.records",
    "TaskProblem": "evaluation.records",
    "ThinkComparison": "thinking.comparison",
    "ThinkConfig": "thinking.settings",
    "Timeline": "timeline.timeline",
    "TokenPair": "probes.pairs",
    "TokenizedProbes": "probes.pairs",
    "build_probes": "probes.building",
    "edge_attribution": "attribution.eap_ig",
    "estimate_memory": "attribution.eap_ig",
    "evaluate": "evaluation.run",
    "export_model": "effects.export",
    "extract_circuit": "attribution.circuit",
    "faithfulness_curves": "attribution.faithfulness.measuring",
    "intervene": "effects.interventions",
    "load_task": "evaluation.tasks",
    "matched_random": "effects.choose_heads",
    "measure_head_means": "effects.head_means",
    "measure_think": "thinking.measuring",
    "node_attribution": "attribution.eap_ig",
    "null_of": "timeline.nulls",
    "parse_heads": "models.heads",
    "patch_edges": "attribution.patching",
    "read_study": "effects.study",
    "replay_checkpoints": "training.replay",
    "select_heads": "effects.choose_heads",
    "take_snapshot": "attribution.take_snapshot",
    "write_figures": "views.figures",
    "write_mib": "attribution.faithfulness.mib",
    "write_report": "views.report",
}

__all__ = [
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
    "GrowthConfig",
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
