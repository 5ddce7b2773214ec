"""The host's virtual switch, in the manner of OVS-DPDK: back end of virtio network devices, and learning bridge."""
