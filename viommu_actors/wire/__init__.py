"""The wires between processes: message classes, their codec, sockets and counters."""
