"""What the agent answers to mounts, to other agents and to operators."""
