"""What the agent costs, beside what cannot be avoided: run by ``scripts/bench``."""
