"""A real QEMU as the judge of the unit: driven over its qtest socket, recorded, and fuzzed against."""
