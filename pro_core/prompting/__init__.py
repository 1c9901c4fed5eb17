"""What stands in front of a prompt for a policy that reads weights, scores or levels."""
