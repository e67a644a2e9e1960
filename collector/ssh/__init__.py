"""Machines without an agent, and silent ones: asked over SSH what an agent would have said."""
