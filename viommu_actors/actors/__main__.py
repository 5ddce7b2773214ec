"""Entry point of every actor process."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

from viommu_actors.actors.runtime import end_with_launcher, ignore_terminal, log, read_configuration, settle

#: role -> where its actor class stands; imported alone, so that no process carries another's code
_ACTORS = {
    "host": ("viommu_actors.actors.host", "HostActor"),
    "hypervisor": ("viommu_actors.actors.hypervisor", "HypervisorActor"),
    "guest": ("viommu_actors.actors.guest", "GuestActor"),
    "app": ("viommu_actors.actors.app", "AppActor"),
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
    actor = kind(configuration)
    # What stands now stays. A collection that looked at all of it again would take milliseconds in the midst of work.
    gc.freeze()
    log(f"{configuration['name']} is up")
    actor.run()


if __name__ == "__main__":
    main()
    sys.exit(0)
