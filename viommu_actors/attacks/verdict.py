"""From evidence to a verdict. "blocked" is said only with all of its proofs."""

from __future__ import annotations

from typing import Literal

from viommu_actors.attacks.catalogue import Access
from viommu_actors.attacks.evidence import Evidence, Fault

#: `unproven`: nothing got through that was seen, but a proof of "blocked" is missing.
Observed = Literal["blocked", "leaked", "corrupted", "redirected", "delivered", "degraded", "unproven"]
#: What a changed canary shows.
_HARM_DONE: dict[Access, Observed] = {
    "read": "corrupted",
    "write": "corrupted",
    "interrupt": "delivered",
    "service": "degraded",
}


def observe(access: Access, evidence: Evidence) -> Observed:
    """What became of an attack on one target.

    The canary of an attack on interrupts is the victim's count of them, that of one on the service what others got of
    it.
    """
    if evidence.canary_before != evidence.canary_after:
        return _HARM_DONE[access]
    if evidence.reached:
        return "leaked" if access == "read" else "corrupted"
    if missing_proofs(access, evidence):
        return "unproven"
    # What an attack on the service sends is not harmful by where it goes.
    return "redirected" if evidence.elsewhere and access != "service" else "blocked"


def missing_proofs(access: Access, evidence: Evidence) -> tuple[str, ...]:
    """What is not shown that "blocked" needs, in words; empty when all is there."""
    fault = evidence.fault
    seen = evidence.reached + evidence.elsewhere + evidence.refused
    needs_record = evidence.refused or access == "service"
    checks = (
        (evidence.attempts > 0, "no access arrived"),
        (evidence.tried == evidence.aimed, f"{evidence.aimed - evidence.tried} of {evidence.aimed} were never tried"),
        (seen == evidence.attempts, f"{evidence.attempts - seen} of {evidence.attempts} accesses are unaccounted for"),
        (bool(evidence.canary_before), "no canary was placed"),
        (fault is not None or not needs_record, "no record of what blocked it"),
        (fault is None or fault.source == evidence.source, "the record names another source"),
        (_same_direction(access, fault), "the record is of the other direction"),
        (evidence.control, "the positive control failed"),
    )
    return tuple(words for shown, words in checks if not shown)


def _same_direction(access: Access, fault: Fault | None) -> bool:
    # An interrupt's record tells its entry, and neither read nor write; a message that is none has no direction.
    return fault is None or access in ("interrupt", "service") or fault.write == (access == "write")
