"""The volumes of this server: opened, watched, and given up while their disk fails."""
