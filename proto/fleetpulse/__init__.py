"""What the agent and the collector share: the domain model, the wire and its conversion."""

__version__ = "0.3.0.dev0"
