"""Owns the bundled text-to-image model (scenes, training, weights, evaluator); must not know knowledge bases."""
