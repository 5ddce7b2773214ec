"""What drives a virtio device, whoever does: a kernel's driver or an application's (virtio 1.2). All of it is pure."""
