"""What this mount may keep of names, attributes and leases, and how it gives that back. Asks the manager, knows no kernel."""
