"""What is said of a topology file that cannot be used."""

from __future__ import annotations


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
        super().__init__(_one_line(f"{where}: {refusal.problem}; {refusal.remedy}"))


def _one_line(text: str) -> str:
    """File names and values may hold anything: what would break the line or the terminal is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
