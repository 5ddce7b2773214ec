"""Virtio devices that the hypervisor emulates behind the vIOMMU, served by a back end over the vhost wire."""
