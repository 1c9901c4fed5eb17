"""Where the truth is known: Theorem 5.1, planted weights, and policies trained with exact expectations."""
