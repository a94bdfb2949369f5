"""What keeps the hub's processes alive together on one machine, and ends them together."""
