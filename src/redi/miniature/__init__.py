"""Owns the bundled text-to-image model: scenes, captions, training, weights, evaluator; must not know the rest of redi."""
