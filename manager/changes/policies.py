"""What follows when another policy may be in force somewhere."""

from manager.catalog.store import Transaction
from manager.memory.state import State


def policies_changed(tx: Transaction, state: State) -> None:
    """A policy was set or taken away, or a directory moved below others: what is remembered of policies may be wrong."""
    # Now, for the rest of this body; and after its commit, for what was asked before it.
    state.policies.clear()
    tx.after(state.policies.clear)
