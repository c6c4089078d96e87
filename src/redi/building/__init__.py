"""Owns building a knowledge base: prompts, units of work, resume and runners."""
