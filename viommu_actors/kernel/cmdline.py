"""The kernel command line: words, most of the form `key=value`."""

from __future__ import annotations


class CommandLine:
    """A parsed command line. Where a key comes more than once, the last one counts, as in Linux."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self._options: dict[str, list[str]] = {}
        self.flags: set[str] = set()
        for word in self.text.split():
            key, equals, value = word.partition("=")
            if equals:
                self._options.setdefault(_normal(key), []).append(value)
            else:
                self.flags.add(_normal(key))

    def get(self, key: str, default: str = "") -> str:
        """The value of the last `key=...`."""
        found = self._options.get(_normal(key))
        return found[-1] if found else default

    def values(self, key: str) -> list[str]:
        """The comma-separated parts of every `key=...`, in order, without empty ones."""
        return [part for value in self._options.get(_normal(key), []) for part in value.split(",") if part]

    def enabled(self, key: str, default: bool = False) -> bool:
        """A boolean parameter: `key`, `key=1`, `key=y`, `key=on` (Linux: kstrtobool)."""
        if _normal(key) in self.flags:
            return True
        value = self.get(key).lower()
        if value in ("1", "y", "yes", "t", "true", "on"):
            return True
        if value in ("0", "n", "no", "f", "false", "off"):
            return False
        return default

    @property
    def iommu(self) -> bool:
        """Whether `intel_iommu=` switches the IOMMU on: the last of its on and off counts, in whatever company."""
        return [word for word in self.values("intel_iommu") if word in ("on", "off")][-1:] == ["on"]


def _normal(key: str) -> str:
    """Linux takes dashes and underscores of a parameter name as the same."""
    return key.replace("-", "_")
