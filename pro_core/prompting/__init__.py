"""What a policy reads beside its prompt: weights, scores or levels."""
