"""What is said of a topology file that cannot be used."""

from __future__ import annotations

from viommu_actors.text import printable


class Refusal(Exception):
    """One reason to refuse a topology: the key it is about, what is wrong, how to mend it."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(key, problem, remedy)
        self.key = key
        self.problem = problem
        self.remedy = remedy


class TopologyError(Exception):
    """A refusal together with its file. Its text is one line; the command ends with status 2."""

    def __init__(self, file: str, refusal: Refusal) -> None:
        self.file = file
        self.key = refusal.key
        self.problem = refusal.problem
        self.remedy = refusal.remedy
        where = f"{file}: {refusal.key}" if refusal.key else file
        # File names and values may hold anything.
        super().__init__(printable(f"{where}: {refusal.problem}; {refusal.remedy}"))
