"""The processes: a loop each, where the pure cores meet the wires."""
