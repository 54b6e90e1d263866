"""The operators: how a message leaves, and how news of it comes back."""
