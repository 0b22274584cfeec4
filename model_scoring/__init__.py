"""Stage 3: what a network costs in parameters, operations, bytes and energy."""

from model_scoring.records import Record, Trace
from model_scoring.scoring import Score, score
from model_scoring.storage import Settings
from model_scoring.tracing import trace

__all__ = ["Record", "Score", "Settings", "Trace", "score", "trace"]
