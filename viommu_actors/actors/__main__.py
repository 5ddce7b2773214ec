"""Entry point of every actor process."""

from __future__ import annotations

import gc
import signal
import sys
from importlib import import_module

from viommu_actors.actors.runtime import end_with_launcher, ignore_terminal, log, read_configuration, settle
from viommu_actors.wire.zmtp import PeerLost

#: role -> where its actor class stands; imported alone, so that no process carries another's code
_ACTORS = {
    "host": ("viommu_actors.actors.host", "HostActor"),
    "hypervisor": ("viommu_actors.actors.hypervisor", "HypervisorActor"),
    "guest": ("viommu_actors.actors.guest", "GuestActor"),
    "app": ("viommu_actors.actors.app", "AppActor"),
    "vswitch": ("viommu_actors.actors.vswitch", "VswitchActor"),
    "device": ("viommu_actors.actors.device", "DeviceActor"),
    "floor": ("viommu_actors.actors.floor", "FloorActor"),
}


def main() -> None:
    """Reads the configuration and becomes the actor."""
    configuration = read_configuration()
    end_with_launcher(configuration["launcher"], configuration["lifeline"])
    ignore_terminal()
    module, name = _ACTORS[configuration["role"]]
    kind = getattr(import_module(module), name)
    # After the imports, which all CPUs may share, and before ZeroMQ starts its thread.
    settle(configuration["cpus"])
    try:
        actor = kind(configuration)
        # What stands now stays. A collection that looked at it all again would take milliseconds in the midst of work.
        gc.freeze()
        log(f"{configuration['name']} is up")
        actor.run()
    except PeerLost as error:
        # Whoever this one lived by has died: a guest's hypervisor, a process's kernel. What is to become of it the
        # launcher says, which knows who died first; until then it is not there for anybody.
        log(f"on its own: {error}")
        signal.pause()


if __name__ == "__main__":
    main()
    sys.exit(0)
