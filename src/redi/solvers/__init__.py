"""Owns what redi knows about each Diffusers scheduler; must not know pipelines, policies or knowledge bases.

``facts_for(scheduler)`` says how a scheduler goes on after a jump, or refuses it; ``register`` admits one of yours.
"""

from redi.solvers.admitted import facts_for
from redi.solvers.facts import MultistepFacts, Restart, SolverFacts, TwoCallFacts, latents_of, twin
from redi.solvers.registering import register

__all__ = ["MultistepFacts", "Restart", "SolverFacts", "TwoCallFacts", "facts_for", "latents_of", "register", "twin"]
