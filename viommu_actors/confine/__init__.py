"""Confinement of a process by the operating system: what it keeps (policy) apart from how that is enforced."""
