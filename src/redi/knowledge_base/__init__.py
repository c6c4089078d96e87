"""Owns knowledge bases: recorded trajectories in a folder, found by noise and key; must not know Diffusers."""

from redi.knowledge_base.base import KnowledgeBase
from redi.knowledge_base.entries import Entry, EntryBatch, Neighbors, Refusal, VerifyReport
from redi.knowledge_base.hashes import compare_files, read_hashes, write_hashes
from redi.knowledge_base.index import ExactIndex, Index
from redi.knowledge_base.ledger import UnitRecord
from redi.knowledge_base.manifest import Difference, Manifest, describe_differences, differences
from redi.knowledge_base.noise_bank import NoiseBank

__all__ = [
    "Difference",
    "Entry",
    "EntryBatch",
    "ExactIndex",
    "Index",
    "KnowledgeBase",
    "Manifest",
    "Neighbors",
    "NoiseBank",
    "Refusal",
    "UnitRecord",
    "VerifyReport",
    "compare_files",
    "describe_differences",
    "differences",
    "read_hashes",
    "write_hashes",
]
